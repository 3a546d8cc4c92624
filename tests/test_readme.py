# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Every Python block of the README runs, top to bottom, in one session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zoo

from hf_share.train.pretrain import train_tokenizer


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    base = tmp_path / "runs" / "base"  # what `make demo` leaves there
    zoo.build("llama", num_hidden_layers=8, vocab_size=300).save_pretrained(base)
    text = ["def main():\n    return 0\n"] * 20
    train_tokenizer(text, vocab_size=290, context=64).save_pretrained(base)
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), session)
    assert (tmp_path / "runs" / "readme" / "small" / "model.safetensors").exists()

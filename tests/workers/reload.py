# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python tests/workers/reload.py FOLDER: load every case of FOLDER and say whether its logits are as saved.

A case is a folder with `saved` (a checkpoint, or an adapter beside its `base`) and `case.pt`: the name of the
Auto class, the inputs, the logits and the groups of tied names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import torch
import transformers as tf

import hf_share  # noqa: F401 - registers


sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import pointers  # noqa: E402


def load(folder: Path, auto: str) -> torch.nn.Module:
    if (folder / "base").is_dir():
        base = getattr(tf, auto).from_pretrained(folder / "base")
        return peft.PeftModel.from_pretrained(base, folder / "saved")
    return getattr(tf, auto).from_pretrained(folder / "saved")


torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    case = torch.load(folder / "case.pt")
    model = load(folder, case["auto"]).eval()
    with torch.no_grad():
        same = torch.equal(model(**case["batch"]).logits, case["out"])
    print(folder.name, "exact" if same and pointers(model) == case["ties"] else "differs", flush=True)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The text and its split, windows over it, and perplexity against the formula written out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_share.eval.perplexity import perplexity
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.text import load_text, split_of, stdlib_files, stdlib_text, target_bytes, windows


CORPUS = ("def add(a, b):\n    return a + b\n", "for i in range(9):\n    print(i)\n", "é: ünïcode\n")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, vocab_size=300, context=16)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=40, max_position_embeddings=16, initializer_range=0.3, **sizes)
    return LlamaForCausalLM(config)


# --- the split ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "side"),
    [
        ("inspect.py", "heldout"),
        ("subprocess.py", "heldout"),
        ("tomllib/_parser.py", "heldout"),
        ("argparse.py", "train"),
        ("asyncio/events.py", "train"),
        ("asyncio/tasks.py", "train"),
        ("json/decoder.py", "train"),
    ],
)
def test_split_is_the_same_everywhere(path: str, side: str) -> None:
    assert split_of(path) == split_of(Path(path)) == side


@pytest.mark.parametrize(
    ("path", "twin"),
    [("pathlib.py", "pathlib/_local.py"), ("_pyio.py", "io.py"), ("_strptime.py", "strptime.py")],
)
def test_twins_of_a_module_stay_on_one_side(path: str, twin: str) -> None:
    assert split_of(path) == split_of(twin)


def test_stdlib_files_are_the_library_alone() -> None:
    files = stdlib_files()
    names = {path.name for path in files}
    assert {"argparse.py", "inspect.py", "subprocess.py"} <= names
    parts = {part for path in files for part in path.parts[-3:-1]}
    assert not parts & {"test", "tests", "site-packages", "__pycache__"}
    assert files == stdlib_files()


def test_train_and_heldout_do_not_overlap() -> None:
    text = stdlib_text()
    assert text.source == "stdlib"
    assert not set(text.train) & set(text.heldout)
    sizes = [sum(map(len, side)) for side in (text.train, text.heldout)]
    assert sizes[0] > 3_000_000
    assert 0.02 < sizes[1] / sum(sizes) < 0.2


# --- the user's own text --------------------------------------------------------------------------


def test_a_file_is_split_by_position(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("0123456789" * 10)
    text = load_text(str(path))
    assert text.train == ("0123456789" * 9,)
    assert text.heldout == ("0123456789",)


def test_jsonl_is_split_by_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"document {i}"}) for i in range(20)))
    text = load_text(str(path), column="body")
    assert len(text.train) == 18
    assert text.heldout == ("document 18", "document 19")


def test_a_data_set_is_streamed_up_to_max_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool):
        asked.update(path=path, name=name, split=split, streaming=streaming)
        return ({"text": "ten bytes."} for _ in iter(int, 1))  # endless

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    text = load_text("someone/corpus:small", max_bytes=100)
    assert asked == {"path": "someone/corpus", "name": "small", "split": "train", "streaming": True}
    assert (len(text.train), len(text.heldout)) == (9, 1)


def test_bad_text_is_refused(tmp_path: Path) -> None:
    empty, rows = tmp_path / "empty.txt", tmp_path / "rows.jsonl"
    empty.write_text(" \n")
    rows.write_text('{"body": "a"}\n')
    with pytest.raises(ValueError, match="holds no text"):
        load_text(str(empty))
    with pytest.raises(ValueError, match=r"line 1 of rows.jsonl .* column='text'; it has \['body'\]"):
        load_text(str(rows))
    with pytest.raises(ValueError, match="heldout=1.5"):
        load_text(str(rows), heldout=1.5)


# --- windows and perplexity -----------------------------------------------------------------------


def test_windows_are_disjoint_and_in_order(tokenizer) -> None:
    rows = windows(tokenizer, CORPUS, 8)
    stream = [token for text in CORPUS for token in (tokenizer.bos_token_id, *tokenizer(text)["input_ids"])]
    assert rows.shape == (len(stream) // 8, 8)
    assert rows.dtype == torch.int64
    assert rows.flatten().tolist() == stream[: rows.numel()]


def test_windows_refuse_too_little_text(tokenizer) -> None:
    with pytest.raises(ValueError, match="fewer than one window of context=4096"):
        windows(tokenizer, CORPUS, 4096)
    with pytest.raises(ValueError, match="context=1"):
        windows(tokenizer, CORPUS, 1)


def test_target_bytes_leave_out_the_first_token(tokenizer) -> None:
    row = torch.tensor([[tokenizer.bos_token_id, *tokenizer("return é")["input_ids"]]])
    assert target_bytes(tokenizer, row) == len("return é".encode())
    assert target_bytes(tokenizer, row[:, 1:]) < len("return é".encode())


def test_perplexity_is_the_formula(model: LlamaForCausalLM) -> None:
    rows = torch.randint(40, (5, 9), generator=torch.Generator().manual_seed(1))
    nats = 0.0
    with torch.no_grad():
        for row in rows:
            log_p = model(row[None]).logits[0].log_softmax(-1)
            nats -= sum(float(log_p[t, row[t + 1]]) for t in range(8))
    measured = perplexity(model, rows, batch=2, text_bytes=100, progress=False)
    assert measured.tokens == 40
    assert measured.nll == pytest.approx(nats / 40, rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(nats / 40), rel=1e-5)
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / 100, rel=1e-5)
    assert perplexity(model, rows, batch=5, progress=False).nll == pytest.approx(measured.nll, rel=1e-6)


def test_perplexity_gives_the_mode_back(model: LlamaForCausalLM) -> None:
    rows = torch.zeros(1, 4, dtype=torch.int64)
    model.train()
    assert perplexity(model, rows, progress=False).bits_per_byte is None
    assert model.training


@pytest.mark.parametrize(
    "rows", [torch.zeros(0, 8).long(), torch.zeros(2, 1).long(), torch.zeros(8).long(), torch.zeros(2, 8)]
)
def test_perplexity_refuses_what_is_no_window(model: LlamaForCausalLM, rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="windows must be integer token ids"):
        perplexity(model, rows)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Text as a stream: documents of files, folders and data sets, windows in an order that is found again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from workers import killed

from hf_share.train.data import prepare, split
from hf_share.train.documents import Documents
from hf_share.train.finetune import FinetuneConfig
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.stream import StreamedWindows
from hf_share.train.text import load_text, token_lists


LINES = killed.LINES[:40]


def as_text(folder: Path) -> str:
    (folder / "text.txt").write_text("<|endoftext|>\n".join(LINES))
    return str(folder / "text.txt")


def as_lines(folder: Path) -> str:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in LINES) + "\n")
    return str(folder / "rows.jsonl")


def as_folder(folder: Path) -> str:
    for i, part in enumerate((LINES[:15], LINES[15:])):
        (folder / "corpus" / str(i)).mkdir(parents=True)
        (folder / "corpus" / str(i) / "part.txt").write_text("<|endoftext|>".join(part))
    return str(folder / "corpus")


def as_dataset(folder: Path) -> str:
    (folder / "hub").mkdir()
    Dataset.from_dict({"text": LINES}).to_parquet(str(folder / "hub" / "train.parquet"))
    return str(folder / "hub")


SOURCES = {f.__name__[3:]: f for f in (as_text, as_lines, as_folder, as_dataset)}
CLEAN = [line.strip("\n") for line in LINES]


@pytest.mark.parametrize("kind", SOURCES)
def test_documents_go_on_where_they_stopped(kind, tmp_path):
    source = SOURCES[kind](tmp_path)
    whole = Documents(source, separator="<|endoftext|>", pieces=True)
    documents = [document.strip("\n") for document in whole]
    assert documents == CLEAN
    stopped = Documents(source, separator="<|endoftext|>", pieces=True)
    first = iter(stopped)
    assert [next(first).strip("\n") for _ in range(17)] == CLEAN[:17]
    state = json.loads(json.dumps(stopped.state()))
    again = Documents(source, separator="<|endoftext|>", pieces=True)
    again.restore(state)
    assert [document.strip("\n") for document in again] == CLEAN[17:]
    again.rewind()
    assert len(list(again)) == len(CLEAN)


@pytest.mark.parametrize("kind", SOURCES)
def test_load_text_reads_it(kind, tmp_path):
    text = load_text(SOURCES[kind](tmp_path), separator="<|endoftext|>")
    assert [t.strip("\n") for t in (*text.train, *text.heldout)] == CLEAN and len(text.heldout) == 4


def test_a_file_without_marks_is_cut_at_ends_of_lines(tmp_path):
    lines = [f"line {i}\n" for i in range(30_000)]
    (tmp_path / "long.txt").write_text("".join(lines))
    pieces = list(Documents(str(tmp_path / "long.txt"), separator="<|endoftext|>", pieces=True))
    assert 3 <= len(pieces) <= 6 and "\n".join(pieces) + "\n" == "".join(lines)
    assert len(list(Documents(str(tmp_path / "long.txt")))) == 1


def stream(source: str, tokenizer, **more) -> StreamedWindows:
    documents = Documents(source, separator="<|endoftext|>", pieces=True)
    return StreamedWindows(documents, tokenizer, 8, **{"first": 5, "block": 8, "seed": 1, **more})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, vocab_size=290, context=64)


def taken(rows, count: int) -> list[torch.Tensor]:
    return [row["input_ids"] for row in itertools.islice(rows, count)]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_stream_begins_where_a_checkpoint_was(kind, tmp_path, tokenizer):
    source = SOURCES[kind](tmp_path)
    rows = stream(source, tokenizer)
    whole = taken(rows, 300)  # more than once round
    for passed in (0, 3, 101, 299):
        place = json.loads(json.dumps(rows.place(passed)))
        again = stream(source, tokenizer)
        again.start_at(place)
        begin = place["block"] * 8
        assert passed - 8 < begin <= passed
        found = taken(again, 300)
        assert all(torch.equal(a, b) for a, b in zip(found[begin:], whole[begin:], strict=True))
        assert not any(row.any() for row in found[:begin]), "rows that are thrown away are not read"


def test_a_stream_is_the_text_in_another_order(tmp_path, tokenizer):
    source = as_text(tmp_path)
    rows, other = (taken(stream(source, tokenizer, seed=seed), 40) for seed in (1, 2))
    tokens = [token for document in token_lists(tokenizer, CLEAN[5:]) for token in document]
    plain = torch.tensor(tokens[: 40 * 8]).view(5, 8, 8)
    for block, found, permuted in zip(plain, zip(*[iter(rows)] * 8, strict=True), range(5), strict=True):
        assert sorted(block.tolist()) == sorted(row.tolist() for row in found), permuted
    assert not torch.equal(torch.stack(rows), plain.view(40, 8))
    assert not torch.equal(torch.stack(rows), torch.stack(other))


def test_held_out_documents_never_train(tmp_path):
    config = FinetuneConfig(
        text=as_text(tmp_path), streaming=True, context=8, eval_steps=1, save_steps=1, eval_windows=4
    )
    parts = split(config)
    tokenizer = train_tokenizer(parts.train, vocab_size=290, context=64)
    data = prepare(config, tokenizer, parts)
    assert parts.first == len(parts.test) + len(parts.validation) and data.test.shape == (4, 8)
    seen = [tokenizer.decode(row) for row in taken(data.train, 600)]
    names = [document.partition("(")[0] + "(" for document in (*parts.test, *parts.validation)]
    assert len(names) >= 4 and not any(name in text for name in names for text in seen)
    assert sum("def f30(" in text for text in seen) > 1, "the others come round again"


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stdlib fits in memory"):
        split(FinetuneConfig(streaming=True))
    with pytest.raises(ValueError, match="no text beyond 40 held-out documents"):
        split(FinetuneConfig(text=as_text(tmp_path), streaming=True))
    short = FinetuneConfig(text=as_text(tmp_path), streaming=True, context=2, eval_windows=1)
    with pytest.raises(ValueError, match="has no text beyond 50 held-out documents"):
        taken(stream(short.text, train_tokenizer(LINES, vocab_size=290, context=64), first=50), 1)

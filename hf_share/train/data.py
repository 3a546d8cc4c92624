# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a run in three parts that share no document: what trains, what chooses the best step, and what
results are measured on.

In memory the test part is what `load_text` holds out, and validation the last twentieth of the rest. A stream
gives its first documents to the test, the next to validation, and trains on what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .arguments import TextRun
from .documents import Documents
from .stream import StreamedWindows
from .text import Windows, load_text, split_documents, windows


VALIDATION = 0.05


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Documents before they are tokens. `train` holds, of a stream, its beginning."""

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]
    source: str
    stream: Documents | None = None
    first: int = 0  # documents of the stream that do not train


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a trainer takes. `validation` is None where a run does not evaluate."""

    train: Windows | StreamedWindows
    validation: Windows | None
    test: Tensor  # (n, context)


def split(config: TextRun) -> Parts:
    """The documents of a run's text in their three parts."""
    return _split_stream(config) if config.streaming else _split_memory(config)


def _split_memory(config: TextRun) -> Parts:
    text = _load(config, config.text)
    train, validation = text.train, ()
    if config.eval_steps and config.validation_text:
        other = _load(config, config.validation_text)
        validation = (*other.train, *other.heldout)
    elif config.eval_steps:
        train, validation = split_documents(text.train, VALIDATION)
    return Parts(train=train, validation=validation, test=text.heldout, source=text.source)


def _load(config: TextRun, source: str):
    return load_text(
        source, column=config.column, max_bytes=config.max_bytes, separator=config.separator
    )


def _split_stream(config: TextRun) -> Parts:
    """By bytes, since there is no tokenizer yet: about eight for a token are enough for the windows asked
    for.
    """
    if config.text == "stdlib":
        raise ValueError("text=stdlib fits in memory; streaming is for files, folders and data sets")
    stream = Documents(config.text, config.column, config.separator, pieces=True)
    documents = iter(stream)
    size = 8 * config.eval_windows * config.context
    test, validation = take(documents, size), take(documents, size) if config.eval_steps else []
    first = len(test) + len(validation)
    train = take(documents, config.max_bytes)
    if not train:
        raise ValueError(f"{config.text!r} has no text beyond {first} held-out documents; do not stream it")
    if config.eval_steps and config.validation_text:
        other = Documents(config.validation_text, config.column, config.separator, pieces=True)
        validation = take(other, size)
    return Parts(
        train=train, validation=validation, test=test, source=config.text, stream=stream, first=first
    )


def take(documents: Any, max_bytes: int) -> list[str]:
    """Documents up to a number of bytes, and the one that passes it."""
    taken: list[str] = []
    size = 0
    for document in documents:
        taken.append(document)
        size += len(document.encode())
        if size >= max_bytes:
            break
    return taken


def prepare(config: TextRun, tokenizer: Any, parts: Parts) -> Data:
    """The parts as windows of `config.context` tokens."""
    test = windows(tokenizer, parts.test, config.context)
    validation = None
    if parts.validation:
        validation = Windows(windows(tokenizer, parts.validation, config.context)[: config.eval_windows])
    if parts.stream is not None:
        train: Any = StreamedWindows(
            parts.stream, tokenizer, config.context, first=parts.first, seed=config.seed
        )
        test = test[: config.eval_windows]
    else:
        train = Windows(windows(tokenizer, parts.train, config.context))
    return Data(train=train, validation=validation, test=test)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: a model with its tokenizer, written whole or not at all, and what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..files import filling, write_text


def save_output(model: Any, tokenizer: Any, folder: str | Path, card: str = "") -> None:
    """Save whole or not at all: a kill or a full disk leaves what was there before. Of several processes the
    first one writes.
    """
    if not _is_first():
        return
    with filling(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if card:
            write_text(part / "README.md", card)


def _is_first() -> bool:
    """Whether this is the process that speaks and writes. Before a trainer is made, accelerate does not see
    that there are others on CPUs, and only the launcher has said so.
    """
    return int(os.environ.get("RANK", "0")) == 0 and PartialState().is_main_process


_said: ContextVar[list[dict[str, Any]] | None] = ContextVar("said", default=None)


def say(*words: Any) -> None:
    """Print, from one process."""
    if _is_first():
        print(*words, flush=True)
    lines = _said.get()
    if lines is not None:
        lines.append(_plain(words))


@contextmanager
def collected() -> Iterator[list[dict[str, Any]]]:
    """What is said in the block, line by line, as plain values for machines."""
    lines: list[dict[str, Any]] = []
    token = _said.set(lines)
    try:
        yield lines
    finally:
        _said.reset(token)


def _plain(words: Sequence[Any]) -> dict[str, Any]:
    """The words as `text`, and the numbers of the measurement among them."""
    out: dict[str, Any] = {"text": " ".join(map(str, words))}
    for word in words:
        if is_dataclass(word) and not isinstance(word, type):
            out |= json.loads(json.dumps(asdict(word), default=str))
            out |= {"perplexity": word.perplexity} if hasattr(word, "perplexity") else {}
    return out

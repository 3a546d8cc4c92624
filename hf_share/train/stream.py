# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Windows of a text that is larger than memory, in an order that a killed run finds again.

Windows are cut from the stream in blocks of `block`, and each block is permuted by a generator of the seed
and the block's number. At the start of each block a snapshot is taken: the place in the documents and the
tokens that were left over. A checkpoint holds the last snapshot that training has passed; a resumed run
begins there and hands out empty windows for those before, which Trainer asks for and throws away.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..files import write_text
from ..rules import generator
from .documents import Documents
from .text import token_lists


PLACE = "stream.json"


class StreamedWindows(torch.utils.data.IterableDataset):
    """Endless windows of `context` tokens: the documents come round again.

    Args:
        first: documents at the beginning that are left to others (held-out text).
        block: windows that are shuffled together.
    """

    def __init__(
        self, documents: Documents, tokenizer: Any, context: int, *, first: int = 0, seed: int = 0,
        block: int = 256,
    ):  # fmt: skip
        self.documents, self.tokenizer, self.context = documents, tokenizer, context
        self.first, self.seed, self.block = first, seed, block
        self.name = documents.name
        self.snapshots: deque[dict[str, Any]] = deque(maxlen=64)
        self._from: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start = self._from or {"block": 0, "documents": None, "tokens": []}
        empty = torch.zeros(self.context, dtype=torch.int64)
        for _ in range(start["block"] * self.block):
            yield {"input_ids": empty, "labels": empty}
        for rows in self._blocks(start):
            yield from ({"input_ids": row, "labels": row} for row in rows)

    def _blocks(self, start: dict[str, Any]) -> Iterator[Tensor]:
        """Permuted blocks of windows, (block, context), from a snapshot on."""
        tokens: list[int] = list(start["tokens"])
        self.documents.rewind()
        if start["documents"] is not None:
            self.documents.restore(start["documents"])
        source = self._round(skip=start["documents"] is None)
        size = self.block * self.context
        for number in itertools.count(start["block"]):
            state = self.documents.state() if number or start["documents"] is not None else None
            self.snapshots.append({"block": number, "documents": state, "tokens": list(tokens)})
            while len(tokens) < size:
                tokens += next(source)
            rows = torch.tensor(tokens[:size], dtype=torch.int64).view(self.block, self.context)
            tokens = tokens[size:]
            yield rows[torch.randperm(self.block, generator=generator(self.seed, "stream", str(number)))]

    def _round(self, skip: bool) -> Iterator[list[int]]:
        """Tokens of document after document, round and round."""
        while True:
            found = 0
            for document in itertools.islice(self.documents, self.first if skip else 0, None):
                found += 1
                yield from token_lists(self.tokenizer, [document])
            if skip and not found:
                raise ValueError(f"{self.name!r} has no text beyond {self.first} held-out documents")
            self.documents.rewind()
            skip = True

    def place(self, passed: int) -> dict[str, Any]:
        """The last snapshot before window number `passed`."""
        return [s for s in self.snapshots if s["block"] * self.block <= passed][-1]

    def start_at(self, place: dict[str, Any]) -> None:
        self._from = place


class KeepPlace(TrainerCallback):
    """Writes the place in a stream beside each checkpoint."""

    def __init__(self, stream: StreamedWindows):
        self.stream = stream

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.stream.snapshots:
            rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_text(folder / PLACE, json.dumps(self.stream.place(state.global_step * rows)))


def read_place(stream: StreamedWindows, checkpoint: Path) -> None:
    """Let a stream begin where a checkpoint was; from the start, more slowly, if it does not say."""
    if (checkpoint / PLACE).exists():
        stream.start_at(json.loads((checkpoint / PLACE).read_text(encoding="utf-8")))

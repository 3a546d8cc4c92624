# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Documents of any source, one after another: text files, rows of JSON, CSV or Parquet, folders of them, data
sets.

A source that is read as a stream can go on where it stopped: `Documents.state` is a few numbers. A data set
skips by its own state, local files by counting documents, which costs reading but no tokenising.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import read_text


LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # those of `datasets`
SUFFIXES = (".jsonl", ".md", ".txt")
PIECE = 1 << 16  # characters of a streamed file that does not mark its documents


class Documents:
    """The documents of a source that hold more than blanks, from where they were left.

    Args:
        column: where a row of JSON or of a data set has its text.
        separator: what stands between documents in a text file; empty if a file is one document.
        pieces: cut a text file that has no separator at ends of lines, instead of reading it whole.
    """

    def __init__(self, source: str, column: str = "text", separator: str = "", pieces: bool = False):
        self.name, self.column, self.separator, self.pieces = source, column, separator, pieces
        self.files = _files(Path(source))
        self._rows = None if self.files else _dataset(source)
        self._taken = 0

    def __iter__(self) -> Iterator[str]:
        if self._rows is not None:
            return self._remote(self._rows)
        return self._counted()

    def _counted(self) -> Iterator[str]:
        documents = (document for document in self._local() if document.strip())
        for document in itertools.islice(documents, self._taken, None):
            self._taken += 1
            yield document

    def state(self) -> Any:
        """Where the last document that was taken ends."""
        return self._taken if self._rows is None else self._rows.state_dict()

    def restore(self, state: Any) -> None:
        """Go on from there, when documents are next asked for."""
        if self._rows is None:
            self._taken = state
        else:
            self._rows.load_state_dict(state)

    def rewind(self) -> None:
        """Begin at the beginning."""
        self._taken = 0
        if self._rows is not None:
            self._rows = _dataset(self.name)

    def _local(self) -> Iterator[str]:
        for path in self.files:
            if path.suffix == ".jsonl":
                yield from _jsonl(path, self.column)
            elif path.suffix in LOADERS:
                yield from _rows(path, self.column)
            else:
                yield from self._text(path)

    def _text(self, path: Path) -> Iterator[str]:
        if self.pieces:
            return _pieces(path, self.separator)
        text = read_text(path)
        if not self.separator or self.separator not in text:
            return iter([text])
        return (part.strip("\n") for part in text.split(self.separator) if part.strip())

    def _remote(self, rows: Any) -> Iterator[str]:
        texts = (field(row, self.column, f"data set {self.name!r}") for row in rows)
        return (text for text in texts if text.strip())


def _files(path: Path) -> list[Path]:
    """The files of a local source; none if `datasets` has to read it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return found if found and all(p.suffix in SUFFIXES for p in found) else []


def _pieces(path: Path, separator: str) -> Iterator[str]:
    """Documents of a text file without holding the file: up to the separator, or pieces of whole lines."""
    held: list[str] = []
    size, marked = 0, False
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            parts = line.split(separator) if separator else [line]
            marked |= len(parts) > 1
            for part in parts[:-1]:
                yield from _whole([*held, part])
                held, size = [], 0
            held.append(parts[-1])
            size += len(parts[-1])
            if size >= PIECE and not marked:
                yield from _whole(held)
                held, size = [], 0
    yield from _whole(held)


def _whole(parts: list[str]) -> Iterator[str]:
    text = "".join(parts).strip("\n")
    if text.strip():
        yield text


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield field(json.loads(line), column, f"line {number} of {path.name}")


def _rows(path: Path, column: str) -> Iterator[str]:
    for number, row in enumerate(_read_rows(path), start=1):
        yield field(row, column, f"row {number} of {path.name}")


def _read_rows(path: Path) -> Iterator[Any]:
    from datasets import load_dataset

    if not path.stat().st_size:  # which `datasets` would not survive
        return
    try:
        yield from load_dataset(LOADERS[path.suffix], data_files=str(path), split="train", streaming=True)
    except ValueError as error:  # what pyarrow and pandas raise
        raise ConfigError(f"{path} cannot be read as rows: {error}") from error


def _dataset(source: str) -> Any:
    from datasets import load_dataset

    path, _, name = (source, "", "") if Path(source).exists() else source.partition(":")
    try:
        return load_dataset(path, name or None, split="train", streaming=True)
    except (FileNotFoundError, ConnectionError) as error:
        message = f"{source!r} is neither a local file nor a data set that can be reached: {error}"
        raise ValueError(message) from error


def field(row: object, column: str, where: str) -> str:
    """The text of a row."""
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where} has no text under column={column!r}; it has {found}")
    return row[column]

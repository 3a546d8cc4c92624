# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Results as JSON lines: one row is written the moment it is known, so that a killed run loses no other.

A last line that was cut short is a row that was not written: it is dropped. Anything else that is no JSON is
an error, since a row that cannot be read would be measured again without a word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Rows written so far, none if there is no file. A last line that was cut short is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n") if Path(path).exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            break
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise CheckpointError(f"{path}, line {number} is no JSON") from None
    return rows


def drop_cut_line(path: str | Path) -> None:
    """Take a last line that was cut short out of the file, so that the next row begins a line."""
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in read_lines(path)), encoding="utf-8")
        part.replace(path)


def append_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Write one row, down to the disk."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/promises.py [--keys] [ARCHITECTURE ...]: print the table of promises as Markdown.

A cell says how many promises of `tests/promises.py` were kept, or why the row is refused on that
architecture. With `--keys` it writes `tests/golden/keys.json`, the file format, instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import conftest  # noqa: E402, F401 - settings of all tests
from promises import PROMISES, Case, cells  # noqa: E402
from test_methods import GOLDEN, REFUSED, ROWS, keys_of_files  # noqa: E402
from zoo import MODELS  # noqa: E402

import hf_share  # noqa: E402


def cell(row: str, arch: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        try:
            case = Case(ROWS[row], arch, Path(home))
        except hf_share.ShareError as error:
            return "refused" if REFUSED.get((row, arch), "?") in str(error) else "**open**"
        found = cells(case)
    broken = [name for name, what in found.items() if isinstance(what, Exception)]
    if broken:
        return "**fails: " + ", ".join(broken) + "**"
    notes = {what for what in found.values() if what}
    return "pass" + (f" ({', '.join(sorted(notes))})" if notes else "")


def table(archs: list[str]) -> str:
    lines = ["| | " + " | ".join(archs) + " |", "|" + "---|" * (len(archs) + 1)]
    for row in ROWS:
        lines.append(f"| {row} | " + " | ".join(cell(row, arch) for arch in archs) + " |")
    return "\n".join(lines)


if "--keys" in sys.argv:
    with tempfile.TemporaryDirectory() as home:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(keys_of_files(Path(home)), indent=1) + "\n")
else:
    print("Promises:", "; ".join(PROMISES) + ".\n")
    print(table(sys.argv[1:] or list(MODELS)))

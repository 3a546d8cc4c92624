# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a comparison leaves for people: a Markdown page with tables and verdicts, and a plot beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..markdown import table
from .cells import Results


__all__ = ["by_seed", "matches", "table", "write"]


def by_seed(results: Results, key: str, **wanted: Any) -> dict[int, float]:
    """Seed -> `key` of the cells whose settings are `wanted`."""
    return {
        row["seed"]: row[key]
        for row in results.values()
        if row.get(key) is not None and matches(row, wanted)
    }


def matches(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a row, or the settings of a cell, has all that is `wanted`; None where it has no such key."""
    return all(row.get(name) == value for name, value in wanted.items())


APART = 1.5  # a clock that other work beside a cell lengthens
CLOCK = f"""*s/step*: the median of the processor seconds that a step took on one thread, left out where seeds
lie more than a factor {APART} apart: the first cells were timed beside other work, by a wall clock."""


def intro(command: str, text: str, **numbers: str) -> str:
    """The command of a page, given from its recipe on, and a paragraph with its `numbers` filled in."""
    command = f"python recipes/compare.py --config recipes/{command}"
    return f"`{command}`\n\n{textwrap.fill(text.format(**numbers), 110, break_on_hyphens=False)}"


def step_seconds(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The median over seeds, or None where they lie so far apart that other work was timed, too."""
    seconds = sorted(row["step_seconds"] for row in rows)
    return f"{seconds[len(seconds) // 2]:.2f}" if seconds[-1] <= APART * seconds[0] else None


def told_budgets(arms: Iterable[tuple[str, str]], results: Results) -> str:
    """A sentence on what the first arm of each budget trains; `arms` are (name, budget)."""
    found: dict[str, str] = {}
    for arm, budget in arms:
        row = next((r for r in results.values() if matches(r, {"arm": arm, "part": "final"})), None)
        if row is not None and budget != "-":
            found.setdefault(budget, f"{budget} is about the {row['trained']:,} parameters that {arm} trains")
    return f" Budget {', '.join(found.values())}." if found else ""


def write(output: str | Path, text: str) -> Path:
    """The page beside the results, `<results>.md`, written to a temporary name and moved."""
    return write_text(Path(output).with_suffix(".md"), text)

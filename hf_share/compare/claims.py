# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Claims that one arm of a comparison does better than another, and what the seeds say of them.

A refuted claim may be one of too few steps, so both of its arms are run once more, much longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .cells import Cell, Results
from .report import by_seed, matches
from .stats import Interval, paired, verdict, verdict_within


TIMES = 4  # steps of a longer run over those of the others


@dataclass(frozen=True)
class Claim:
    """`ours` ends lower than `theirs`, or with a `margin` no further from it; both are settings of cells."""

    name: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    margin: float | None = None

    def difference(self, results: Results, key: str, **shared: Any) -> Interval:
        """ours - theirs in `key` over the seeds that both have, among cells whose settings are `shared`."""
        ours, theirs = (by_seed(results, key, **shared, **side) for side in (self.ours, self.theirs))
        return paired(ours, theirs)

    def verdict(self, difference: Interval) -> str:
        return verdict(difference) if self.margin is None else verdict_within(difference, self.margin)

    def __str__(self) -> str:
        relation = "below" if self.margin is None else f"within {self.margin} nat of"
        return f"{self.name}: {_named(self.ours)} {relation} {_named(self.theirs)}"


def _named(side: Mapping[str, Any]) -> str:
    arm, *rest = map(str, side.values())
    return f"{arm} ({', '.join(rest)})" if rest else arm


def said(claims: Iterable[Claim], results: Results, key: str, **shared: Any) -> str:
    """A line of Markdown for each claim of which both sides are measured."""
    return "\n".join(_lines(claims, results, key, shared))


def _lines(claims: Iterable[Claim], results: Results, key: str, shared: Mapping[str, Any]) -> Iterator[str]:
    for claim in claims:
        found = claim.difference(results, key, **shared)
        if found.count:
            line = f"- {claim}: {found} nat, **{claim.verdict(found)}**"
            more = claim.difference(results, key, **{**shared, "part": "longer"})
            yield f"{line}; {TIMES} times the steps, seed 0: {more.mean:+.4f} nat" if more.count else line


def longer(
    cells: Iterable[Cell], claims: Iterable[Claim], results: Results, key: str, seeds: int, **shared: Any
) -> Iterator[Cell]:
    """Both sides of every claim that all `seeds` refute, once more with seed 0 and `TIMES` the steps."""
    sides = [{**shared, **side} for claim in _refuted(claims, results, key, seeds, shared)
             for side in (claim.ours, claim.theirs)]  # fmt: skip
    for cell in cells:
        settings = cell.settings
        if settings["seed"] == 0 and any(matches(settings, side) for side in sides):
            more = {"part": "longer", "steps": TIMES * settings["steps"]}
            yield Cell(f"{cell.name}/longer", {**settings, **more})


def _refuted(
    claims: Iterable[Claim], results: Results, key: str, seeds: int, shared: Mapping[str, Any]
) -> Iterator[Claim]:
    for claim in claims:
        found = claim.difference(results, key, **shared)
        if found.count == seeds and claim.verdict(found) == "refuted":
            yield claim

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Claims that one arm of a comparison does better than another, and what the seeds say of them.

A refuted claim may be one of too few steps, or of a learning rate that suits one arm, so both of its arms are
run once more, much longer, and, where the comparison does not search them, at other rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .cells import Cell, Results
from .rates import best_rate, grid, searched
from .report import by_seed, matches
from .stats import Interval, paired, verdict, verdict_within


TIMES = 4  # steps of a longer run over those of the others
RATES = 3  # learning rates to begin with


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
        if not found.count:
            continue
        line = f"- {claim}: {found} nat, **{claim.verdict(found)}**"
        more = claim.difference(results, key, **{**shared, "part": "longer"})
        line += f"; {TIMES} times the steps, seed 0: {more.mean:+.4f} nat" if more.count else ""
        ours, theirs = (_at_its_best(results, key, {**shared, **side}) for side in (claim.ours, claim.theirs))
        if ours and theirs:
            rates = f"{ours[0]:.1e} and {theirs[0]:.1e}"
            line += f"; each at its best learning rate ({rates}), seed 0: {ours[1] - theirs[1]:+.4f} nat"
        yield line


def longer(
    cells: Iterable[Cell], claims: Iterable[Claim], results: Results, key: str, seeds: int, **shared: Any
) -> Iterator[Cell]:
    """Both sides of every claim that all `seeds` refute, once more with seed 0 and `TIMES` the steps."""
    for cell in _sides(cells, claims, results, key, seeds, shared):
        more = {"part": "longer", "steps": TIMES * cell.settings["steps"]}
        yield Cell(f"{cell.name}/longer", {**cell.settings, **more})


def at_other_rates(
    cells: Iterable[Cell], claims: Iterable[Claim], results: Results, key: str, seeds: int, **shared: Any
) -> Iterator[Cell]:
    """The same at other learning rates, until the best of each has a worse one on either side."""
    for cell in _sides(cells, claims, results, key, seeds, shared):
        rate = cell.settings["learning_rate"]
        for other in grid(cell.name, rate, RATES, _with_own(cell.name, rate, results), key):
            if other != rate:
                more = {"part": "search", "learning_rate": other}
                yield Cell(searched(cell.name, other), {**cell.settings, **more})


def _with_own(name: str, rate: float, results: Results) -> Results:
    """With the cell itself as one of its search."""
    return {**results, searched(name, rate): results[name]}


def _at_its_best(results: Results, key: str, side: Mapping[str, Any]) -> tuple[float, float] | None:
    """Learning rate and `key` of the best of a finished search; None where there is none."""
    own = next((r for r in results.values() if matches(r, {**side, "seed": 0})), None)
    if own is None or "learning_rate" not in own:
        return None
    name, rate = own["cell"], own["learning_rate"]
    known = _with_own(name, rate, results)
    best = best_rate(name, grid(name, rate, RATES, known, key), known, key)
    return None if best is None else (best, known[searched(name, best)][key])


def _sides(
    cells: Iterable[Cell], claims: Iterable[Claim], results: Results, key: str, seeds: int,
    shared: Mapping[str, Any],
) -> Iterator[Cell]:  # fmt: skip
    """The cells of seed 0 on both sides of every claim that all `seeds` refute."""
    sides = [{**shared, **side} for claim in _refuted(claims, results, key, seeds, shared)
             for side in (claim.ours, claim.theirs)]  # fmt: skip
    for cell in cells:
        if cell.settings["seed"] == 0 and any(matches(cell.settings, side) for side in sides):
            yield cell


def _refuted(
    claims: Iterable[Claim], results: Results, key: str, seeds: int, shared: Mapping[str, Any]
) -> Iterator[Claim]:
    for claim in claims:
        found = claim.difference(results, key, **shared)
        if found.count == seeds and claim.verdict(found) == "refuted":
            yield claim

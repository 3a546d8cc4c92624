# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Learning rates: a few a factor 3 apart round the published one, and one more beyond an edge that is best.

An arm's cells are its search (one seed, short, judged on validation text) and, once the best rate has two
neighbours that are worse, its final runs with that rate over all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..errors import ConfigError
from .cells import Cell, Results


MOST = 12  # rates to try: a factor of 3 ** 11 from one end to the other


class Numbers(Protocol):
    """What the settings of a comparison with a search have in common."""

    steps: int
    search_steps: int
    seeds: int
    grid: int


def require_grid(count: int) -> None:
    if not 3 <= count <= MOST:
        raise ConfigError(f"grid={count}: 3 to {MOST} rates fit; a best one between two others takes 3")


def arm_cells(
    stem: str, settings: Mapping[str, Any], published: float, config: Numbers, results: Results
) -> Iterator[Cell]:
    """Cells of one arm that can be measured, given the results so far."""
    rates = grid(stem, published, config.grid, results)
    for rate in rates:
        search = {"part": "search", "steps": config.search_steps, "seed": 0, "rate": rate}
        yield Cell(searched(stem, rate), {**settings, **search})
    best = best_rate(stem, rates, results)
    for seed in range(config.seeds) if best is not None else ():
        final = {"part": "final", "steps": config.steps, "seed": seed, "rate": best}
        yield Cell(f"{stem}/seed={seed}", {**settings, **final})


def searched(stem: str, rate: float) -> str:
    """The name of the cell that tries `rate`."""
    return f"{stem}/search/{rate:.1e}"


def grid(stem: str, published: float, count: int, results: Results, key: str = "valid_nll") -> list[float]:
    """Rates to search, smallest first; longer while the best of a finished grid is at its edge."""
    rates = [_short(published * 3.0 ** (i - 1)) for i in range(count)]
    while len(rates) < MOST:
        found = _scores(stem, rates, results, key)
        if None in found:
            break
        best = min(range(len(rates)), key=found.__getitem__)
        if 0 < best < len(rates) - 1:
            break
        rates = [_short(rates[0] / 3.0), *rates] if best == 0 else [*rates, _short(rates[-1] * 3.0)]
    return rates


def best_rate(stem: str, rates: list[float], results: Results, key: str = "valid_nll") -> float | None:
    """The best rate of a finished grid, or None while some of it is not measured."""
    found = _scores(stem, rates, results, key)
    return None if None in found else rates[min(range(len(rates)), key=found.__getitem__)]


def _scores(stem: str, rates: list[float], results: Results, key: str) -> list[Any]:
    rows = [results.get(searched(stem, rate)) for rate in rates]
    return [None if row is None else _or_worst(row[key]) for row in rows]


def _or_worst(value: float | None) -> float:
    """A run that diverged has no number, and is worse than any that has one."""
    return value if value is not None and math.isfinite(value) else math.inf


def _short(rate: float) -> float:
    return float(f"{rate:.1e}")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The exact multiple-choice knapsack, by scipy's mixed-integer solver (HiGHS).

    min sum_do s[d][o] x_do    x_do in {0, 1},  sum_o x_do = 1 for each d,  cost_k(x) <= limit_k for each k

Costs are whole numbers or measured times, possibly in the billions, and the solver's constraints hold to
a relative 1e-6 only: each row is divided by its room, and an answer that costs too much all the same is cut
off and solved again. Where a cost has parts that do not add up, its limit is lowered by what they came to.
So what is returned always fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import LinearConstraint, milp

from ..budget import Budget
from ..errors import ConfigError
from .sensitivity import Table
from .space import Candidate, Space


def solve(space: Space, table: Table, budget: Budget) -> Candidate:
    """The candidate with the least sum over `table` (anything with one number an option) that fits.

    Raises:
        ConfigError: if nothing fits; the smallest possible is named.
    """
    space.check(budget)
    values, limits, cuts = _finite(table), dict(budget.limits), []
    while True:
        rows = [_limit(space, name, limit) for name, limit in limits.items()]
        candidate = _solve(space, values, [LinearConstraint(row, ub=room) for row, room in rows] + cuts)
        if candidate is None and all(limits[name] == limit for name, limit in budget.limits):
            raise ConfigError(f"no subnet meets {budget} at once, though each limit alone can be met")
        if candidate is None:
            return _smallest(space, budget)
        if space.fits(candidate, budget):
            return candidate
        for name, limit in budget.limits:
            excess = space.costs[name].of(candidate) - max(limit, space.costs[name].sum(candidate))
            limits[name] -= max(excess, 0.0)
        cuts.append(_not(space, candidate))


def _solve(space: Space, values: np.ndarray, constraints: Sequence[LinearConstraint]) -> Candidate | None:
    # the default gap would stop at an answer that is one part in ten thousand worse
    found = milp(
        values, constraints=[_one_each(space), *constraints], integrality=1, bounds=(0, 1),
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        return None
    edges = np.cumsum((0, *space.sizes))
    return tuple(int(np.argmax(found.x[a:b])) for a, b in zip(edges, edges[1:], strict=False))


def _not(space: Space, candidate: Candidate) -> LinearConstraint:
    """Any candidate but this one."""
    taken = np.zeros(sum(space.sizes))
    taken[np.cumsum((0, *space.sizes))[:-1] + np.array(candidate)] = 1.0
    return LinearConstraint(taken, ub=len(candidate) - 1)


def _smallest(space: Space, budget: Budget) -> Candidate:
    """The smallest candidate, where a limit leaves room for no other by what adds up."""
    if space.fits(space.smallest, budget):
        return space.smallest
    raise ConfigError(f"no subnet meets {budget} at once, though each limit alone can be met")


def ladder(space: Space, table: Table, budget: Budget, rungs: int) -> list[tuple[float, Candidate]]:
    """Solutions for `rungs` limits of the budget's first cost, evenly from the smallest that is possible to
    the largest, each with its limit; a candidate that a lower rung has already is left out.
    """
    cost = space.costs[budget.cost]
    found: dict[Candidate, float] = {}
    for limit in np.linspace(cost.smallest, cost.largest, rungs):
        try:
            found.setdefault(solve(space, table, budget.with_limit(float(limit))), float(limit))
        except ConfigError:
            continue  # the other limits leave nothing this small
    return [(limit, candidate) for candidate, limit in found.items()]


def _one_each(space: Space) -> LinearConstraint:
    owner = np.repeat(np.arange(len(space.sizes)), space.sizes)
    ones = (np.ones(len(owner)), (owner, np.arange(len(owner))))
    return LinearConstraint(sparse.csc_array(ones), lb=1, ub=1)


def _limit(space: Space, name: str, limit: float) -> tuple[np.ndarray, float]:
    """The row of a cost over all options, less each decision's smallest, and the room it leaves, scaled."""
    cost = space.costs[name]
    least = [min(options) for options in cost.options]
    row = np.concatenate([np.array(o, float) - m for o, m in zip(cost.options, least, strict=True)])
    room = max(limit * cost.over - cost.fixed - sum(least), 0.0)
    scale = max(room, float(row.max()) * 1e-3, 1e-300)
    return row / scale, room / scale + 1e-9


def _finite(table: Sequence[Sequence[float]]) -> np.ndarray:
    """One row of values; one that is infinite becomes worse than all others together."""
    values = np.concatenate([np.array(row, float) for row in table])
    known = values[np.isfinite(values)]
    values[~np.isfinite(values)] = np.abs(known).sum() + 1.0 if len(known) else 0.0
    return values

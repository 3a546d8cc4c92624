# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Searches that others propose, to measure ours against. Each keeps to the budget.

random      candidates filled at random up to the budget; the best of them.
LLM-QFA     [100, 50] (arXiv 2405.20202): 100 random candidates, the correlation of each decision's level with
            the value, a space shrunk around the sensitive decisions, 50 more from it. The paper does not say
            how it shrinks; here the most sensitive quarter of the decisions keeps its upper half of options,
            the least sensitive quarter its lower half.
EvoPress    (arXiv 2410.14649): (1 + lambda) evolution by min(U{1..3}, U{1..3}) level swaps, offspring
            selected on growing shares of the data; 250 generations of 64 there, as many here as the
            evaluations allow.

LIM and ZD rank whole blocks; they are in `blocks`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..budget import Budget
from ..errors import ConfigError
from .evaluate import Evaluator
from .space import Candidate, Cost, Space
from .swaps import fill, swap_search


EVOPRESS_STAGES = ((16, 1 / 64), (4, 1 / 8), (1, 1.0))
EVOPRESS_MOVES = 3


def random_search(
    space: Space, evaluate: Evaluator, budget: Budget, *, evaluations: float, seed: int = 0
) -> Candidate:
    """The best of `evaluations` random fillings of the budget."""
    space.check(budget)
    rng = random.Random(seed)
    with evaluate.stage("random", evaluations):
        return _best(evaluate, _random(space, budget, rng, int(evaluations)))


def llm_qfa(
    space: Space, evaluate: Evaluator, budget: Budget, *, first: int = 100, then: int = 50, seed: int = 0
) -> Candidate:
    """LLM-QFA's search: `first` random candidates, then `then` from the space they shrink."""
    space.check(budget)
    rng = random.Random(seed)
    with evaluate.stage("LLM-QFA", first + then):
        drawn = _random(space, budget, rng, first)
        values = [evaluate(c) for c in drawn]
        lower, narrow = shrunk(space, drawn, values)
        more = []
        if narrow.costs[budget.cost].smallest <= budget.limit:
            more = _random(narrow, budget, rng, then)
        shifted = [tuple(a + b for a, b in zip(c, lower, strict=True)) for c in more]
        return _best(evaluate, [*drawn, *shifted])


def evopress(
    space: Space, evaluate: Evaluator, budget: Budget, *, evaluations: float, seed: int = 0
) -> Candidate:
    """EvoPress from the uniform candidate that fits."""
    start = filled(space, budget, seed)
    return swap_search(
        space, evaluate, start, budget, evaluations=evaluations, seed=seed, stages=EVOPRESS_STAGES,
        most_moves=EVOPRESS_MOVES,
    )  # fmt: skip


def filled(space: Space, budget: Budget, seed: int) -> Candidate:
    """The largest uniform candidate that fits, and what is left of the budget spent at random."""
    space.check(budget)
    start = [c for c in space.uniform() if space.fits(c, budget)]
    return fill(space, start[-1] if start else space.smallest, budget, random.Random(seed))


def shrunk(
    space: Space, drawn: Sequence[Candidate], values: Sequence[float]
) -> tuple[tuple[int, ...], Space]:
    """The space around what mattered: the first option each decision keeps, and the space of those kept."""
    order = np.argsort(correlations(drawn, values), kind="stable")  # most negative: more bits, less error
    quarter = len(order) // 4
    lower, upper = [0] * len(order), list(space.sizes)
    for d in order[:quarter]:
        lower[d] = space.sizes[d] // 2
    for d in order[len(order) - quarter :]:
        upper[d] = (space.sizes[d] + 1) // 2
    kept = [slice(a, b) for a, b in zip(lower, upper, strict=True)]
    decisions = tuple(replace(d, options=d.options[k]) for d, k in zip(space.decisions, kept, strict=True))
    costs = {
        name: Cost(
            options=tuple(o[k] for o, k in zip(c.options, kept, strict=True)), fixed=c.fixed, over=c.over
        )
        for name, c in space.costs.items()
    }
    return tuple(lower), Space(decisions=decisions, costs=costs)


def correlations(drawn: Sequence[Candidate], values: Sequence[float]) -> np.ndarray:
    """Pearson's correlation of each decision's level with the value; 0 where either does not vary."""
    known = np.isfinite(values)
    levels, y = np.array(drawn, float)[known], np.array(values, float)[known]
    if len(y) < 2:
        raise ConfigError("fewer than two of the random candidates gave a number")
    levels, y = levels - levels.mean(0), y - y.mean()
    spread = np.sqrt((levels**2).sum(0) * (y**2).sum())
    return np.divide(levels.T @ y, spread, out=np.zeros(levels.shape[1]), where=spread > 0)


def _random(space: Space, budget: Budget, rng: random.Random, count: int) -> list[Candidate]:
    """Different random fillings, fewer than `count` if the space has no more."""
    found: dict[Candidate, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found[fill(space, space.smallest, budget, rng)] = None
    return list(found)


def _best(evaluate: Evaluator, candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=evaluate)

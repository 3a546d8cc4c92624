# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Local search that keeps to the budget: one decision goes up, others go down until it fits, and what is left
over is spent again.

A round draws offspring of the best candidate so far and keeps the best of them through *stages* on growing
shares of the search data: ((16, 1/64), (4, 1/8), (1, 1)) looks at 16 on 1/64 of it, at the best 4 of these on
1/8, at the best 1 on all, and that one replaces its parent if it is better. One stage, ((1, 1),), looks at
one candidate at a time. Where a sensitivity table is at hand, each offspring is the one of several draws
that the table predicts to be best: it knows which moves are hopeless, the evaluation which are good.

All is a function of the seed, so that a killed search repeats itself from what was kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ..budget import Budget
from .evaluate import Evaluator
from .sensitivity import Table, predicted
from .space import Candidate, Space


Stages = Sequence[tuple[int, float]]  # how many are looked at, on which share of the search data
Move = Callable[[random.Random, Candidate], Candidate]
ONE_AT_A_TIME: Stages = ((1, 1.0),)
GROWING: Stages = ((16, 1 / 16), (4, 1 / 4), (1, 1.0))
GIVE_UP = 200  # draws that gave nothing new


def swap_search(
    space: Space,
    evaluate: Evaluator,
    start: Candidate,
    budget: Budget,
    *,
    evaluations: float,
    seed: int = 0,
    table: Table | None = None,
    draws: int = 8,
    stages: Stages = ONE_AT_A_TIME,
    most_moves: int = 1,
) -> Candidate:
    """The best candidate found from `start` with at most `evaluations` more evaluations.

    Args:
        draws: offspring drawn for each that is looked at, where there is a table.
        most_moves: an offspring is min(U, U') moves away, U and U' drawn from 1 to this.
    """
    rng = random.Random(seed)
    stop = evaluate.spent + evaluations
    best = start

    def draw() -> Candidate:
        made = best
        for _ in range(min(rng.randint(1, most_moves), rng.randint(1, most_moves))):
            made = swap(space, made, budget, rng)
        return made

    with evaluate.stage("swaps", evaluations):
        if evaluations >= 1:
            evaluate(start)
        while evaluate.spent + sum(n * evaluate.share(s) for n, s in stages) <= stop:
            born = _offspring(draw, evaluate, stages[0][0], table, draws)
            if not born:
                break
            winner = _select(evaluate, born, stages)
            best = winner if evaluate(winner) < evaluate(best) else best
    return best


def swap(space: Space, candidate: Candidate, budget: Budget, rng: random.Random) -> Candidate:
    """One decision a level up, others down one by one until it fits, then `fill`."""
    levels = list(candidate)
    able = [d for d, n in enumerate(space.sizes) if levels[d] + 1 < n]
    if not able:
        return candidate
    raised = rng.choice(able)
    levels[raised] += 1
    while not space.fits(tuple(levels), budget):
        lower = [d for d, level in enumerate(levels) if level > 0 and d != raised]
        if not lower:
            return candidate
        levels[rng.choice(lower)] -= 1
    return fill(space, tuple(levels), budget, rng)


def fill(space: Space, candidate: Candidate, budget: Budget, rng: random.Random) -> Candidate:
    """Decisions in random order a level up each, over and over, as long as it fits."""
    levels, open_ = list(candidate), list(range(len(candidate)))
    while open_:
        d = open_.pop(rng.randrange(len(open_)))
        if levels[d] + 1 < space.sizes[d]:
            levels[d] += 1
            if space.fits(tuple(levels), budget):
                open_.append(d)
            else:
                levels[d] -= 1
    return tuple(levels)


def _offspring(
    draw: Callable[[], Candidate], evaluate: Evaluator, count: int, table: Table | None, draws: int
) -> list[Candidate]:
    """Up to `count` new candidates, fewer when nothing new is found."""
    born: list[Candidate] = []
    known = {candidate for candidate, _ in evaluate.seen}
    for _ in range(count):
        fresh: list[Candidate] = []
        for _ in range(GIVE_UP):
            made = draw()
            if made not in known and made not in fresh:
                fresh.append(made)
            if len(fresh) >= (1 if table is None else draws):
                break
        if not fresh:
            break
        born.append(fresh[0] if table is None else min(fresh, key=lambda c: predicted(table, c)))
        known.add(born[-1])
    return born


def _select(evaluate: Evaluator, born: list[Candidate], stages: Stages) -> Candidate:
    """The best of the last stage; each stage keeps as many as the next one looks at."""
    for count, share in stages:
        born = sorted(born[:count], key=lambda c: evaluate(c, share))
    return born[0]

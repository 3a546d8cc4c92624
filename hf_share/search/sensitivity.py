# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What each option of each decision alone does to the value, measured around one candidate.

    s[d][o] = f(base with c_d = o) - f(base),    f: KL to the full model, so that smaller is better
    f(c) ~ f(base) + sum_d s[d][c_d]             what a knapsack minimises

For L decisions of 3 options that is 2L + 1 evaluations. The base is the uniform candidate nearest the budget:
errors of weights add up almost linearly there, and less so far from it.
"""

from __future__ import annotations

from .evaluate import Evaluator
from .space import Candidate, Space


Table = tuple[tuple[float, ...], ...]  # of each decision, of each option


def sensitivity(space: Space, evaluate: Evaluator, base: Candidate) -> Table:
    """s[d][o] for every decision and option."""
    with evaluate.stage("sensitivity", evaluations(space)):
        start = evaluate(base)
        return tuple(
            tuple(evaluate(_with(base, d, o)) - start for o in range(size))
            for d, size in enumerate(space.sizes)
        )


def evaluations(space: Space) -> int:
    """What a table costs: one evaluation for the base and one for each option that is not the base's."""
    return 1 + sum(size - 1 for size in space.sizes)


def predicted(table: Table, candidate: Candidate) -> float:
    """Value of a candidate above the base's, if what its options do adds up."""
    return sum(row[o] for row, o in zip(table, candidate, strict=True))


def _with(candidate: Candidate, decision: int, option: int) -> Candidate:
    return (*candidate[:decision], option, *candidate[decision + 1 :])

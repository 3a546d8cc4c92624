# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The searches by name. A new one is a function of a `Task` and a row: `@method("name")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..budget import Budget
from ..errors import ConfigError, unknown
from . import baselines
from .blocks import two_levels
from .evaluate import Evaluator
from .knapsack import ladder, solve
from .nsga2 import nsga2
from .sensitivity import Table, sensitivity
from .space import Candidate, Space
from .swaps import GROWING, swap_search


DEFAULT = "sensitivity+knapsack+swaps"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a search is given.

    `evaluations` is what it may spend after a sensitivity table, if it makes one, as `Evaluator.spent`
    counts; `rungs` are the budgets of a ladder, 0 for none; `importance` gives the scores of blocks by name,
    for methods that rank them.
    """

    space: Space
    evaluate: Evaluator
    budget: Budget
    evaluations: int = 150
    seed: int = 0
    rungs: int = 0
    importance: Mapping[str, Callable[[], Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The candidate for the budget, and others of a front, each with a budget it is the answer to."""

    best: Candidate
    front: tuple[tuple[Budget, Candidate], ...] = ()


Search = Callable[[Task], Outcome]
METHODS: dict[str, Search] = {}


def method(name: str) -> Callable[[Search], Search]:
    """Register a search under a name."""

    def add(search: Search) -> Search:
        METHODS[name] = search
        return search

    return add


def run(name: str, task: Task) -> Outcome:
    """The outcome of the search called `name`."""
    if name not in METHODS:
        raise unknown("search method", name, METHODS, ConfigError)
    task.space.check(task.budget)
    return METHODS[name](task)


@method(DEFAULT)
def sensitivity_knapsack_swaps(task: Task) -> Outcome:
    scores, start, front = _knapsack(task)
    best = swap_search(
        task.space, task.evaluate, start, task.budget, evaluations=task.evaluations, seed=task.seed,
        table=scores, stages=GROWING,
    )  # fmt: skip
    return Outcome(best=best, front=front)


@method("sensitivity+knapsack")
def sensitivity_knapsack(task: Task) -> Outcome:
    _, best, front = _knapsack(task)
    return Outcome(best=best, front=front)


@method("swaps")
def swaps(task: Task) -> Outcome:
    """Swaps without a table, from the uniform candidate that fits."""
    start = baselines.filled(task.space, task.budget, task.seed)
    best = swap_search(
        task.space, task.evaluate, start, task.budget, evaluations=task.evaluations, seed=task.seed
    )
    return Outcome(best=best)


@method("nsga2")
def seeded_nsga2(task: Task) -> Outcome:
    scores, start, front = _knapsack(task, rungs=max(task.rungs, 9))
    seeds = [start, *(candidate for _, candidate in front)]
    return _nsga2(task, [c for c in seeds if task.space.fits(c, task.budget)])


@method("nsga2-unseeded")
def unseeded_nsga2(task: Task) -> Outcome:
    return _nsga2(task, [])


@method("llm-qfa")
def llm_qfa(task: Task) -> Outcome:
    first = task.evaluations * 2 // 3
    more = {"first": first, "then": task.evaluations - first, "seed": task.seed}
    return Outcome(best=baselines.llm_qfa(task.space, task.evaluate, task.budget, **more))


@method("evopress")
def evopress(task: Task) -> Outcome:
    more = {"evaluations": task.evaluations, "seed": task.seed}
    return Outcome(best=baselines.evopress(task.space, task.evaluate, task.budget, **more))


@method("random")
def random_search(task: Task) -> Outcome:
    more = {"evaluations": task.evaluations, "seed": task.seed}
    return Outcome(best=baselines.random_search(task.space, task.evaluate, task.budget, **more))


@method("lim")
def lim(task: Task) -> Outcome:
    return Outcome(best=two_levels(task.space, task.importance["lim"](), task.budget))


@method("zd")
def zd(task: Task) -> Outcome:
    return Outcome(best=two_levels(task.space, task.importance["zd"](), task.budget))


def _knapsack(
    task: Task, rungs: int | None = None
) -> tuple[Table, Candidate, tuple[tuple[Budget, Candidate], ...]]:
    base = task.space.nearest_uniform(task.budget)
    scores = sensitivity(task.space, task.evaluate, base)
    climbed = ladder(task.space, scores, task.budget, task.rungs if rungs is None else rungs)
    front = tuple((task.budget.with_limit(limit), candidate) for limit, candidate in climbed)
    return scores, solve(task.space, scores, task.budget), front


def _nsga2(task: Task, seeds: list[Candidate]) -> Outcome:
    found = nsga2(
        task.space, task.evaluate, task.budget, evaluations=task.evaluations, seeds=seeds, seed=task.seed
    )
    if task.evaluate.best is None:
        raise ConfigError(f"no candidate within {task.budget} came up in {task.evaluations} evaluations")
    amounts = [(c, task.space.amounts(c)) for c in found]
    names = [name for name, _ in task.budget.limits]
    front = tuple((Budget(tuple((n, a[n]) for n in names)), c) for c, a in amounts)
    return Outcome(best=task.evaluate.best[0], front=front)

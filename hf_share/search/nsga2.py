# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""NSGA-II by optuna, for a front over several costs at once.

Minimises (value, cost_1, cost_2, ...) under the budget's limits. From scratch it needs many evaluations; its
first generation is therefore seeded with the solutions of a ladder of knapsacks, which lie on or near the
front already. A candidate beyond the limits is told to the sampler without an evaluation.

The sampler is a function of its seed and of the values it is told, and evaluations are kept, so that a killed
run replays its beginning and goes on; no data base of optuna's is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..budget import Budget
from ..errors import ConfigError
from .evaluate import Evaluator
from .space import Candidate, Space


TRIALS = 20  # told for each evaluation at most: repeats and candidates beyond the limits are free


def nsga2(
    space: Space,
    evaluate: Evaluator,
    budget: Budget,
    *,
    evaluations: float,
    seeds: Sequence[Candidate] = (),
    objectives: Sequence[str] | None = None,
    population: int = 20,
    seed: int = 0,
) -> list[Candidate]:
    """The candidates evaluated so far that fit and that no other one beats in value and in every cost.

    Args:
        evaluations: the most that are made here.
        seeds: the first candidates.
        objectives: costs to minimise beside the value; those of the budget if None. With none of them it is a
            plain evolutionary search under the limits.
        population: candidates a generation.
    """
    space.check(budget)
    costs = [name for name, _ in budget.limits] if objectives is None else list(objectives)
    study = _study(len(costs) + 1, population, seed)
    optuna = _optuna()
    names = [f"{d.kind} {d.name}" for d in space.decisions]
    ranges: dict[str, Any] = {
        name: optuna.distributions.IntDistribution(0, n - 1)
        for name, n in zip(names, space.sizes, strict=True)
    }
    for candidate in seeds:
        study.enqueue_trial(dict(zip(names, candidate, strict=True)))
    stop = evaluate.spent + evaluations
    with evaluate.stage("NSGA-II", evaluations):
        for _ in range(max(int(TRIALS * evaluations), len(seeds))):
            if evaluate.spent + 1 > stop:
                break
            trial = study.ask(ranges)
            candidate = tuple(int(trial.params[name]) for name in names)
            amounts = space.amounts(candidate)
            inside = space.fits(candidate, budget)
            for name, limit in budget.limits:  # above 0 is beyond the limit
                trial.set_constraint(name, 0.0 if inside else amounts[name] / limit - 1.0)
            value = evaluate(candidate) if inside else float("inf")
            study.tell(trial, [value, *(amounts[name] for name in costs)])
    return front(space, evaluate, budget, costs)


def front(space: Space, evaluate: Evaluator, budget: Budget, costs: Sequence[str]) -> list[Candidate]:
    """Of all candidates evaluated so far that fit, those that no other one is better than in everything."""
    points = {
        c: (value, *(space.costs[name].of(c) for name in costs))
        for c, value in evaluate.results.items()
        if space.fits(c, budget)
    }
    return [c for c, p in points.items() if not any(_beats(q, p) for q in points.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _study(objectives: int, population: int, seed: int) -> Any:
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    try:
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports] - an extra
    except ImportError:
        raise ConfigError(
            "NSGA-II needs optuna, which is not installed: pip install 'hf_share[search]'; the other methods "
            "need nothing more"
        ) from None
    return optuna

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A search space: named decisions, their options, and costs that add up exactly.

    cost_k(c) = (fixed_k + sum_d options_k[d][c_d]) / over_k         c_d: index of the option of decision d

A *candidate* c is one index a decision, 0 the smallest option. Costs are sums of what each decision alone
costs, which is what makes an exact knapsack possible; whole numbers stay whole until the one division. A file
has a few bytes that do not add up (digits in its header, tensors that several sites share): its cost brings a
function that is exact, and the sum is then its lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ..budget import Budget
from ..errors import ConfigError, unknown


Candidate = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What `choose` may set at one place: `kind` ("bits") at `name` (a site), smallest option first.

    `sites` are set together, as the visits of one tied weight are; `name` alone if left out. `block` is the
    same for decisions of one block, for methods that decide by block.
    """

    kind: str
    name: str
    options: tuple[Any, ...]
    sites: tuple[str, ...] = ()
    block: str = ""

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise ConfigError(f"{self.kind} of {self.name!r}: {self.options!r}; different options are needed")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What every option of every decision costs, in the order of the decisions.

    With `exact`, a candidate costs exact(c), and sum(c) <= exact(c) <= sum(c) + slack.
    """

    options: tuple[tuple[float, ...], ...]
    fixed: float = 0.0
    over: float = 1.0
    exact: Callable[[Candidate], float] | None = None
    slack: float = 0.0

    def sum(self, candidate: Candidate) -> float:
        """What adds up."""
        return (self.fixed + sum(o[i] for o, i in zip(self.options, candidate, strict=True))) / self.over

    def of(self, candidate: Candidate) -> float:
        return self.sum(candidate) if self.exact is None else self.exact(candidate)

    def within(self, candidate: Candidate, limit: float) -> bool:
        """Whether a candidate costs at most `limit`; the exact cost is asked for only where it decides."""
        low = self.sum(candidate)
        if self.exact is None or not _within(low, limit) or _within(low + self.slack, limit):
            return _within(low, limit)
        return _within(self.exact(candidate), limit)

    @property
    def smallest(self) -> float:
        return self.of(tuple(o.index(min(o)) for o in self.options))

    @property
    def largest(self) -> float:
        return self.of(tuple(o.index(max(o)) for o in self.options))


def file_cost(options: tuple[tuple[int, ...], ...], exact: Callable[[Candidate], float]) -> Cost:
    """The bytes of a file, whose tensors take what `options` say, smallest first, and the rest is header: its
    numbers have as many digits as in a smaller file, or more.
    """
    ends = [tuple(end * (len(sizes) - 1) for sizes in options) for end in (0, 1)]
    sums = [sum(sizes[i] for sizes, i in zip(options, end, strict=True)) for end in ends]
    low, high = (exact(end) - data for end, data in zip(ends, sums, strict=True))
    return Cost(options=options, fixed=low, exact=lru_cache(maxsize=4096)(exact), slack=high - low + 8)


@dataclass(frozen=True, kw_only=True)
class Space:
    """All candidates, and what each costs."""

    decisions: tuple[Decision, ...]
    costs: Mapping[str, Cost]

    def __post_init__(self) -> None:
        if not self.decisions:
            raise ConfigError("nothing to search: the model offers no choice")
        keys = [(d.kind, d.name) for d in self.decisions]
        if len(set(keys)) != len(keys):
            raise ConfigError("two decisions of one kind have one name")
        for name, cost in self.costs.items():
            if tuple(map(len, cost.options)) != self.sizes:
                raise ConfigError(f"cost {name!r} does not name one number for each option of each decision")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many options each decision has."""
        return tuple(len(d.options) for d in self.decisions)

    @property
    def largest(self) -> Candidate:
        return tuple(n - 1 for n in self.sizes)

    @property
    def smallest(self) -> Candidate:
        return tuple(0 for _ in self.sizes)

    def amounts(self, candidate: Candidate) -> dict[str, float]:
        """Every cost of a candidate by name."""
        return {name: cost.of(candidate) for name, cost in self.costs.items()}

    def fits(self, candidate: Candidate, budget: Budget) -> bool:
        return all(self.costs[name].within(candidate, limit) for name, limit in budget.limits)

    def check(self, budget: Budget, smaller: str = "") -> None:
        """Raise if no candidate can meet one of the limits, and say what the smallest possible is, and that
        `smaller` makes its file smaller.
        """
        for name, limit in budget.limits:
            if name not in self.costs:
                raise unknown("cost", name, self.costs, ConfigError)
            least = self.costs[name].smallest
            if not _within(least, limit):
                way = f" at the sizes chosen now; {smaller} before the search makes it smaller"
                raise ConfigError(
                    f"{name}={limit:g} is below the smallest subnet, which has {name}={least:.10g}"
                    f"{way if smaller and name == 'bytes' else ''}"
                )

    def uniform(self) -> list[Candidate]:
        """Every decision at its first option, at its second, ...; a decision with fewer stays at its last."""
        return [tuple(min(level, n - 1) for n in self.sizes) for level in range(max(self.sizes))]

    def nearest_uniform(self, budget: Budget) -> Candidate:
        """The uniform candidate nearest the budget, fitting or not; of two equally near the larger."""
        cost = self.costs[budget.cost]
        return min(reversed(self.uniform()), key=lambda c: abs(cost.of(c) - budget.limit))

    def choices(self, candidate: Candidate) -> dict[str, dict[str, Any]]:
        """The candidate as `choose` takes it: `{"bits": {site: 3, ...}}`."""
        chosen: dict[str, dict[str, Any]] = {}
        for decision, index in zip(self.decisions, candidate, strict=True):
            sites = decision.sites or (decision.name,)
            chosen.setdefault(decision.kind, {}).update(dict.fromkeys(sites, decision.options[index]))
        return chosen

    def candidate(self, choices: Mapping[str, Mapping[str, Any]]) -> Candidate:
        """The candidate of `choices`, which must name every decision."""
        found = []
        for d in self.decisions:
            value = choices.get(d.kind, {}).get(d.name)
            if value not in d.options:
                fit = ", ".join(map(repr, d.options))
                raise ConfigError(f"{d.kind} of {d.name!r} is {value!r}; {fit} fit")
            found.append(d.options.index(value))
        return tuple(found)


def _within(amount: float, limit: float) -> bool:
    return amount <= limit * (1 + 1e-12)  # 2.7 is no binary number, and a sum over a sum may miss it by a bit

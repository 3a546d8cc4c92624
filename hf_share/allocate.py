# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How many atoms and which ranks, for a budget of stored numbers: the least total error.

A *unit* is a group of sites with atoms of its own. An `Option` fixes its number of atoms; what is left of
site i is a residual with squared singular values e_i1 >= e_i2 >= ..., of which rank r leaves the error
e_i,r+1 + ... and costs (in + out) numbers a rank. At a price of p for a number the best ranks are those with
e > p (in + out), the best option follows, and lowering p spends the budget (Lagrange). What remains is spent
rank by rank where a number gains most.

Since the number of atoms comes in steps, the same is also done with every unit held to one number of them,
and the plain answer, no atoms and equal ranks, is always tried: the result is never worse than any of these.
Rank goes where errors fall slowly. The paper's own allocator, which favours q and o, is in an appendix that
is not public; this one is ours. Pure numbers: nothing here knows a model.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import ConfigError


@dataclass(frozen=True, eq=False)
class Option:
    """One number of atoms for a unit: `fixed` stored numbers whatever the ranks, `cost` for one rank of one
    site, the squared singular values of each site's residual, largest first, and the ranks that may be
    chosen. `dense` is what a site costs that is left as it is, 0 where that is no choice.
    """

    atoms: int
    fixed: int
    cost: int
    energies: tuple[Tensor, ...]
    least: int
    most: int
    dense: int = 0

    @cached_property
    def errors(self) -> tuple[Tensor, ...]:
        """For each site the error that rank 0, 1, ... leaves."""
        zero = torch.zeros(1, dtype=torch.float64)
        return tuple(torch.cat([e.double().flip(0).cumsum(0).flip(0), zero]) for e in self.energies)

    def error(self, ranks: Sequence[int | None]) -> float:
        return sum(0.0 if r is None else float(e[r]) for r, e in zip(ranks, self.errors, strict=True))

    def stored(self, ranks: Sequence[int | None]) -> int:
        return self.fixed + sum(self.dense if r is None else r * self.cost for r in ranks)


@dataclass
class Choice:
    """An option of a unit with a rank for each of its sites; None leaves a site dense."""

    option: Option
    ranks: list[int | None]

    @property
    def error(self) -> float:
        return self.option.error(self.ranks)

    @property
    def stored(self) -> int:
        return self.option.stored(self.ranks)


def allocate(units: Sequence[Sequence[Option]], budget: int) -> list[Choice]:
    """A choice for each unit, at most `budget` stored numbers in all, with the least error found.

    Raises:
        ConfigError: if even the smallest choices are more than the budget.
    """
    found = [choices for choices in _candidates(units, budget) if choices and _stored(choices) <= budget]
    if not found:
        least = sum(min(o.stored([o.least] * len(o.energies)) for o in options) for options in units)
        raise ConfigError(f"a budget of {budget:,} numbers is too small; the least that fits is {least:,}")
    return min(found, key=_error)


def _candidates(units: Sequence[Sequence[Option]], budget: int) -> Iterator[list[Choice]]:
    yield _lagrange(units, budget)
    for atoms in sorted({option.atoms for options in units for option in options}):
        held = [[o for o in options if o.atoms == atoms] for options in units]
        if all(held):
            yield _lagrange(held, budget)
            yield _uniform(held, budget)


def _stored(choices: Sequence[Choice]) -> int:
    return sum(choice.stored for choice in choices)


def _error(choices: Sequence[Choice]) -> float:
    return sum(choice.error for choice in choices)


def _uniform(units: Sequence[Sequence[Option]], budget: int) -> list[Choice]:
    """Equal shares of the dense size for all units, equal ranks for the sites of each."""
    options = [options[0] for options in units]
    if not all(option.dense for option in options):
        return []
    whole = sum(option.dense * len(option.energies) for option in options)
    choices = []
    for option in options:
        count = len(option.energies)
        rank = int((budget * option.dense / whole - option.fixed / count) / option.cost)
        choices.append(Choice(option, [max(min(rank, option.most), option.least)] * count))
    return choices


def _lagrange(units: Sequence[Sequence[Option]], budget: int) -> list[Choice]:
    """The cheapest price of a number at which the budget holds, and the rest of it filled in."""
    low, high = 0.0, 1.0 + max(float(e[0]) for options in units for o in options for e in o.energies)
    best = _at(units, high)
    if _stored(best) > budget:
        return []
    for _ in range(64):
        price = (low + high) / 2 if low else high / 16
        choices = _at(units, price)
        if _stored(choices) <= budget:
            best, high = choices, price
        else:
            low = price
    return _fill(best, budget)


def _at(units: Sequence[Sequence[Option]], price: float) -> list[Choice]:
    def paid(choice: Choice) -> float:
        return choice.error + price * choice.stored

    return [min((_ranks(option, price) for option in options), key=paid) for options in units]


def _ranks(option: Option, price: float) -> Choice:
    ranks: list[int | None] = []
    for energies, errors in zip(option.energies, option.errors, strict=True):
        rank = max(min(int((energies > price * option.cost).sum()), option.most), option.least)
        paid = float(errors[rank]) + price * rank * option.cost
        ranks.append(None if option.dense and price * option.dense < paid else rank)
    return Choice(option, ranks)


def _fill(choices: list[Choice], budget: int) -> list[Choice]:
    left = budget - _stored(choices)
    queue: list[tuple[float, int, int]] = []

    def offer(unit: int, site: int) -> None:
        option, rank = choices[unit].option, choices[unit].ranks[site]
        if rank is not None and rank < min(option.most, len(option.energies[site])):
            heapq.heappush(queue, (-float(option.energies[site][rank]) / option.cost, unit, site))

    for unit, choice in enumerate(choices):
        for site in range(len(choice.ranks)):
            offer(unit, site)
    while queue:
        _, unit, site = heapq.heappop(queue)
        cost, rank = choices[unit].option.cost, choices[unit].ranks[site]
        if cost <= left and rank is not None:
            choices[unit].ranks[site] = rank + 1
            left -= cost
            offer(unit, site)
    return choices

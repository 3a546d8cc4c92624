# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What may be chosen: the values that rules offer site by site, and stacks as a whole, and whether what was
asked for is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from numbers import Real
from typing import Any

from . import depths
from .errors import ConfigError, unknown
from .plan import SharePlan
from .rules import Rule, step_rule


LOOPS, DEPTH = "loops", "depth"  # choices of whole stacks
Values = tuple[Any, ...]


@dataclass(frozen=True)
class Offers:
    """Values, smallest first: of each choice at each of its `sites`, and of each choice of whole `stacks`."""

    sites: Mapping[str, Mapping[str, Values]]
    stacks: Mapping[str, Values]

    @cached_property
    def everywhere(self) -> dict[str, Values]:
        """For each choice the values that all its sites, or stacks, offer."""
        return {**{name: reduce(_both, own.values()) for name, own in self.sites.items()}, **self.stacks}

    def read(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`settings`, each value as it is offered: 3 where 3.0 was asked for.

        Raises:
            ConfigError: for a choice, a site or a value that is not offered.
        """
        return {name: self._read(name, value) for name, value in settings.items()}

    def _read(self, name: str, value: Any) -> Any:
        if name not in self.everywhere:
            raise unknown("choice", name, self.everywhere, ConfigError)
        if not isinstance(value, Mapping):
            return _offered(name, value, self.everywhere[name], "; this model has")
        if name in self.stacks:
            raise ConfigError(f"{name} is a choice of a whole stack; give one number")
        return {site: self._read_at(name, site, one) for site, one in value.items()}

    def _read_at(self, name: str, site: str, value: Any) -> Any:
        if site not in self.sites[name]:
            raise unknown(f"site with the choice {name!r}", site, self.sites[name], ConfigError)
        return _offered(name, value, self.sites[name][site], f" at {site!r}, which has")


def offers(rules: Iterable[tuple[str, Rule]], plan: SharePlan | None) -> Offers:
    """What these rules at these sites offer, and the stacks of `plan`."""
    sites: dict[str, dict[str, Values]] = {}
    for site, rule in rules:
        for name, values in rule.choices().items():
            own = sites.setdefault(name, {})
            own[site] = _both(own.get(site, values), values)
    stacks = {} if plan is None else {LOOPS: depths.loops(plan), DEPTH: depths.counts(plan)}
    return Offers(sites, {name: values for name, values in stacks.items() if values})


def offers_of_plan(plan: SharePlan) -> Offers:
    """What a model of this plan offers."""
    rules = ((site, rule) for step in plan.generates for rule in (step_rule(step),) for site in step.sites)
    return offers(rules, plan)


def _both(a: Values, b: Values) -> Values:
    return a if a == b else tuple(value for value in a if value in b)


def _offered(name: str, value: Any, values: Values, where: str) -> Any:
    """The offered value that equals `value`; None is the full size."""
    if value is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool)
    for known in values if number else ():
        if known == value:
            return known
    raise ConfigError(f"{name}={value!r} is not offered{where} {_span(values)}")


def _span(values: Values) -> str:
    return ", ".join(map(repr, values)) if len(values) <= 8 else f"{values[0]!r} to {values[-1]!r}"

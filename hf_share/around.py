# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Rules around another rule: what they hold differently, it makes weights of.

The inner rule stands in the arguments as a plan writes one, `{"rule": "low_rank", "args": {"r": 4}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .errors import PlanError
from .plain import frozen_args
from .rules import RULES, Rule, make_rule
from .sites import Site


@dataclass(frozen=True, kw_only=True)
class Around(Rule):
    """A rule around `inner`, which is not itself around another."""

    inner: Mapping[str, Any]

    def __post_init__(self):
        given = self.inner if isinstance(self.inner, Mapping) else {}
        name = given.get("rule")
        if set(given) - {"rule", "args"} or not isinstance(name, str):
            raise PlanError(f'{self.name}: inner is {self.inner!r:.80}; {{"rule": ..., "args": ...}} fits')
        if issubclass(RULES.get(name, Rule), Around):  # before it is built: nesting could be of any depth
            raise PlanError(f"{self.name}: the inner rule is {name!r}, which is around another itself")
        object.__setattr__(self, "inner", frozen_args(self.inner, f"{self.name}: inner"))
        self.check_inner(self.made)

    def check_inner(self, made: Rule) -> None:
        """Raise `PlanError` unless this rule can be around `made`."""

    @cached_property  # a pass asks for it several times
    def made(self) -> Rule:
        args = self.inner.get("args", {})
        return make_rule(self.inner["rule"], args if isinstance(args, Mapping) else {"args": args})

    def check(self, sites: Sequence[Site]) -> None:
        self.made.check(sites)

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        return self.made.constants(site, sites)

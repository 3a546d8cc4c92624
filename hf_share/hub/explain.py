# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan in sentences: one for each arrangement of layers and for each rule, with its paper. The words are
the methods' own (`about`, `arranges`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..about import About, about_rule
from ..config import METHODS
from ..plan import SharePlan
from ..rules import RULES, step_rule
from ..steps import Arrange, Generate


@dataclass(frozen=True)
class Line:
    """One sentence of the card, and the tag by which the Hub finds models like it."""

    tag: str
    text: str


def explain(plan: SharePlan | None) -> list[Line]:
    """The sentences of `plan`, in the order of its steps; none for a model without a plan."""
    if plan is None:
        return []
    lines = [_arranged(step) for step in plan.arranges]
    told: dict[About, list[Generate]] = {}
    for step in plan.generates:
        told.setdefault(_about(step), []).append(step)
    return lines + [_generated(about, steps) for about, steps in told.items()]


def _arranged(step: Arrange) -> Line:
    source = step.origin or step
    order = [s for s in step.order if s is not None]
    unique = len(set(order))
    about = next(m.arranges[step.pattern] for m in METHODS.values() if step.pattern in m.arranges)
    shown = " ".join("-" if s is None else str(s) for s in source.order)
    where = f"stack `{step.stack}`, {len(order)} depths, {unique} stored, of source layers {shown}"
    return _line(about, where)


def _about(step: Generate) -> About:
    """A card can be written of a plan whose rule is not installed here."""
    return step_rule(step).told() if step.rule in RULES else about_rule(step.rule)


def _generated(about: About, steps: Sequence[Generate]) -> Line:
    sites = sum(len(step.sites) for step in steps)
    numbers = {f"{key} = {value}" for step in steps for key, value in _plain(step.args.items())}
    given = f"; {', '.join(sorted(numbers))}" if len(numbers) <= 6 and numbers else ""
    return _line(about, f"{sites} weights in {len(steps)} groups{given}")


def _plain(items: Iterable[tuple[str, object]]) -> Iterable[tuple[str, object]]:
    return ((key, value) for key, value in items if isinstance(value, (bool, int, float, str)))


def _line(about: About, where: str) -> Line:
    link = f" ([arXiv {about.paper}](https://arxiv.org/abs/{about.paper}))" if about.paper else ""
    return Line(about.tag, f"{about.does}{link}: {where}")

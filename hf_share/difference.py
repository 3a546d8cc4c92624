# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What differs between two plans, step by step.

Steps are the same if they say the same thing of the same place: an arrange step its stack and roles, a
generate step its group, an insert step its kind and sites. A step of one plan alone is a removal or an
addition; of a step in both, the fields that differ are told. This file imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from .plain import thaw
from .plan import SharePlan
from .steps import Arrange, Generate, Step


SIGNS = {"same": " ", "removed": "-", "added": "+", "changed": "~"}
MOST = 6  # sites that are named


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step in two plans: `kind` is `same`, `removed`, `added` or `changed`, `fields` the ones that
    differ as (in the first plan, in the second).
    """

    kind: str
    step: str
    place: str
    fields: dict[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        told = {name: [thaw(one), thaw(two)] for name, (one, two) in self.fields.items()}
        return {"kind": self.kind, "step": self.step, "place": self.place, "fields": told}

    def __str__(self) -> str:
        lines = [f"{SIGNS[self.kind]} {self.step} {self.place}"]
        lines += [f"    {name}: {told}" for name, pair in self.fields.items() for told in _told(*pair)]
        return "\n".join(lines)


def difference(one: SharePlan, two: SharePlan) -> list[Change]:
    """Every step of both plans, in the order of the first, with what differs. Both are read in source form.

    Example:
        >>> one = SharePlan((Arrange(stack="layers", order=(0, 1, 2)),))
        >>> two = SharePlan((Arrange(stack="layers", order=(0, 1, 1)),))
        >>> print(difference(one, two)[0])
        ~ arrange layers
            order: 0 1 2 -> 0 1 1
    """
    ours, theirs = _keyed(one.source()), _keyed(two.source())
    changes = [_compared(step, theirs.get(key)) for key, step in ours.items()]
    return changes + [_alone("added", step) for key, step in theirs.items() if key not in ours]


def _keyed(plan: SharePlan) -> dict[tuple, Step]:
    keyed: dict[tuple, Step] = {}
    for step in plan.steps:
        key = _key(step)
        while key in keyed:
            key = (*key, "again")
        keyed[key] = step
    return keyed


def _key(step: Step) -> tuple:
    if isinstance(step, Arrange):
        return ("arrange", step.stack, step.roles)
    if isinstance(step, Generate):
        return ("generate", step.group)
    return ("insert", step.kind, step.sites)


def _compared(step: Step, other: Step | None) -> Change:
    if other is None:
        return _alone("removed", step)
    told = {
        f.name: (getattr(step, f.name), getattr(other, f.name))
        for f in fields(step)
        if getattr(step, f.name) != getattr(other, f.name)
    }
    return Change(kind="changed" if told else "same", step=step.step, place=_place(step), fields=told)


def _alone(kind: str, step: Step) -> Change:
    return Change(kind=kind, step=step.step, place=_place(step), fields={})


def _place(step: Step) -> str:
    if isinstance(step, Arrange):
        return step.stack if step.roles == "all" else f"{step.stack} {','.join(step.roles)}"
    if isinstance(step, Generate):
        return f"{step.group}: {step.rule} for {len(step.sites)} sites"
    return f"{step.kind} at {len(step.sites)} sites"


def _told(one: Any, two: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in dict.fromkeys((*one, *two)):
            if one.get(key) != two.get(key):
                yield f"{key} {_show(one.get(key))} -> {_show(two.get(key))}"
    elif _are_names(one) and _are_names(two):
        for sign, found in (("-", [n for n in one if n not in two]), ("+", [n for n in two if n not in one])):
            if found:
                more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
                yield f"{sign} {', '.join(found[:MOST])}{more}"
        if set(one) == set(two):
            yield "in another order"
    else:
        yield f"{_show(one)} -> {_show(two)}"


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) for v in value)


def _show(value: Any) -> str:
    if isinstance(value, Arrange):
        return "an arrange step"
    if isinstance(value, tuple):
        return " ".join("-" if v is None else str(v) for v in value) or "none"
    return "none" if value is None else str(value)

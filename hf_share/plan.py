# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan says where every weight of a model comes from, as plain data: names and numbers, no tensors.

    plan = SharePlan((Arrange(stack="layers", order=(0, 1, 1, 4)),))

reads "four depths; depths 1 and 2 use layer 1's weights, stored once; layers 2 and 3 are gone". Steps apply
in order and each addresses the model that the step before left. A plan has two *forms*. The **source form**
is applied to the source model (adapters). The **checkpoint form** is applied to a model whose depth already
counts visits (a saved checkpoint): there `order` names the first visit of each source, `[0, 1, 1, 4]` becomes
`[0, 1, 1, 3]`, and the source step is kept as `origin`. This file imports the standard library only, so a
plan can be read, compared and checked anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

from .errors import PlanError, unknown
from .plain import freeze, thaw
from .steps import STEPS, Arrange, Generate, Insert, Step, build_step, require_known


VERSION = 1
MAX_BYTES = 1 << 20  # ten times what 126 layers need; a larger one carries data that belongs in a tensor
FORMS = ("source", "checkpoint")


def require_size(count: int) -> None:
    """Raise `PlanError` for more bytes of JSON than any plan is read from."""
    if count > MAX_BYTES:
        raise PlanError(f"a plan has at most {MAX_BYTES} bytes of JSON; this one has {count}")


@dataclass(frozen=True)
class SharePlan:
    """An ordered tuple of steps and the form they are in. Equal by value; exact through JSON and back.

    Example:
        >>> plan = SharePlan((Arrange(stack="layers", order=(0, 1, 1, 2)),))
        >>> SharePlan.from_json(plan.to_json()) == plan
        True
    """

    steps: tuple[Step, ...] = ()
    form: str = "source"

    def __post_init__(self):
        freeze(self, "steps")
        for step in self.steps:
            if not isinstance(step, (Arrange, Generate, Insert)):
                raise PlanError(f"a step must be Arrange, Generate or Insert, not {type(step).__name__}")
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)
        self._check_origins()
        self._check_owners()

    def _check_origins(self):
        for step in self.arranges:
            if step.origin is None:
                continue
            if self.form == "source":
                raise PlanError(
                    f"arrange step on stack {step.stack!r} has an origin, which only a checkpoint form keeps"
                )
            if step != _to_checkpoint(step.origin):
                raise PlanError(f"arrange step on stack {step.stack!r} disagrees with its origin")

    def _check_owners(self):
        makes = [isinstance(s, Generate) for s in self.steps if not isinstance(s, Insert)]
        if makes != sorted(makes):
            raise PlanError(
                "every arrange step comes before the generate steps, whose sites are on the arranged model; "
                "put the structural method first"
            )
        groups = [s.group for s in self.generates]
        for group in groups:
            if groups.count(group) > 1:
                raise PlanError(f"two generate steps own the group {group!r}; give each its own name")
        for one, two in combinations(self.arranges, 2):
            if one.stack == two.stack and _overlap(one.roles, two.roles):
                raise PlanError(
                    f"two arrange steps own roles {two.roles!r} of stack {two.stack!r}; merge them into one"
                )

    @property
    def arranges(self) -> tuple[Arrange, ...]:
        return tuple(s for s in self.steps if isinstance(s, Arrange))

    @property
    def generates(self) -> tuple[Generate, ...]:
        return tuple(s for s in self.steps if isinstance(s, Generate))

    @property
    def inserts(self) -> tuple[Insert, ...]:
        return tuple(s for s in self.steps if isinstance(s, Insert))

    @property
    def is_plain(self) -> bool:
        """True if stock code runs the result as it is: the plan only removes whole layers."""
        return all(isinstance(s, Arrange) and (s.origin or s).only_removes for s in self.steps)

    def __add__(self, other: SharePlan) -> SharePlan:
        """The steps of both, in order; but an arrange step on a stack in which no rule works yet comes before
        all rules.
        """
        if self.form != other.form:
            raise PlanError(f"cannot join a plan in {self.form} form with one in {other.form} form")
        made = [site for step in self.generates for site in step.sites]
        free = [s for s in other.arranges if not any(site.startswith(f"{s.stack}.") for site in made)]
        rest = [s for s in other.steps if s not in free]
        cut = next((i for i, s in enumerate(self.steps) if isinstance(s, Generate)), len(self.steps))
        return SharePlan((*self.steps[:cut], *free, *self.steps[cut:], *rest), self.form)

    def checkpoint(self) -> SharePlan:
        """This plan in checkpoint form: depths count visits, `origin` keeps the source step."""
        if self.form == "checkpoint":
            return self
        return SharePlan(tuple(_to_checkpoint(s) for s in self.steps), "checkpoint")

    def source(self) -> SharePlan:
        """This plan in source form, from the origins a checkpoint form keeps."""
        if self.form == "source":
            return self
        steps = tuple(s.origin if isinstance(s, Arrange) and s.origin else s for s in self.steps)
        return SharePlan(steps, "source")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the version of the format."""
        return {"version": VERSION, "form": self.form, "steps": [_step_dict(s) for s in self.steps]}

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent, sort_keys=False)

    @classmethod
    def from_json(cls, text: str) -> SharePlan:
        """Read what `to_json` wrote. Raises `PlanError` for anything else."""
        if not isinstance(text, str):
            raise PlanError(f"a plan must be JSON text, not {type(text).__name__}")
        require_size(len(text))
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"a plan must be JSON: {error}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SharePlan:
        """Read what `to_dict` wrote. Unknown keys, steps and versions are errors that name the nearest
        correct one.
        """
        if isinstance(data, SharePlan):
            return data
        if not isinstance(data, Mapping):
            raise PlanError(f"a plan must be a JSON object, not {type(data).__name__}")
        require_known(data, ("version", "form", "steps"), "plan")
        if data.get("version") != VERSION or isinstance(data["version"], bool):
            raise PlanError(
                f"this plan has version {data.get('version')!r}; this hf_share reads version {VERSION}"
            )
        if not isinstance(data.get("steps"), (list, tuple)):
            raise PlanError("a plan needs a list of steps")
        try:
            size = len(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"a plan must be plain JSON values: {error}") from None
        require_size(size)
        return cls(tuple(_read_step(s) for s in data["steps"]), data.get("form", "source"))

    def validate(self, model) -> None:
        """Raise the error that `attach` would raise for `model`, naming the site; change nothing."""
        from .attach import check

        check(model, self)

    def __repr__(self) -> str:
        lines = [f"SharePlan({self.form} form)"]
        lines += [f"  {_show(s)}" for s in self.steps]
        return "\n".join(lines)


def _to_checkpoint(step: Step) -> Step:
    if not isinstance(step, Arrange):
        return step
    return replace(
        step, order=step.first_visits, merge="first", sources=None, depth=len(step.order), scores=None,
        scored_by=None, origin=step,
    )  # fmt: skip


def _show(step: Step) -> str:
    if isinstance(step, Arrange):
        order = " ".join("-" if s is None else str(s) for s in step.order)
        extra = "" if step.roles == "all" else f" roles={','.join(step.roles)}"
        if step.sources is not None:
            extra += f" of [{' '.join(map(str, step.sources))}]"
        if step.private:
            extra += f" private={','.join(step.private)}"
        if step.merge != "first":
            extra += f" merge={step.merge}"
        if step.loops is not None:
            extra += f" loops={step.loops}"
        if step.drops:
            extra += f" depths={','.join(map(str, step.depths))}"
        if step.layers is not None:
            extra += f" layers={step.layers}"
        if step.scored_by is not None:
            extra += f" scored_by={step.scored_by}"
        return f"Arrange {step.stack}: [{order}]{extra}"
    args = " ".join(f"{k}={v}" for k, v in step.args.items())
    if isinstance(step, Insert):
        return f"Insert {step.kind} at {len(step.sites)} sites {args}".rstrip()
    return f"Generate {step.group}: {step.rule} for {len(step.sites)} sites {args}".rstrip()


def _step_dict(step: Step) -> dict[str, Any]:
    out: dict[str, Any] = {"step": step.step}
    for f in fields(step):
        value = getattr(step, f.name)
        if value == f.default or (f.name == "args" and not value):
            continue
        if isinstance(value, Arrange):
            value = _step_dict(value)
            value.pop("step")
        out[f.name] = thaw(value)
    return out


def _read_step(data: Any) -> Step:
    if not isinstance(data, Mapping):
        raise PlanError(f"a step must be a JSON object, not {type(data).__name__}")
    kind = data.get("step")
    if not isinstance(kind, str) or kind not in STEPS:
        raise unknown("step", kind, STEPS)
    return build_step(STEPS[kind], {k: v for k, v in data.items() if k != "step"}, f"{kind} step")


def _overlap(one: str | tuple[str, ...], two: str | tuple[str, ...]) -> bool:
    if one == "all" or two == "all":
        return True
    inside = [(a, b) for a in one for b in two]
    return any(a == b or a.startswith(b + ".") or b.startswith(a + ".") for a, b in inside)

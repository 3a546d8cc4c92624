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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any, ClassVar

from .errors import PlanError, unknown
from .plain import freeze, frozen_args, require_count, require_name, require_sites, thaw


VERSION = 1
MAX_BYTES = 65536  # a plan for a 7B shape fits; a larger one carries data that belongs in a tensor
MAX_VISITS = 2048
MERGES = ("first", "mean")
FORMS = ("source", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Arrange:
    """Which source layer stands at each depth: a repeated source is stored once, a missing one is gone.

    Args:
        stack: path of the layer list, relative to the backbone (`layers`, `h`, `encoder.block`).
        order: a source layer for each depth. With `roles` narrowed to a sub-layer, `None` removes it there.
        roles: `"all"`, or paths inside a layer (`("self_attn",)`): only these are arranged.
        private: roles that stay per depth although the rest is shared (norms).
        merge: how the layers that meet in one source become one weight: `"first"` or `"mean"`.
        sources: the layer each depth stands for in the source model. Private roles are taken from it, and
            `merge` draws on it: with order `(0, 0)` and sources `(0, 1)`, depth 1 has layer 0's weights and
            layer 1's norms.
        depth: number of layers the step expects to find, so that a plan for another model is refused.
        origin: in checkpoint form, the source-form step this one came from.
    """

    step: ClassVar[str] = "arrange"
    stack: str
    order: tuple[int | None, ...]
    roles: str | tuple[str, ...] = "all"
    private: tuple[str, ...] = ()
    merge: str = "first"
    sources: tuple[int, ...] | None = None
    depth: int | None = None
    origin: Arrange | None = None

    def __post_init__(self):
        require_name(self.stack, "arrange step: stack")
        where = f"arrange step on stack {self.stack!r}"
        freeze(self, "order", "private")
        if self.roles != "all":
            freeze(self, "roles")
        if self.sources is not None:
            freeze(self, "sources")
        self._read_origin(where)
        if not self.order or len(self.order) > MAX_VISITS:
            raise PlanError(f"{where}: order has {len(self.order)} depths; 1 to {MAX_VISITS} fit")
        for source in self.order:
            if source is None and self.roles != "all":
                continue
            require_count(source, f"{where}: order", least=0)
        if not self.roles:
            raise PlanError(f"{where}: roles is empty; give 'all' or a list of paths inside a layer")
        for role in (*(() if self.roles == "all" else self.roles), *self.private):
            require_name(role, f"{where}: role")
        if self.merge not in MERGES:
            raise unknown("merge", self.merge, MERGES)
        if self.sources is not None:
            if len(self.sources) != len(self.order):
                raise PlanError(f"{where}: {len(self.sources)} sources for {len(self.order)} depths")
            for source in self.sources:
                require_count(source, f"{where}: sources", least=0)
        if self.depth is not None:
            require_count(self.depth, f"{where}: depth", least=1)
            last = max((s for s in (*self.order, *(self.sources or ())) if s is not None), default=0)
            if last >= self.depth:
                raise PlanError(
                    f"{where}: order names layer {last}, but the stack has layers 0 to {self.depth - 1}"
                )
        if self.merge == "mean":
            self._check_mean(where)

    def _read_origin(self, where: str):
        if self.origin is None:
            return
        if isinstance(self.origin, Mapping):
            if self.origin.get("origin") is not None:  # before it is built: nesting could be of any depth
                raise PlanError(f"{where}: an origin has no origin of its own")
            object.__setattr__(self, "origin", _build(Arrange, self.origin, "origin of an arrange step"))
        if not isinstance(self.origin, Arrange) or self.origin.origin is not None:
            raise PlanError(f"{where}: origin must be one arrange step in source form")

    def _check_mean(self, where: str):
        owner: dict[int, int] = {}
        for source, layers in self.groups().items():
            if source not in layers:
                raise PlanError(f"{where}: merge 'mean' into layer {source}, which is not among {layers}")
            for layer in layers:
                if owner.setdefault(layer, source) != source:
                    raise PlanError(
                        f"{where}: merge 'mean' takes layer {layer} into layer {owner[layer]} and {source}"
                    )

    @property
    def members(self) -> tuple[int | None, ...]:
        """The layer each depth stands for: `sources`, or `order` where none are given."""
        return self.order if self.sources is None else self.sources

    @property
    def first_visits(self) -> tuple[int | None, ...]:
        """For each depth the first depth with the same source: `(0, 1, 1, 4)` gives `(0, 1, 1, 3)`."""
        seen: dict[int, int] = {}
        return tuple(None if s is None else seen.setdefault(s, d) for d, s in enumerate(self.order))

    @property
    def only_removes(self) -> bool:
        """True if each depth keeps a layer of its own, so that the result is a plain, shallower model."""
        return self.roles == "all" and len(set(self.order)) == len(self.order) and self.members == self.order

    def groups(self) -> dict[int, tuple[int, ...]]:
        """Source layer -> the layers that meet in it, in the order of their depths."""
        met: dict[int, list[int]] = {}
        for source, member in zip(self.order, self.members, strict=True):
            if source is not None and member is not None:
                met.setdefault(source, []).append(member)
        return {source: tuple(dict.fromkeys(layers)) for source, layers in met.items()}


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A rule makes the weights of `sites` from a store their `group` shares, plus small private numbers.

    Args:
        rule: name of a registered rule (`low_rank`).
        sites: paths of weights relative to the backbone; a part of a fused weight is `path:part`
            (`h.0.attn.c_attn:q`).
        group: name of the store, unique in the model.
        args: the rule's arguments, plain values.
    """

    step: ClassVar[str] = "generate"
    rule: str
    sites: tuple[str, ...]
    group: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_name(self.rule, "generate step: rule")
        require_name(self.group, "generate step: group")
        freeze(self, "sites")
        object.__setattr__(self, "args", frozen_args(self.args, f"generate step {self.group!r}: args"))
        if "." in self.group or self.group.startswith("hf_share"):
            raise PlanError(
                f"generate step: group {self.group!r} must have no dot and not begin with 'hf_share'"
            )
        require_sites(self.sites, f"generate step {self.group!r}")


@dataclass(frozen=True, kw_only=True)
class Insert:
    """A small registered module (a gate, an output norm) at each of `sites`: layers or sub-layers."""

    step: ClassVar[str] = "insert"
    kind: str
    sites: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_name(self.kind, "insert step: kind")
        freeze(self, "sites")
        object.__setattr__(self, "args", frozen_args(self.args, f"insert step {self.kind!r}: args"))
        require_sites(self.sites, f"insert step {self.kind!r}")


Step = Arrange | Generate | Insert
STEPS: dict[str, type] = {cls.step: cls for cls in (Arrange, Generate, Insert)}


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
        if self.form != other.form:
            raise PlanError(f"cannot join a plan in {self.form} form with one in {other.form} form")
        return SharePlan(self.steps + other.steps, self.form)

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
        if len(text) > MAX_BYTES:
            raise PlanError(f"a plan has at most {MAX_BYTES} bytes of JSON; this one has {len(text)}")
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
        _known(data, ("version", "form", "steps"), "plan")
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
        if size > MAX_BYTES:
            raise PlanError(f"a plan has at most {MAX_BYTES} bytes of JSON; this one has {size}")
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
        step, order=step.first_visits, merge="first", sources=None, depth=len(step.order), origin=step
    )


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
    return _build(STEPS[kind], {k: v for k, v in data.items() if k != "step"}, f"{kind} step")


def _build(cls: type, data: Mapping[str, Any], where: str) -> Any:
    _known(data, [f.name for f in fields(cls)], where)
    try:
        return cls(**data)
    except TypeError as error:
        raise PlanError(f"{where}: {error}") from None


def _known(data: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for key in data:
        if key not in names:
            raise unknown(f"key of the {where}", key, names)


def _overlap(one: str | tuple[str, ...], two: str | tuple[str, ...]) -> bool:
    if one == "all" or two == "all":
        return True
    inside = [(a, b) for a in one for b in two]
    return any(a == b or a.startswith(b + ".") or b.startswith(a + ".") for a, b in inside)

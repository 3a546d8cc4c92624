# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a shared model stores, uses and saves: as text, as a dict, as a picture of depth x role.

*Stored* counts every tensor once; *used* counts it at every place that uses it, which is what a plain model
of the same function has to store. For a weight that a rule makes, used is the dense weight's size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from .binding import Binding
from .errors import PlanError
from .filesize import data_bytes, tensors_of
from .hub.layer import ShareLayer
from .modules import bound
from .plan import SharePlan
from .rules import step_rule
from .sites import STORES, backbone, stacks, tensors
from .steps import Arrange, Generate
from .ties import attached


@dataclass(frozen=True)
class Group:
    """One set of weights that is stored once: where it is used, and what that saves (in parameters)."""

    name: str
    places: tuple[str, ...]
    stored: int
    used: int

    @property
    def visits(self) -> int:
        return len(self.places)

    @property
    def saved(self) -> int:
        return self.used - self.stored


@dataclass(frozen=True)
class Description:
    """Counts of a model: parameters stored, parameters used, bytes of its file, and the groups that share."""

    model: str
    stored: int
    used: int
    bytes: int
    plan: SharePlan | None
    groups: tuple[Group, ...] = ()
    grids: dict[str, tuple[tuple[str, ...], list[list[int | None]]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        out = asdict(self)
        out.pop("grids")
        out["plan"] = None if self.plan is None else self.plan.to_dict()
        out["groups"] = [asdict(g) | {"visits": g.visits, "saved": g.saved} for g in self.groups]
        return out

    def __str__(self) -> str:
        ratio = self.stored / self.used if self.used else 1.0
        lines = [
            f"{self.model}: {self.stored:,} parameters stored, {self.used:,} used "
            f"({ratio:.3f} stored / used), {readable(self.bytes)}"
        ]
        if self.groups:
            width = max(len("group"), *(len(g.name) for g in self.groups))
            lines.append(f"  {'group':<{width}}  {'stored once':>14}  {'visited':>7}  {'saved':>14}")
            for g in self.groups:
                lines.append(f"  {g.name:<{width}}  {g.stored:>14,}  {g.visits:>7}  {g.saved:>14,}")
        else:
            lines.append("  nothing is shared")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike) -> None:
        """Draw the grid of each stack, depth x role; cells of one colour in a row are one stored weight."""
        from .plots import plot_grids

        plot_grids(self, path)


def describe(model: nn.Module | SharePlan) -> Description | str:
    """What `model` stores, uses and saves; `print` it, take its `to_dict()`, or `plot` it. A plan gives its
    text.

    Example:
        >>> print(hf_share.describe(model))  # doctest: +SKIP
        LlamaForCausalLM: 4,200,000 parameters stored, 6,900,000 used (0.609 stored / used), 16.8 MB
    """
    if isinstance(model, SharePlan):
        return repr(model)
    if not isinstance(model, nn.Module):
        raise PlanError(f"describe takes a model or a plan, not a {type(model).__name__}")
    record = attached(model)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    groups = [] if record is None else [g for step in record.plan.steps for g in _groups(plain, step)]
    groups += _adapters(plain)
    unique = {id(p): p for p in model.parameters()}.values()
    frozen = {s.group for s in record.plan.generates if step_rule(s).frozen} if record else set()
    stored = sum(count(p) for p in unique) + sum(g.stored for g in groups if g.name in frozen)
    return Description(
        model=type(plain).__name__,
        stored=stored,
        used=stored + sum(g.saved for g in groups),
        bytes=sum(data_bytes(tensor) for tensor in tensors_of(plain).values()),
        plan=None if record is None else record.plan,
        groups=tuple(groups),
        grids=_grids(plain, record.plan.arranges if record else ()),
    )


def _groups(model: nn.Module, step: Any) -> Iterable[Group]:
    if isinstance(step, Arrange):
        yield from _arranged(model, step)
    elif isinstance(step, Generate):
        yield _generated(model, step)


def _arranged(model: nn.Module, step: Arrange) -> Iterable[Group]:
    layers = stacks(model)[step.stack].layers
    visits: dict[int, list[int]] = {}
    for depth, first in enumerate(step.order):
        if first is not None:
            visits.setdefault(first, []).append(depth)
    for first, depths in visits.items():
        if len(depths) < 2:
            continue
        mine, theirs = dict(tensors(layers[first])), [dict(tensors(layers[d])) for d in depths[1:]]
        shared = [t for n, t in mine.items() if any(o.get(n) is t for o in theirs)]
        once = sum(count(t) for t in shared)
        roles = "" if step.roles == "all" else f" {','.join(step.roles)}"
        yield Group(
            name=f"{step.stack}{roles} {' '.join(map(str, depths))}",
            places=tuple(f"{step.stack}.{d}" for d in depths),
            stored=once,
            used=once * len(depths),
        )


def _generated(model: nn.Module, step: Generate) -> Group:
    base, rule = backbone(model), step_rule(step)
    store, places = getattr(base, STORES, {}), bound(base, step)
    once = sum(p.numel() for p in store[step.group].parameters()) if step.group in store else 0
    own = [sum(getattr(share, name).numel() for name in b.names.values()) for share, b in places]
    if rule.frozen:  # codes, each for a number
        once, own = rule.numbers([b.site for _, b in places])
    made = [b.site.in_features * b.site.out_features for _, b in places]
    used = sum(made) if rule.kind == "replace" else sum(own) + once * len(own)
    return Group(name=step.group, places=step.sites, stored=once + sum(own), used=used)


def _adapters(model: nn.Module) -> Iterable[Group]:
    """What peft's adapters of ours share: a group for every adapter and group of its plan."""
    held: dict[tuple[str, str], list[tuple[ShareLayer, Binding]]] = {}
    for layer in model.modules():
        for adapter, bindings in layer.bindings.items() if isinstance(layer, ShareLayer) else ():
            for binding in bindings:
                held.setdefault((adapter, binding.group), []).append((layer, binding))
    for (adapter, group), held_by in sorted(held.items(), key=lambda item: item[0][0]):
        store = held_by[0][1].store
        once = 0 if store is None else sum(t.numel() for t in store(adapter).values())
        own = [sum(layer.get_tensor(n, adapter).numel() for n in b.names.values()) for layer, b in held_by]
        yield Group(
            name=f"{adapter}: {group}",
            places=tuple(b.site.name for _, b in held_by),
            stored=once + sum(own),
            used=once * len(held_by) + sum(own),  # of a weight that is made, too: the base keeps its own
        )


def count(parameter: Tensor) -> int:
    """How many numbers `parameter` stands for: 4-bit ones are packed, two to a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _grids(
    model: nn.Module, steps: tuple[Arrange, ...]
) -> dict[str, tuple[tuple[str, ...], list[list[int | None]]]]:
    """For each stack (names of tensors, one row a tensor: the depth that stores it, or None where it is
    absent).
    """
    out = {}
    for path, stack in stacks(model).items():
        names = tuple(dict.fromkeys(n for s in stack.signatures for n in s))
        first: dict[int, int] = {}
        rows = [[None] * stack.depth for _ in names]
        for depth, layer in enumerate(stack.layers):
            for name, tensor in tensors(layer):
                rows[names.index(name)][depth] = first.setdefault(id(tensor), depth)
        out[path] = (names, rows)
    return out


def readable(count: int) -> str:
    """A count of bytes with its unit."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.1f} {unit}" if unit != "B" else f"{int(value)} B"
        value /= 1000
    return f"{value:.1f} GB"

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Sub-layers of fewer lanes, in earnest: rows of the feeds and columns of the weight that are gone.

Lanes are sorted, so what stays is a prefix, of weights as they are and of every tensor that a rule makes them
of (`Rule.prefixes`). The file of a smaller model is then the first part of each tensor of the larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .binding import Binding
from .errors import PlanError, Refused
from .lanes import Lanes
from .modules import Share, SharedLinear
from .plan import SharePlan
from .rules import site_rules, step_rule
from .sites import Site, backbone, find_site, resolve, sites, weight_kind
from .steps import Arrange
from .visits import first_visit


Cuts = dict[str, dict[str, int]]


def cuts(plan: SharePlan, before: SharePlan | None = None) -> Cuts:
    """Site -> the lanes of its `in` or `out` features that are left, and of how many, for each site that
    `plan` cuts: `{"layers.0.mlp.down_proj": {"in": 86, "in_lanes": 172}, ...}`. With `before`, those that
    this plan had not cut yet.
    """
    done = set() if before is None else {s.group for s in before.generates if s.args.get("cut")}
    found: Cuts = {}
    for step in plan.generates:
        rule = step_rule(step)
        if not isinstance(rule, Lanes) or not rule.cut or step.group in done:
            continue
        for name, own in zip(step.sites, site_rules(step), strict=True):
            at: Any = own
            for site, cut in cut_at(at, name, at.active_lanes, at.lanes).items():
                found.setdefault(site, {}).update(cut)
    return found


def cut_at(rule: Lanes, name: str, lanes: int, of: int) -> Cuts:
    """The cuts that leave `lanes` of the lanes of one sub-layer, which ends in the site `name`."""
    feeds = {feed: {"out": lanes, "out_lanes": of} for feed in rule.fed_by(name)}
    return {name: {"in": lanes, "in_lanes": of}, **feeds}


def narrow(site: Site, cut: Mapping[str, int]) -> Site:
    """`site` after the cut."""
    sizes = {}
    for side, field in (("in", "in_features"), ("out", "out_features")):
        if side in cut:
            whole, lanes = getattr(site, field), cut[f"{side}_lanes"]
            if whole % lanes:
                raise PlanError(f"site {site.name!r} has {whole} {field}, not {lanes} lanes")
            sizes[field] = whole // lanes * cut[side]
    return replace(site, **sizes)


def narrowed_index(
    index: dict[str, Site], gone: Cuts, arranges: Sequence[Arrange] = ()
) -> dict[str, Site]:
    """The sites of `index` after the cuts. `arranges` say which sites are visits of one weight.

    Raises:
        PlanError: if visits of one weight would keep different lanes of it.
        Refused: for lanes that a fused weight feeds: the model's code splits its output at fixed places.
    """
    out = dict(index)
    met: dict[str, Site] = {}
    for site in index.values() if gone else ():
        other = met.setdefault(first_visit(site, arranges), site)
        if site.part is None and gone.get(site.name) != gone.get(other.name):
            raise PlanError(
                f"site {site.name!r} has the same weight as {other.name!r}, and would keep other lanes of it"
            )
    for name, cut in gone.items():
        site = find_site(index, name)
        if site.part is not None:
            raise Refused(
                f"site {name!r} is a part of a weight, which the code of the model splits by its config: its "
                "lanes can be left out (`choose`), but not cut off"
            )
        out[name] = narrow(site, cut)
    return out


def cut_modules(model: nn.Module, gone: Cuts, index: Mapping[str, Site]) -> None:
    """Make the modules of `model` as narrow as the sites of `index`. Works on the meta device."""
    base = backbone(model)
    for name in gone:
        narrow_module(resolve(base, name), index[name])


@torch.no_grad()
def narrow_module(module: Any, site: Site) -> None:
    """Leave of a module's own tensors what `site` has features for."""
    rows, columns = site.out_features, site.in_features
    if isinstance(module, SharedLinear):
        module.in_features, module.out_features = columns, rows
    else:
        conv1d = weight_kind(module) == "conv1d"
        shape = (columns, rows) if conv1d else (rows, columns)
        module.weight = _first(module.weight, shape)
        sizes = {"nx": columns, "nf": rows} if conv1d else {"in_features": columns, "out_features": rows}
        for field, size in sizes.items():
            setattr(module, field, size)
    if module.bias is not None:
        module.bias = _first(module.bias, (rows,))


def _first(value: nn.Parameter, shape: tuple[int, ...]) -> nn.Parameter:
    if tuple(value.shape) == shape:
        return value
    return nn.Parameter(prefix_of(value.detach(), shape), requires_grad=value.requires_grad)


def prefix_of(value: Tensor, shape: Iterable[int]) -> Tensor:
    """The first part of `value` in every dimension, as a tensor of its own."""
    return value[tuple(slice(0, n) for n in shape)].clone()


def require_prefixes(plan: SharePlan, gone: Cuts) -> None:
    """Raise where the tensors of a rule of `plan` cannot be narrowed by leaving out their ends."""
    for step in plan.generates:
        hit = next((name for name in step.sites if name.partition(":")[0] in gone), None)
        if hit is not None and not step_rule(step).prefixes:
            raise Refused(
                f"site {hit!r}: the tensors of rule {step.rule!r} are not those of a larger weight cut "
                "short, so its lanes can be left out (`choose`), but not cut off"
            )


@torch.no_grad()
def cut_rules(model: nn.Module, plan: SharePlan, before: SharePlan) -> None:
    """Narrow, in place, a model whose rules are bound: its modules and the tensors of its rules, from the
    plan `before`, which it has, to `plan`.

    Raises:
        Refused: if a rule's tensors cannot be narrowed; nothing is changed then.
        PlanError: if what sites share would have to differ; nothing is changed then.
    """
    gone = cuts(plan, before)
    require_prefixes(plan, gone)
    index = narrowed_index({s.name: s for s in sites(model, parts=True)}, gone, plan.arranges)
    shares = [m for m in backbone(model).modules() if isinstance(m, Share)]
    groups: dict[str, list[Binding]] = {}
    for share in shares:
        for binding in share.bindings:
            groups.setdefault(binding.group, []).append(binding)
    for bound in (g for g in groups.values() if not isinstance(g[0].rule, Lanes)):
        bound[0].rule.check([index[binding.site.name] for binding in bound])
    cut_modules(model, gone, index)
    for share in shares:
        for binding in share.bindings:
            _narrow_binding(share, binding, index[binding.site.name])
    for bound in groups.values():
        for store in {id(b.store): b.store for b in bound if b.store is not None}.values():
            for name, shape in bound[0].rule.shared([b.site for b in bound]).items():
                _shorten(store, name, shape)


def _narrow_binding(share: Share, binding: Binding, site: Site) -> None:
    if site == binding.site:
        return
    for tensor, shape in binding.rule.private(site).items():
        _shorten(share, binding.names[tensor], shape)
    binding.site = site
    binding.constants = binding.rule.constants(site, [site])
    binding.forget()


def _shorten(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    value = getattr(module, name)
    if isinstance(value, nn.Parameter):
        setattr(module, name, _first(value, shape))
    else:
        setattr(module, name, prefix_of(value, shape))

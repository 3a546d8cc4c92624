# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""From a plan to structure: `check` says whether it fits, `attach` builds it. No values are read, so it works
on meta.

`attach` has two halves, because a quantised checkpoint replaces modules between them: `arrange` puts layers
in place and makes the config count visits; `bind` aliases the tied tensors, creates the stores and binds the
rules. In checkpoint form the layers are already there and `arrange` only checks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from . import arrange as _arrange
from . import depths, visits
from .cut import cut_modules, cuts, narrowed_index
from .errors import PlanError, Refused, SiteError, unknown
from .lanes import Lanes
from .modules import Share, SharedLinear, Store, add_share, limit_inputs
from .plan import SharePlan, require_size
from .rules import Rule, site_rules, step_rule
from .sites import STORES, Site, backbone, find_site, prefix, resolve, sites, store_groups
from .steps import Generate
from .ties import GUARD, Attached, attached, declare, guards, rebind


ALLOWED_GROWTH = (
    4  # a plan may add this many times the model's own parameters; more is refused before it is allocated
)


def check(model: nn.Module, plan: SharePlan) -> None:
    """Raise the error `attach(model, plan)` would raise; change nothing, allocate nothing."""
    require_size(len(plan.to_json()))  # its file could not be read again
    record = attached(model)
    if record:
        _ = record.plan + plan.checkpoint()  # raises where a step of each owns the same weight
    for step in plan.arranges:
        _arrange.check(model, step, plan.form)
    if plan.inserts:
        raise unknown("kind of insert", plan.inserts[0].kind, ())
    _check_generates(model, plan)


def attach(model: nn.Module, plan: SharePlan) -> nn.Module:
    """Build the structure `plan` describes into `model`, in place, and return it.

    Sets no values: tensors that rules add are empty, and tied weights are those of the first layer that meets
    in them. Call `fit` for values, or load a state dict. Raises a `ShareError` and leaves the model as it was
    if the plan does not fit. Works on the meta device.
    """
    check(model, plan)
    arrange(model, plan)
    return bind(model, plan.checkpoint())


def arrange(model: nn.Module, plan: SharePlan) -> None:
    """First half of `attach`: layers, zero sub-layers, config, and sub-layers of fewer lanes."""
    if plan.form == "source":
        _arrange.apply(model, plan.arranges)
    for step in plan.checkpoint().arranges:
        _arrange.remove_sublayers(model, step)
    gone = cuts(plan)
    if gone:
        cut_modules(model, gone, narrowed_index({s.name: s for s in sites(model, parts=True)}, gone))


def bind(model: nn.Module, plan: SharePlan) -> nn.Module:
    """Second half of `attach`: ties, stores, rules, and their declaration. `plan` is in checkpoint form."""
    before = attached(model)
    ties = dict(before.ties) if before else {}
    dot = prefix(model)
    for step in plan.arranges:
        ties.update({dot + t: dot + s for t, s in visits.ties(model, step).items()})
    for step in plan.generates:
        _bind_generate(model, step)
        if step_rule(step).kind == "replace":
            gone = {f"{dot}{name}.weight" for name in step.sites}
            ties = {target: source for target, source in ties.items() if target not in gone}
    whole = before.plan + plan if before else plan
    record = Attached(whole, ties, guards(model, whole))
    rebind(model, record.ties)
    declare(model, record)
    depths.activate(model, plan)
    return model


def _stores(model: nn.Module) -> nn.ModuleDict:
    base = backbone(model)
    if not hasattr(base, STORES):
        setattr(base, STORES, nn.ModuleDict())
    return getattr(base, STORES)


def step_sites(index: dict[str, Site], step: Generate) -> list[Site]:
    """The sites a step names, in its order."""
    return [find_site(index, name) for name in step.sites]


def _check_generates(model: nn.Module, plan: SharePlan) -> None:
    if not plan.generates:
        return
    record = attached(model)
    arranges = (*(record.plan.arranges if record else ()), *plan.arranges)
    index = narrowed_index(_visited_sites(model, plan), cuts(plan), arranges)
    taken = store_groups(model)
    made = _made(model)
    added = 0
    for step in plan.generates:
        rule = step_rule(step)
        found = step_sites(index, step)
        if step.group in taken or step.group == GUARD:
            raise PlanError(f"the model already has a group {step.group!r}; choose another name")
        for site in found:
            _check_site(rule, step, site, made)
        if rule.kind == "replace":
            _check_visits(model, plan, step, found, index)
        if not isinstance(rule, Lanes) or not rule.cut:  # cut lanes are checked, and gone
            rule.check(found)
        for name in rule.fed_by(step.sites[0]) if isinstance(rule, Lanes) else ():
            find_site(index, name)
        site_rules(step)  # raises where a choice does not fit its site
        added += _size(rule.shared(found).values()) + sum(_size(rule.private(s).values()) for s in found)
    own = sum(p.numel() for p in model.parameters())
    if added > ALLOWED_GROWTH * max(own, 1_000_000):
        raise PlanError(
            f"the plan adds {added:,} parameters to a model of {own:,}; that is refused before anything is "
            "allocated"
        )


TURNS = ("limit", "replace", "map", "add")  # what a weight sees is limited, then it is made, mapped, added to


@dataclass(frozen=True)
class Made:
    """What a rule makes at one site: its kind, the site, and the group."""

    kind: str
    site: str
    group: str


def _made(model: nn.Module) -> dict[str, list[Made]]:
    """Module -> what the rules that `model` has already make there."""
    record = attached(model)
    found: dict[str, list[Made]] = {}
    for step in record.plan.generates if record else ():
        kind = step_rule(step).kind
        for name in step.sites:
            found.setdefault(name.partition(":")[0], []).append(Made(kind, name, step.group))
    return found


def _check_visits(
    model: nn.Module, plan: SharePlan, step: Generate, found: list[Site], index: dict[str, Site]
) -> None:
    """A tied weight is replaced at all its visits, or the others would keep the old one."""
    record = attached(model)
    arranges = (*(record.plan.arranges if record else ()), *plan.arranges)
    replaced = {visits.first_visit(site, arranges): site for site in found}
    for site in index.values():
        first = visits.first_visit(site, arranges)
        if site.part is None and first in replaced and site.name not in step.sites:
            raise PlanError(
                f"site {site.name!r} has the same weight as {replaced[first].name!r}, which group "
                f"{step.group!r} replaces; a rule replaces a weight at all visits or none"
            )


def _check_site(rule: Rule, step: Generate, site: Site, made: dict[str, list[Made]]) -> None:
    if site.kind == "expert":
        raise Refused(
            f"site {site.name!r} holds expert tensors (three-dimensional); rule {rule.name!r} cannot make "
            "them yet. Leave experts out of the sites; an Arrange step may tie them"
        )
    if site.kind == "read" and rule.kind != "replace":
        raise Refused(
            f"site {site.name!r}: the layer reads this weight without calling its module, so rule "
            f"{rule.name!r} could change nothing. Leave it out of the sites"
        )
    if rule.kind == "replace" and site.part is not None:
        raise Refused(f"rule {rule.name!r} replaces a whole weight; {site.name!r} is a part of one")
    before = made.setdefault(site.module, [])
    if rule.rewrites and any(other.kind == "replace" for other in before):
        raise Refused(f"site {site.name!r}: rule {rule.name!r} cannot set a weight that another rule makes")
    for other in before:
        _check_order(rule.kind, step.group, site, other)
    before.append(Made(rule.kind, site.name, step.group))


def _check_order(kind: str, group: str, site: Site, other: Made) -> None:
    """What a weight sees is limited once, then it is made once, then mapped once, then added to."""
    one_part = site.part is None or other.site in (site.name, site.module)
    if kind == other.kind == "replace":
        raise PlanError(f"site {site.name!r} is replaced by two groups, {other.group!r} and {group!r}")
    if kind == other.kind == "map" and one_part:
        raise PlanError(f"site {site.name!r} is mapped by two groups, {other.group!r} and {group!r}")
    if kind == other.kind == "limit":
        raise PlanError(f"site {site.name!r} is limited by two groups, {other.group!r} and {group!r}")
    if TURNS.index(kind) < TURNS.index(other.kind):
        verb = {"add": "adds to", "map": "maps", "replace": "replaces"}[other.kind]
        raise PlanError(
            f"site {site.name!r}: group {group!r} would {kind} the weight that group {other.group!r} {verb}; "
            f"{kind} it first"
        )


def _size(shapes: Iterable[Sequence[int]]) -> int:
    total = 0
    for shape in shapes:
        count = 1
        for n in shape:
            count *= n
        total += count
    return total


def _visited_sites(model: nn.Module, plan: SharePlan) -> dict[str, Site]:
    """Sites by name as they will be once the plan's arrange steps are applied: depths count visits."""
    index = {s.name: s for s in sites(model, parts=True)}
    for step in plan.arranges if plan.form == "source" else ():
        index = visits.visited(index, step)
    return index


def _bind_generate(model: nn.Module, step: Generate) -> None:
    rule = step_rule(step)
    found = step_sites({s.name: s for s in sites(model, parts=True)}, step)
    base = backbone(model)
    device, dtype = _placement(base, resolve(base, found[0].module))
    store = None
    if rule.shared(found):
        store = _stores(model)[step.group] = Store.of(rule, found, device=device, dtype=dtype)
    for site, own in zip(found, site_rules(step), strict=True):
        module = resolve(base, site.module)
        device, dtype = _placement(base, module)
        share, constants = _share_of(base, site, module, rule), own.constants(site, found)
        share.bind(own, site, step.group, store, constants, device=device, dtype=dtype)
        if rule.kind == "limit":
            module.register_forward_pre_hook(limit_inputs)


def _placement(base: nn.Module, module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the rules of a module go, and what in. What a quantised module says it computes in is not what
    its inputs are in: those are the model's.
    """
    tensor = next((p for p in (*module.parameters(), *module.buffers())), torch.empty(0))
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), tensor)
    if tensor.dtype.is_floating_point:
        return tensor.device, tensor.dtype
    dtype = module.compute_dtype if isinstance(module, SharedLinear) else getattr(base, "dtype", None)
    return tensor.device, dtype or torch.get_default_dtype()


def _share_of(base: nn.Module, site: Site, module: nn.Module, rule: Rule) -> Share:
    share = module._modules.get("share")
    if rule.kind == "replace":
        bias, dtype = getattr(module, "bias", None), _placement(base, module)[1]
        new = SharedLinear(site.in_features, site.out_features, bias, type(module), dtype)
        new.train(module.training)
        if isinstance(share, Share):  # what it sees is limited
            new.share = share
            new.register_forward_pre_hook(limit_inputs)
        path, _, leaf = site.module.rpartition(".")
        setattr(resolve(base, path), leaf, new)
        return new.share
    if isinstance(share, Share):
        return share
    if share is not None:
        raise SiteError(f"site {site.name!r}: {type(module).__name__} already has a child called 'share'")
    module.share = Share()
    module.share.train(module.training)
    module.register_forward_hook(add_share)
    return module.share

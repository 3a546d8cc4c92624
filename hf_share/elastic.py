# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Nested choices: a model may work at several sizes, and `choose` sets one in place.

The choice of a low-rank rule is its `rank`: the first k rows of A and columns of B. The choice of a nested
weight is its `bits`: the first planes of its code. The choice of a feed-forward block is its `ffn`, the share
of its neurons that work, and that of an attention its `kv_groups`. The choice of a stack whose layers come
round several times is its `loops`, the first k visits of each layer, and that of one whose layers are ranked
its `depth`. Ranks, bits and sizes of sub-layers may differ from site to site. The active choice stands in the
plan, so it is saved and a reload has it. Switching copies and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from . import depths
from .binding import Binding
from .errors import ConfigError, Refused
from .offers import Offers, offers
from .plan import SharePlan
from .registry import find, subnets
from .rules import site_rules, step_rule, with_choices
from .steps import Generate
from .ties import attached, change_plan


def choices(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What `choose` may set on `model`: name -> values that every rule, or every stack, with this choice
    offers, smallest first.
    """
    return dict(_offers(model).everywhere)


def _offers(model: nn.Module) -> Offers:
    record = attached(model)
    rules = ((binding.site.name, binding.rule) for binding in bindings(model))
    return offers(rules, None if record is None else record.plan)


def choose(
    model: nn.Module, *, name: str | None = None, budget: str | None = None, **settings: Any
) -> nn.Module:
    """Set a nested choice wherever it is offered, in place: `choose(model, rank=4)`, `choose(model,
    loops=1)`; None is the full size. A mapping sets it site by site,
    `choose(model, bits={"layers.0.mlp.up_proj": 2})`, and leaves the other sites as they are.

    Args:
        name: a subnet of the model's `subnets.json`, in place of settings.
        budget: the best of those subnets within "3.0 bits" on average, or "1200000 bytes".

    Raises:
        ConfigError: if nothing in the model offers the choice, or not this value; nothing is changed then.
        Refused: if the model would take the active depths for others.
    """
    if name is not None or budget is not None:
        if settings or (name is not None and budget is not None):
            raise ConfigError("give a name, a budget or settings, not several of them")
        settings = dict(find(subnets(model), name, budget)["choices"])
    settings = _offers(model).read(settings)
    now = _State(model)
    now.require(settings)
    for binding in bindings(model):
        own = {k: _at(k, v, binding) for k, v in settings.items() if k in binding.rule.choices()}
        own = {k: v for k, v in own.items() if v != getattr(binding.rule, k)}
        binding.rule = replace(binding.rule, **own) if own else binding.rule  # type: ignore[type-var]
    now.write(settings)
    return model


def _at(name: str, value: Any, binding: Binding) -> Any:
    """What choice `name` is at the site of `binding`."""
    if not isinstance(value, Mapping):
        return value
    return value.get(binding.site.name, getattr(binding.rule, name))


@contextmanager
def chosen(model: nn.Module, **settings: Any) -> Iterator[nn.Module]:
    """`choose` for the time of a `with` block."""
    before, rules = _State(model), [(binding, binding.rule) for binding in bindings(model)]
    choose(model, **settings)
    try:
        yield model
    finally:
        for binding, rule in rules:
            binding.rule = rule
        before.write(None)


def narrowed(plan: SharePlan) -> SharePlan:
    """The plan of one subnet by itself: as it is now, and without the other widths and sizes."""
    steps = (_narrowed(step) if isinstance(step, Generate) else step for step in plan.steps)
    return SharePlan(tuple(steps), plan.form)


def is_narrowed(plan: SharePlan) -> bool:
    """True for the plan of one subnet by itself, which has no use for the whole model's list of them."""
    return any("kept" in step.args or step.args.get("cut") for step in plan.generates)


def _narrowed(step: Generate) -> Generate:
    if step_rule(step).kind == "limit":
        return _cut(step)
    if "bits" not in step_rule(step).choices():
        return step
    widths = tuple(rule.width for rule in site_rules(step))  # type: ignore[attr-defined]
    kept = tuple(sorted(set(widths)))
    return replace(step, args={**step.args, "bits": widths if len(kept) > 1 else kept[0], "kept": kept})


def _cut(step: Generate) -> Generate:
    rules: list[Any] = site_rules(step)
    sizes = tuple(rule.sizes[-1] if rule.size is None else rule.size for rule in rules)
    size = sizes if len(set(sizes)) > 1 else sizes[0]
    return replace(step, args={**step.args, rules[0].size_name: size, "cut": True})


def bindings(model: nn.Module) -> Iterator[Binding]:
    """Every rule bound in `model`, in compressed weights and in adapters."""
    for module in model.modules():
        held = getattr(module, "bindings", ())
        for item in held.values() if isinstance(held, dict) else (held,):
            yield from (b for b in item if isinstance(b, Binding))


def coded(model: nn.Module) -> dict[str, Binding]:
    """The rules that hold codes of the active depths, by the names that their weights have in the plain form
    of `model`.

    Raises:
        Refused: if all that has codes is in depths that are not active.
    """
    record = attached(model)
    plan = SharePlan() if record is None else record.plan
    found = [(depths.plain_name(plan, b.site.module), b) for b in bindings(model) if b.rule.frozen]
    here = {name: binding for name, binding in found if name is not None}
    if found and not here:
        raise Refused("no layer that is active has codes; choose another depth")
    return here


class _State:
    """The plans of a model and of its adapters, and the depths that are active in it."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.record = attached(model)
        self.plan = None if self.record is None else self.record.plan
        found = getattr(model, "peft_config", {}).items()
        self.adapters = {n: c._plan for n, c in found if getattr(c, "_plan", None) is not None}

    def require(self, settings: dict[str, Any]) -> None:
        """Raise if the depths of `settings` cannot be active."""
        for step in with_choices(self.plan, settings).arranges if self.plan is not None else ():
            depths.check_active(_plain(self.model), step)

    def write(self, settings: dict[str, Any] | None) -> None:
        """Make the plans those found here, with `settings`."""
        if self.record is not None and self.plan is not None:
            plan = _chosen(self.plan, settings)
            depths.activate(_plain(self.model), plan)
            change_plan(self.model, plan)
        configs = getattr(self.model, "peft_config", {})
        for name, plan in self.adapters.items():
            if name in configs:
                configs[name] = configs[name].bound(_chosen(plan, settings))


def _chosen(plan: SharePlan, settings: dict[str, Any] | None) -> SharePlan:
    return plan if settings is None else with_choices(plan, settings)


def _plain(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]

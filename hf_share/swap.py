# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Another rule in the place of one that a model has, with tensors made of those it stores now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .binding import Binding, private_names
from .modules import Share, Store, bound
from .plan import SharePlan
from .rules import Rule
from .sites import STORES, Site, backbone
from .steps import Generate, Step
from .ties import attached, change_plan


Stored = dict[str, Tensor]
Change = Callable[[Rule, Stored], tuple[Rule, Mapping[str, Tensor]] | None]


@torch.no_grad()
def swap_rules(model: nn.Module, change: Change) -> None:
    """Put the rule and the tensors that `change` gives, for one site, in the place of each rule of a shared
    model; None leaves a rule as it is. The model, its plan and its config change in place.
    """
    record = attached(model)
    assert record is not None, "the model is shared"
    steps = [_swapped(model, s, change) if isinstance(s, Generate) else s for s in record.plan.steps]
    change_plan(model, SharePlan(tuple(steps), record.plan.form))


def _swapped(model: nn.Module, step: Generate, change: Change) -> Step:
    """The step as it is once swapped; its store and its shares are changed."""
    base = backbone(model)
    places = bound(base, step)
    sites = [binding.site for _, binding in places]
    found = [change(binding.rule, share.stored(binding)) for share, binding in places]
    if found[0] is None:
        return step
    rule = found[0][0]
    store = _put_store(base, step.group, rule, sites, found[0][1])
    for (share, binding), new in zip(places, found, strict=True):
        assert new is not None, "the sites of a step have one rule"
        _put(share, binding, new[0], store, new[1], sites)
    return replace(step, rule=rule.name, args=rule.args())


def _put_store(
    base: nn.Module, group: str, rule: Rule, found: list[Site], values: Mapping[str, Tensor]
) -> Store | None:
    stores = getattr(base, STORES, {})
    names = rule.shared(found)
    if not names:
        if group in stores:
            del stores[group]
        return None
    store = stores[group] = Store()
    for name in names:
        _register(store, name, values[name], rule.whole(name))
    return store


def _put(
    share: Share, binding: Binding, rule: Rule, store: Store | None, values: Mapping[str, Tensor],
    found: list[Site],
) -> None:  # fmt: skip
    for attribute in binding.names.values():
        delattr(share, attribute)
    binding.forget()
    binding.rule, binding.store = rule, store
    binding.constants = rule.constants(binding.site, found)
    binding.names = private_names(rule, binding.site, (*share._parameters, *share._buffers))
    for name, attribute in binding.names.items():
        _register(share, attribute, values[name], rule.whole(name))


def _register(module: nn.Module, name: str, value: Tensor, whole: torch.dtype | None) -> None:
    if whole is not None:
        module.register_buffer(name, value)
    else:
        kept = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
        module.register_parameter(name, kept)

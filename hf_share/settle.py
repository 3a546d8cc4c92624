# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""After training: leave out what a rule only needed to train, and keep the weights it made.

Some rules hold their numbers in a roundabout way because it trains better (MASA's net of coefficients).
`settle` evaluates them once and puts the simpler rule in their place, in the model, its plan and its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .attach import step_sites
from .binding import Binding, private_names
from .errors import Refused
from .modules import Share, Store
from .plan import SharePlan
from .sites import STORES, backbone, resolve, sites
from .steps import Generate, Step
from .ties import attached, change_plan


@torch.no_grad()
def settle(model: nn.Module) -> nn.Module:
    """Replace every rule of a shared model that has a simpler form by it, in place, and return the model.

    The weights stay what they are, to rounding. Call it after training: the optimizer of a run still holds
    the tensors that are left out. A model with nothing to settle is returned as it is.

    Example:
        >>> hf_share.settle(model).save_pretrained(path)  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise Refused("this model carries adapters; settle what hf_share.compressed(model) returns")
    record = attached(model)
    if record is None:
        return model
    index = {s.name: s for s in sites(model, parts=True)}
    steps = [_settled(model, step, index) for step in record.plan.steps]
    change_plan(model, SharePlan(tuple(steps), record.plan.form))
    return model


def _settled(model: nn.Module, step: Step, index: Mapping[str, Any]) -> Step:
    """The step as it is once settled; its store and its shares are changed."""
    if not isinstance(step, Generate):
        return step
    base = backbone(model)
    bound = []
    for site in step_sites(dict(index), step):
        share = resolve(base, site.module)._modules["share"]
        assert isinstance(share, Share)
        bound.append((share, next(b for b in share.bindings if b.group == step.group and b.site == site)))
    simpler = [binding.rule.settled(share.stored(binding)) for share, binding in bound]
    if simpler[0] is None:
        return step
    rule = simpler[0][0]
    store = _store(base, step.group, rule.shared([b.site for _, b in bound]), simpler[0][1])
    for (share, binding), found in zip(bound, simpler, strict=True):
        assert found is not None
        binding.rule, binding.store = rule, store
        _rename(share, binding, found[1])
    return replace(step, rule=rule.name, args=rule.args())


def _store(
    base: nn.Module, group: str, shapes: Mapping[str, Any], values: Mapping[str, Tensor]
) -> Store | None:
    stores: Any = getattr(base, STORES, {})
    if not shapes:
        if group in stores:
            del stores[group]
        return None
    store = Store()
    for name in shapes:
        store.register_parameter(name, _parameter(values[name]))
    stores[group] = store
    return store


def _rename(share: Share, binding: Binding, values: Mapping[str, Tensor]) -> None:
    for attribute in binding.names.values():
        del share._parameters[attribute]
    binding.names = private_names(binding.rule, binding.site, share._parameters)
    for name, attribute in binding.names.items():
        share.register_parameter(attribute, _parameter(values[name]))


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())

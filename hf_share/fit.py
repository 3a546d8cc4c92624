# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""From structure to values: merged parents, and the starting values of what rules add.

`build` is attach and fit together, one step after the other, since each step addresses the model the step
before left. Source weights are read from references taken before the step and one group at a time, so the
peak is one group's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import arrange as _arrange
from .attach import attach, check, step_sites
from .modules import Share, linear_weight
from .plan import Arrange, Generate, SharePlan, Step
from .rules import draw_seed, generator, make_rule
from .sites import STORES, backbone, resolve, sites, stacks, tensors


Source = Mapping[str, Tensor]


def build(model: nn.Module, plan: SharePlan, seed: int | None = None) -> nn.Module:
    """Attach every step of a source-form plan to `model` and set its values from the model's own weights, in
    place.

    Args:
        seed: for starting values that are random; drawn from torch's generator if None. Each tensor's
            numbers follow from the seed and its name, so they do not depend on the order of sites.
    """
    check(model, plan)
    if plan.form == "source":
        _arrange.check_cache(model, plan.arranges)
    seed = draw_seed() if seed is None else seed
    for step in plan.steps:
        source = capture(model, step)
        attach(model, SharePlan((step,), plan.form))
        fit(model, step, source, seed)
    return model


def capture(model: nn.Module, step: Step) -> dict[str, Tensor]:
    """References to the weights `fit` will read: tensors of a stack's layers, or dense weights a rule
    replaces.
    """
    if isinstance(step, Arrange):
        layers = stacks(model)[step.stack].layers
        return {
            f"{depth}.{name}": value for depth, layer in enumerate(layers) for name, value in tensors(layer)
        }
    if isinstance(step, Generate) and make_rule(step.rule, step.args).kind == "replace":
        found = step_sites({s.name: s for s in sites(model)}, step)
        return {s.name: linear_weight(resolve(backbone(model), s.module)) for s in found}
    return {}


def fit(model: nn.Module, step: Step, source: Source, seed: int = 0) -> None:
    """Set the values of one attached step from `source`, what `capture` took before the step was attached."""
    with torch.no_grad():
        if isinstance(step, Arrange):
            _fit_arrange(model, step, source)
        elif isinstance(step, Generate):
            _fit_generate(model, step, source, seed)


def _fit_arrange(model: nn.Module, step: Arrange, source: Source) -> None:
    if step.merge != "mean":
        return
    stack = stacks(model)[step.stack]
    for parent, members in step.groups().items():
        if len(members) < 2:
            continue
        for name, value in tensors(stack.layers[step.order.index(parent)]):
            shared = _arrange.is_owned(step, name) and not _arrange.is_private(step, name)
            if shared and name not in stack.partial and value.is_floating_point():
                value.copy_(torch.stack([source[f"{m}.{name}"].float() for m in members]).mean(0))


def _fit_generate(model: nn.Module, step: Generate, source: Source, seed: int) -> None:
    rule = make_rule(step.rule, step.args)
    base = backbone(model)
    found = step_sites({s.name: s for s in sites(model, parts=True)}, step)
    values = rule.fit(source, found)
    store = getattr(base, STORES, {})[step.group] if rule.shared(found) else None
    for name, tensor in store.named_parameters() if store is not None else ():
        if values is not None:
            tensor.copy_(values[""][name])
        elif not tensor.is_meta:
            rule.reset(name, tensor, found, generator(seed, step.group, name))
    for site in found:
        share = resolve(base, site.module)._modules["share"]
        assert isinstance(share, Share)
        binding = next(b for b in share.bindings if b.group == step.group and b.site.name == site.name)
        for name, attribute in binding.names.items():
            tensor = getattr(share, attribute)
            if values is not None:
                tensor.copy_(values[site.name][name])
            elif not tensor.is_meta:
                rule.reset(name, tensor, [site], generator(seed, step.group, site.name, name))

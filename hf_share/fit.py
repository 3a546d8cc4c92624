# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""From structure to values: merged parents, and the starting values of what rules add.

`build` is attach and fit together, one step after the other, since each step addresses the model the step
before left. Source weights are read from references taken before the step and one site at a time, so the
peak is the source model, the shared one, and one group's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import arrange as _arrange
from . import visits
from .attach import attach, check, step_sites
from .dense import dense
from .errors import ConfigError
from .importance import second_moments
from .lanes import Lanes
from .modules import Share, SharedLinear, bound, linear_weight
from .plan import SharePlan
from .rules import Rule, draw_seed, generator, step_rule
from .sites import STORES, Site, Stack, backbone, resolve, sites, stacks, tensors
from .sort_lanes import sort_lanes
from .steps import Arrange, Generate, Step
from .untouched import untouched_on_error


Source = Mapping[str, Tensor]
Values = dict[str, dict[str, Tensor]]


def build(model: nn.Module, plan: SharePlan, seed: int | None = None, calibration: Any = None) -> nn.Module:
    """Attach every step of a source-form plan to `model` and set its values from the model's own weights, in
    place. The model is as it was if a step is refused.

    Args:
        seed: for starting values that are random; drawn from torch's generator if None. Each tensor's
            numbers follow from the seed and its name, so they do not depend on the order of sites.
        calibration: texts or token batches, for rules whose fit weighs errors by the inputs they meet.
    """
    check(model, plan)
    if plan.form == "source":
        _arrange.check_cache(model, plan.arranges)
    seed = draw_seed() if seed is None else seed
    whole = Whole(model, plan, calibration)
    with untouched_on_error(model):
        for step in plan.steps:
            source = capture(model, step)
            attach(model, SharePlan((step,), plan.form))
            fit(model, step, source, whole, seed)
    return model


class Whole:
    """What is kept of the source model until its plan is built: references to the dense weights that a rule
    fits to, by the site that will stand for each, and second moments of inputs. `made` forms the weights that
    an adapter's earlier steps make beside the base's, by module.
    """

    def __init__(self, model: nn.Module, plan: SharePlan, calibration: Any = None):
        rules = {step: step_rule(step) for step in plan.generates}
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.made: dict[str, Callable[[], Tensor]] = {}
        wanted = [n for step, rule in rules.items() if rule.reads == "residual" for n in step.sites]
        measured = [n for step, rule in rules.items() if rule.calibrated for n in step.sites]
        if not wanted and not measured:
            return
        index = {s.name: s for s in sites(model, parts=True)}
        origins = {name: name for name in index}
        for step in plan.arranges if plan.form == "source" else ():
            origins = visits.origins(origins, step)
        base = backbone(model)
        found = {name: dense(base, index[origins[name]]) for name in wanted if name in origins}
        self.weights = {name: weight.detach() for name, weight in found.items()}  # what merging leaves alone
        if measured and not any(p.is_meta for p in model.parameters()):
            _require_text(rules, calibration)
            modules = {name: index[origins[name]].module for name in measured}
            moments = second_moments(model, calibration, sorted(set(modules.values())))
            self.moments = {name: moments[module] for name, module in modules.items()}


def _require_text(rules: Mapping[Generate, Rule], calibration: Any) -> None:
    for step, rule in rules.items():
        if rule.calibrated and calibration is None:
            raise ConfigError(
                f"group {step.group!r} weighs its errors by the inputs of its weights, which needs text: "
                "hf_share.share(model, config, calibration=...), or for get_peft_model "
                "config.with_calibration(...)"
            )


def capture(model: nn.Module, step: Step) -> dict[str, Tensor]:
    """References to the weights `fit` will read and the step takes away: tensors of a stack's layers, or
    dense weights a rule replaces.
    """
    if isinstance(step, Arrange):
        layers = stacks(model)[step.stack].layers
        return {
            f"{depth}.{name}": value for depth, layer in enumerate(layers) for name, value in tensors(layer)
        }
    if isinstance(step, Generate) and step_rule(step).reads == "weight":
        found = step_sites({s.name: s for s in sites(model, parts=True)}, step)
        return {s.name: dense(backbone(model), s) for s in found}
    return {}


class Residual(Mapping):
    """What the present weights lack of the source model's, one site at a time: (out, in), in fp32."""

    def __init__(self, base: nn.Module, found: Sequence[Site], whole: Whole, group: str):
        self.base, self.sites, self.whole = base, {s.name: s for s in found}, whole
        self.group = group  # whose values are to be found

    def __getitem__(self, name: str) -> Tensor:
        return self.whole.weights[name].float() - self._present(self.sites[name])

    def _present(self, site: Site) -> Tensor:
        """The weight without the deltas that are to be found."""
        module = resolve(self.base, site.module)
        rows = slice(None) if site.part is None else site.part.rows()
        if site.module in self.whole.made:
            return self.whole.made[site.module]().float()[rows]
        share = module._modules.get("share")
        bindings = share.bindings if isinstance(share, Share) else []
        own = next((b for b in bindings if b.group == self.group), None)
        if isinstance(module, SharedLinear):
            return share.weight(until=own).float()[rows]  # type: ignore[union-attr]
        now = dense(self.base, site).float()
        if not bindings or bindings[0] is own:
            return now
        return now + share.weight(linear_weight(module), until=own).float()[rows]  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


@torch.no_grad()
def starting_values(
    base: nn.Module, step: Generate, found: Sequence[Site], source: Source, whole: Whole
) -> Values:
    """Values that the rule of `step` fits, by site and tensor; what is not in them starts with `reset`."""
    rule = step_rule(step)
    if not rule.reads:
        return {}
    if rule.reads == "residual":
        source = Residual(base, found, whole, step.group)
    if any(p.is_meta for p in base.parameters()):
        return {}
    return rule.fit(source, found, whole.moments)


def fit(model: nn.Module, step: Step, source: Source, whole: Whole, seed: int = 0) -> None:
    """Set the values of one attached step from `source`, what `capture` took before the step was attached."""
    with torch.no_grad():
        if isinstance(step, Arrange):
            _fit_arrange(model, step, source, seed)
        elif isinstance(step, Generate):
            _fit_generate(model, step, source, whole, seed)


def _fit_arrange(model: nn.Module, step: Arrange, source: Source, seed: int) -> None:
    if step.merge == "first":
        return
    stack = stacks(model)[step.stack]
    for parent, members in step.groups().items():
        if len(members) < 2:
            continue
        layer = stack.layers[step.order.index(parent)]
        if step.merge == "random":
            kept = {n: t.data for n, t in tensors(layer) if not _is_shared(step, stack, n)}
            _draw(model, layer, seed, parent)
            for name, value in tensors(layer):
                value.data = kept.get(name, value.data)
            continue
        for name, value in tensors(layer):
            if _is_shared(step, stack, name) and value.is_floating_point():
                mean = torch.stack([source[f"{m}.{name}"].float() for m in members]).mean(0)
                value.data = mean.to(value.dtype)  # not in place: a rule may yet fit to the source's values


def _is_shared(step: Arrange, stack: Stack, name: str) -> bool:
    return step.owns(name) and not step.keeps(name) and name not in stack.partial


def _draw(model: nn.Module, layer: nn.Module, seed: int, parent: int) -> None:
    """Weights as the model's own class draws them before any training."""
    for value in layer.parameters():
        value.data = value.data.clone()  # not in place: a rule may yet fit to the source's values
        value.__dict__.pop("_is_hf_initialized", None)
    for module in layer.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "random", str(parent)).initial_seed())
        layer.apply(model._init_weights)  # children first: some classes scale what lies below them


def _fit_generate(model: nn.Module, step: Generate, source: Source, whole: Whole, seed: int) -> None:
    rule = step_rule(step)
    base = backbone(model)
    found = step_sites({s.name: s for s in sites(model, parts=True)}, step)
    if isinstance(rule, Lanes):
        return sort_lanes(model, rule, found, whole.moments)
    values = starting_values(base, step, found, source, whole)
    store = getattr(base, STORES, {})[step.group] if rule.shared(found) else None
    for name, tensor in store().items() if store is not None else ():
        _set(tensor, values.get("", {}).get(name), rule, name, found, seed, step.group)
    for site, (share, binding) in zip(found, bound(base, step), strict=True):
        for name, attribute in binding.names.items():
            value = values.get(site.name, {}).get(name)
            _set(getattr(share, attribute), value, rule, name, [site], seed, step.group, site.name)
        if rule.rewrites and site.name in values:
            _rewrite(resolve(base, site.module), site, values[site.name]["W"])


def _rewrite(module: nn.Module, site: Site, W: Tensor) -> None:
    """Give the module of a site the weight (out, in) at its place."""
    own = linear_weight(module).data.clone()  # not in place: a rule may yet fit to the source's values
    own[slice(None) if site.part is None else site.part.rows(own.device)] = W
    module.weight.data = own.mT if type(module).__name__ == "Conv1D" else own


def _set(
    tensor: Tensor, value: Tensor | None, rule: Rule, name: str, found: Sequence[Site], *key: Any
) -> None:
    if value is not None:
        tensor.copy_(value)
    elif not tensor.is_meta:
        rule.reset(name, tensor, found, generator(*key, name))

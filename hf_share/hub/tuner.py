# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The peft tuner of all methods: the plan decides what is targeted, structural steps shape the base once.

An adapter's plan is in source form. Its structural steps (arrange) are applied to the base model when the
first adapter that has them is injected; another adapter must have equal ones. Its generate steps become
`ShareLayer`s, which add to the base's weight or stand in for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from ..attach import check, step_sites
from ..config import ShareConfig
from ..errors import ConfigError, Refused
from ..fit import Whole, build, capture, starting_values
from ..guards import never_repack, ready_to_train
from ..materialize import make_plain
from ..peft_type import PREFIX
from ..plan import SharePlan
from ..rules import Rule, draw_seed, generator, site_rules, step_rule, with_choices
from ..sites import STORES, Site, backbone, prefix, sites
from ..steps import Generate, Step
from ..targets import default_targets
from ..ties import attached
from .layer import AdapterStore, ShareLayer, ShareTunerLayer, names_of
from .record import record_plan
from .unread import expect_file


def is_structural(step: Step) -> bool:
    """True for a step that changes the base model itself. A rule that makes a weight does not: the base
    keeps its own, for the way back.
    """
    return not isinstance(step, Generate)


def structure(plan: SharePlan) -> SharePlan:
    return SharePlan(tuple(s for s in plan.steps if is_structural(s)), plan.form)


def additions(plan: SharePlan) -> SharePlan:
    return SharePlan(tuple(s for s in plan.steps if not is_structural(s)), plan.form)


def _require_trained(step: Generate, found: list[Site]) -> None:
    rule = step_rule(step)
    if rule.kind == "limit":
        raise Refused(
            f"rule {rule.name!r} is a choice of how much of the model itself works, which an adapter does "
            "not hold. Use hf_share.share(model, config), and put adapters on what it returns"
        )
    for name in (*rule.shared(found), *(n for site in found for n in rule.private(site))):
        if rule.whole(name) is not None:
            raise Refused(
                f"rule {rule.name!r} stores whole numbers ({name}), and peft trains all that an adapter "
                "holds. Use hf_share.share(model, config), and put adapters on what it returns"
            )


def _warn_unmeasured(config: ShareConfig, plan: SharePlan) -> None:
    """Where a config without text is not refused, it starts from less than it could."""
    if config._given is not None or config._calibration is not None or not config.uses_calibration:
        return
    rules = [step_rule(step) for step in plan.generates]
    if any(rule.reads and not rule.calibrated and not rule.rewrites for rule in rules):
        warnings.warn(
            f"{type(config).__name__} weighs errors by the inputs of calibration text, and has none: its "
            "products start as plain truncated ones. Give it text: config.with_calibration(texts)",
            stacklevel=2,
        )


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """The base as it is by itself, which is what a new adapter is measured on."""
    layers = [m for m in model.modules() if isinstance(m, ShareLayer) and not m.merged]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


class ShareModel(BaseTuner):
    """Injects hf_share adapters into a model. Users meet it through `peft.get_peft_model`."""

    prefix = PREFIX
    tuner_layer_cls = ShareTunerLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    uses_shared_state = False  # stores live in the base model, so injection without a PeftModel works

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        asked = self.peft_config[adapter_name]
        before = getattr(asked, "_plan", None)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if self.peft_config[adapter_name].is_loaded:
                expect_file(model, adapter_name)
        except BaseException:
            asked._plan = before
            raise
        finally:
            self._hand_back(self.peft_config.get(adapter_name), model)

    @staticmethod
    def _hand_back(config: Any, model: nn.Module) -> None:
        """Undo what peft needs in a config only while it injects."""
        if config is None or "_asked_targets" not in vars(config):
            return
        vars(config).pop("_planned", None)
        asked = vars(config).pop("_asked_targets")
        # peft spells "all-linear" out, which the plan does; what it takes by default it writes down
        default = default_targets(model) if config.has_targets else None
        config.target_modules = default if asked is None else asked

    def _prepare_adapter_config(self, peft_config: ShareConfig, model_config: dict) -> ShareConfig:
        if not isinstance(peft_config, ShareConfig):
            raise ConfigError(f"a {type(peft_config).__name__} cannot be added beside hf_share adapters")
        plan = self._plan_for(peft_config)
        _require_repeatable(plan)
        resolved = peft_config.bound(plan)
        resolved._asked_targets = peft_config.target_modules
        if not additions(plan).steps:
            resolved.target_modules = DUMMY_TARGET_MODULES
        elif resolved.target_modules is None:
            resolved.target_modules = []
        for name, config in self.peft_config.items():
            if config is peft_config:
                self.peft_config[name] = resolved
        return resolved

    def _plan_for(self, config: ShareConfig) -> SharePlan:
        record = attached(self.model)
        if record is None or not structure(record.plan).steps or config._given is None:
            with _without_adapters(self.model):
                plan = config.resolve(self.model)
            _warn_unmeasured(config, plan)
        else:
            plan = config._given
        if record is not None and structure(plan).steps and structure(record.plan).steps:
            if with_choices(structure(plan)) != with_choices(structure(record.plan.source())):
                raise Refused(
                    f"the base model already has the structure\n{structure(record.plan.source())}\n"
                    f"and this adapter asks for\n{structure(plan)}\n"
                    "All adapters of a model share one structure"
                )
        if not structure(plan).steps:
            plan = SharePlan((*self._structure_beside(config).steps, *plan.steps), plan.form)
        return plan

    def _structure_beside(self, config: ShareConfig) -> SharePlan:
        """The structure another adapter gave the base. It is below `config`'s adapter as well, whose folder
        has to say so.
        """
        others = (self._plan_of(name) for name, other in self.peft_config.items() if other is not config)
        return next((found for plan in others if (found := structure(plan)).steps), SharePlan())

    def _prepare_model(self, peft_config: ShareConfig, model: nn.Module) -> None:
        plan = peft_config._plan
        assert plan is not None
        record = attached(model)
        adds = additions(plan)
        shapes = bool(structure(plan).steps) and (record is None or not structure(record.plan).steps)
        check(model, plan if shapes else adds)
        self._seed = draw_seed()
        make_ready = never_repack if peft_config.inference_mode else ready_to_train
        make_ready(model)
        with _without_adapters(model):
            calibration, steps = peft_config._calibration, plan if shapes else adds
            whole = None if peft_config.is_loaded else Whole(model, steps, calibration)
        if shapes:
            build(model, structure(plan), self._seed)
            record_plan(model)
        index = {s.name: s for s in sites(model, parts=True)}
        planned: dict[str, list[tuple[Generate, Rule, list[Site], Site]]] = {}
        for step in adds.generates:
            found = step_sites(index, step)
            _require_trained(step, found)
            for site, rule in zip(found, site_rules(step), strict=True):
                planned.setdefault(prefix(model) + site.module, []).append((step, rule, found, site))
        peft_config._planned = planned
        self._values = {}
        for step in adds.generates if whole is not None else ():
            found = step_sites(index, step)
            source = capture(model, step)
            self._values[step.group] = starting_values(backbone(model), step, found, source, whole)
            rule = step_rule(step)
            assert whole is not None
            for site in found if rule.kind == "replace" else ():
                whole.made[site.module] = partial(self._made, step, rule, site, found)

    @staticmethod
    def _check_target_module_exists(peft_config: ShareConfig, key: str) -> Any:
        if key in getattr(peft_config, "_planned", {}):
            return True
        if peft_config.target_modules in (None, DUMMY_TARGET_MODULES):
            return False
        asked = check_target_module_exists(peft_config, key)
        return (
            asked if not isinstance(asked, bool) and not asked else False
        )  # an excluded module, for peft's count

    def _create_and_replace(
        self, peft_config: ShareConfig, adapter_name: str, target: nn.Module, target_name: str, parent:
        nn.Module,
        current_key: str, parameter_name: str | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        layer = target
        if not isinstance(layer, ShareLayer):
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            backend = resolve_quantization_backend(base, **get_quantization_kwargs(self.model))
            layer = ShareLayer(target, backend)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        for step, rule, found, site in peft_config._planned[current_key]:
            store = self._store(step, found, adapter_name, layer) if rule.shared(found) else None
            dtype = layer._placement()[1]
            values = {
                name: self._start(step, rule, name, shape, dtype, [site], site.name)
                for name, shape in rule.private(site).items()
            }
            layer.bind(adapter_name, rule, site, step.group, store, rule.constants(site, found), values)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _store(self, step: Generate, found: list[Site], adapter: str, layer: ShareLayer) -> AdapterStore:
        base = backbone(self.model)
        if not hasattr(base, STORES):
            setattr(base, STORES, nn.ModuleDict())
        stores = getattr(base, STORES)
        device, dtype = layer._placement()
        if step.group not in stores:
            stores[step.group] = AdapterStore(device)
        store = stores[step.group]
        store.quantization_backend = layer.quantization_backend
        if adapter not in store:
            rule = step_rule(step)
            for name, shape in rule.shared(found).items():
                value = self._start(step, rule, name, shape, dtype, found)
                store.add_tensor(name, adapter, value.to(device))
            store.set_adapter(self.active_adapters)
        return store

    def _start(
        self, step: Generate, rule: Rule, name: str, shape: tuple[int, ...], dtype: torch.dtype,
        found: list[Site], *key: str,
    ) -> Tensor:  # fmt: skip
        """The starting value of one tensor, shared or of the site `key` names."""
        if step.group not in self._values and rule.reads:
            # the file says what it is; should it not, no number here may pass for a value
            return torch.full(shape, float("nan"), dtype=dtype)
        value = torch.empty(shape, dtype=dtype)
        fitted = self._values.get(step.group, {}).get(key[0] if key else "", {}).get(name)
        if fitted is None:
            rule.reset(name, value, found, generator(self._seed, step.group, *key, name))
        else:
            value.copy_(fitted)
        return value

    def _made(self, step: Generate, rule: Rule, site: Site, found: list[Site]) -> Tensor:
        """The weight that a rule will make at `site`, from its starting values."""
        shapes = rule.shared(found)
        tensors = {n: self._start(step, rule, n, shapes[n], torch.float32, found) for n in shapes}
        for name, shape in rule.private(site).items():
            tensors[name] = self._start(step, rule, name, shape, torch.float32, [site], site.name)
        return rule.weight(rule.form({**tensors, **rule.constants(site, found)}))

    def _plan_of(self, adapter_name: str) -> SharePlan:
        return self.peft_config[adapter_name]._plan or SharePlan()

    def _refuse_structural(self, names: list[str], what: str) -> None:
        staying = [name for name in self.peft_config if name not in names]
        if any(structure(self._plan_of(name)).steps for name in staying):
            return
        for name in names:
            if name in self.peft_config and structure(self._plan_of(name)).steps:
                raise Refused(
                    f"{what}: adapter {name!r} changed the structure of the base model, which cannot be "
                    "taken back. Use merge_and_unload() or hf_share.materialize(model) for a plain model, "
                    "hf_share.compressed(model) for the compressed one, or load the base model again"
                )

    def delete_adapter(self, adapter_name: str) -> None:
        self._refuse_structural([adapter_name], "delete_adapter")
        super().delete_adapter(adapter_name)

    def unload(self) -> nn.Module:
        self._refuse_structural(list(self.peft_config), "unload")
        return super().unload()

    def _unload_and_optionally_merge(self, *args: Any, merge: bool = True, **kwargs: Any) -> nn.Module:
        model: Any = super()._unload_and_optionally_merge(*args, merge=merge, **kwargs)
        drop_adapter_stores(model)
        return make_plain(model) if merge and attached(model) else model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Mixed batches: hand `adapter_names`, one for each row, to every layer of ours for one forward
        pass.
        """
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unexpected = set(names) - {"__base__"} - names_of(list(self.modules()))
        if unexpected:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unexpected))}")
        beams = kwargs.get("num_beams") or 1
        handles = [
            module.register_forward_pre_hook(
                partial(_pass_names, names=list(names), beams=beams), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, (ShareLayer, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _require_repeatable(plan: SharePlan) -> None:
    """An adapter's folder holds what is added; the base's own weights are made again from the base."""
    for step in plan.arranges:
        if step.merge == "random":
            raise Refused(
                f"stack {step.stack!r}: random weights cannot be made again from the base model, and an "
                "adapter's folder does not hold them; use hf_share.share(model, config)"
            )
    for step in plan.generates:
        rule = step_rule(step)
        if rule.rewrites:
            raise Refused(
                f"group {step.group!r}: rule {rule.name!r} would prune the base, which an adapter leaves as "
                "it is. hf_share.prune(model, ...) and save the base first, then leave sparsity out of the "
                "adapter; or use hf_share.share(model, config)"
            )


def _pass_names(
    module: nn.Module, args: tuple, kwargs: dict, names: list[str], beams: int
) -> tuple[tuple, dict]:
    # beam search repeats every row, but not in an encoder, which has run on the rows as they were given
    rows = len(args[0] if args else next(iter(kwargs.values())))
    if beams > 1 and rows == beams * len(names):
        names = [name for name in names for _ in range(beams)]
    return args, {**kwargs, "adapter_names": names}


def drop_adapter_stores(model: nn.Module) -> None:
    """Remove the adapters' stores, and the container if nothing else is in it."""
    base = backbone(model)
    stores = getattr(base, STORES, None)
    if stores is None:
        return
    for group in [g for g, s in stores.items() if isinstance(s, AdapterStore)]:
        del stores[group]
    if not len(stores):
        delattr(base, STORES)

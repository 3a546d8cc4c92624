# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs: `share` a model, take the `compressed` model out of a peft model."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .attach import attach
from .config import ShareConfig
from .errors import ConfigError, Refused, unknown
from .fit import build
from .guards import never_repack, require_whole
from .hub.layer import ShareLayer
from .hub.record import record_plan
from .hub.tuner import drop_adapter_stores, is_structural
from .modules import Share
from .plan import SharePlan


def share(model: nn.Module, config: ShareConfig | SharePlan, calibration: Any = None) -> nn.Module:
    """Store `model`'s weights once and use them many times, as `config` says. Changes the model in place and
    returns it.

    Args:
        model: any transformers model (or module); it is left as it was if an error is raised.
        config: a method's config, a `ShareConfig`, or a `SharePlan` in source form.
        calibration: for methods that measure the model: texts, or batches of tokens (`hf_share.tokenize`);
            what `config.with_calibration` was given if None.

    Returns:
        The same model. `save_pretrained` writes each shared tensor once, `from_pretrained` loads it exactly.

    Raises:
        ShareError: if the config does not fit the model; nothing has been changed then.

    Example:
        >>> model = hf_share.share(model, hf_share.FoldConfig(remove=[3], group_size=2))  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "this model carries adapters; merge them first, or use hf_share.compressed(peft_model)"
        )
    require_whole(model)
    if isinstance(config, SharePlan):
        plan = config
    elif isinstance(config, ShareConfig):
        calibration = config._calibration if calibration is None else calibration
        plan = config.resolve(model, calibration)
    else:
        raise ConfigError(f"config must be a ShareConfig or a SharePlan, not {type(config).__name__}")
    build(model, plan, calibration=calibration)
    never_repack(model)
    record_plan(model)
    return model


@torch.no_grad()
def compressed(model: Any, adapter_name: str | None = None) -> nn.Module:
    """The compressed model of a peft model: the shared base with the adapter's rules in it, as one
    checkpoint.

    The peft model is taken apart, as `merge_and_unload` does; use what this returns. Shared weights stay
    shared, and the adapter's stores become stores of the model, in the base's dtype, since a checkpoint has
    one.

    Args:
        adapter_name: the adapter to keep; the active one if None.

    Raises:
        Refused: if several adapters are active, one is merged, or the adapter holds `modules_to_save`.
    """
    name = _one_adapter(model, adapter_name)
    plan = model.peft_config[name]._plan
    base = model.get_base_model()
    values = _adapter_values(base, name)
    _unwrap_layers(base)
    drop_adapter_stores(base)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(attribute, None)
    steps = SharePlan(tuple(s for s in plan.steps if not is_structural(s)))
    if steps.steps:
        attach(base, steps)
        _fill(base, values)
    record_plan(base)
    return base


def _one_adapter(model: Any, name: Any) -> str:
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        raise ConfigError("compressed takes a peft model with an hf_share adapter")
    if name is None:
        if len(model.active_adapters) != 1:
            raise Refused(f"adapters {model.active_adapters} are active; name the one to keep")
        name = model.active_adapters[0]
    if name not in model.peft_config:
        raise unknown("adapter", name, model.peft_config, ConfigError)
    if not isinstance(model.peft_config[name], ShareConfig):
        raise Refused(
            f"adapter {name!r} is a {type(model.peft_config[name]).__name__}; only hf_share adapters can be "
            "kept"
        )
    if any(isinstance(m, ShareLayer) and m.merged for m in model.modules()):
        raise Refused("an adapter is merged; call unmerge_adapter() first")
    if any(isinstance(m, AuxiliaryTrainingWrapper) for m in model.modules()):
        raise Refused("the adapter holds modules_to_save, which would be lost; use merge_and_unload()")
    return name


def _adapter_values(base: nn.Module, adapter: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(group, site) -> the rule's tensors by name."""
    return {
        (binding.group, binding.site.name): layer.stored(binding, adapter)
        for layer in base.modules()
        if isinstance(layer, ShareLayer)
        for binding in layer.bindings.get(adapter, ())
    }


def _unwrap_layers(base: nn.Module) -> None:
    for path, layer in list(base.named_modules()):
        if isinstance(layer, ShareLayer):
            parent, _, leaf = path.rpartition(".")
            setattr(base.get_submodule(parent), leaf, layer.get_base_layer())
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def _fill(base: nn.Module, values: dict[tuple[str, str], dict[str, Tensor]]) -> None:
    groups = {group for group, _ in values}  # the base may have rules of its own
    for share in base.modules():
        if not isinstance(share, Share):
            continue
        for binding in (b for b in share.bindings if b.group in groups):
            for name, tensor in share.stored(binding).items():
                tensor.copy_(values[binding.group, binding.site.name][name])

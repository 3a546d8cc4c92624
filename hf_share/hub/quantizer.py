# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Loading a shared checkpoint through `from_pretrained`: a registered quantizer that builds structure on the
meta model.

`config.json` carries `quantization_config = {"quant_method": "hf_share", "plan": ..., "inner": ...}`.
transformers calls the quantizer after the model is built on meta and before weights are read; it attaches the
plan. The slot is single, so an inner quantizer (bitsandbytes, torchao) rides in ours and every hook is passed
on to it. It runs between the two halves of `attach`, since it replaces modules by class and would skip
weights that are already declared tied. `inner` says `"pre_quantized": true` once the file holds quantised
weights, which is from the first load with it on.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..attach import arrange, attach, bind, check
from ..cut import prefix_of
from ..elastic import is_narrowed
from ..errors import ConfigError, PlanError, Refused, unknown
from ..guards import activations_quantised, never_repack
from ..plan import SharePlan
from ..registry import remember
from ..shelter import Shelter, sheltered
from ..sites import prefix
from ..ties import Attached, attached, drop_tied, get_tensor, to_file
from .checkpoint import METHOD, check_files, cut_tensors
from .publish import publish


WRITTEN = "pre_quantized"  # in `inner`: the file's weights are quantised already


class SharedConfig(QuantizationConfigMixin):
    """The `quantization_config` of a shared checkpoint: a plan in checkpoint form, and an inner
    quantisation or None.
    """

    def __init__(self, plan: Any = None, inner: Any = None, quant_method: str = METHOD, **unknown_keys: Any):
        for key in unknown_keys:
            raise unknown("key of quantization_config", key, ("quant_method", "plan", "inner"))
        if plan is None:
            raise PlanError("quantization_config of an hf_share checkpoint needs a plan")
        plan = SharePlan.from_dict(plan)
        if plan.form != "checkpoint":
            raise PlanError("a checkpoint's plan must be in checkpoint form; this one is in source form")
        self.quant_method = METHOD
        self.plan = plan.to_dict()
        self.inner = None if inner is None else _inner_dict(inner)

    @property
    def share_plan(self) -> SharePlan:
        return SharePlan.from_dict(self.plan)

    @property
    def get_apply_tensor_subclass(self) -> Any:
        """Of the inner config: peft looks for it here to quantise merged weights anew with torchao."""
        return _inner_config(dict(self.inner or {})).get_apply_tensor_subclass

    def written(self) -> SharedConfig:
        """The config of a model whose weights the inner quantiser has quantised: they are saved so."""
        return SharedConfig(plan=self.plan, inner=self.inner and {**self.inner, WRITTEN: True})

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method,
            "plan": copy.deepcopy(self.plan),
            "inner": copy.deepcopy(self.inner),
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


@register_quantization_config(METHOD)
class StoredConfig(SharedConfig):
    """What transformers reads from a config.json. `from_pretrained(path, quantization_config=...)` would keep
    this one and drop the other with a warning, and so load another subnet than was asked for; it refuses a
    config of another class, and this one is nobody's to pass. It names the class when it does, so the name
    says what to do.
    """

    def __repr__(self) -> str:
        return f"{SharedConfig.__name__} {self.to_json_string()}"


StoredConfig.__name__ = (
    "hf_share (give config=hf_share.inner_config(path, quantisation) or config=hf_share.subnet_config(path, "
    "...) in place of quantization_config=...)"
)


def _inner_dict(inner: Any) -> dict[str, Any]:
    if not isinstance(inner, dict) and not hasattr(inner, "to_dict"):
        raise ConfigError(f"the inner quantisation is a config or its dict, not {type(inner).__name__}")
    values = dict(inner) if isinstance(inner, dict) else inner.to_dict()
    if values.get("quant_method") == METHOD:
        raise PlanError("the inner quantisation cannot be hf_share itself")
    return values


@register_quantizer(METHOD)
class SharedQuantizer(HfQuantizer):
    """Attaches the plan of a checkpoint, and passes everything about numbers on to the inner quantizer, if
    there is one.
    """

    requires_calibration = False

    def __init__(self, quantization_config: SharedConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        inner = quantization_config.inner
        self.inner: HfQuantizer | None = None
        self.converters: list[WeightConverter] = []
        self.only_for_loading: list[Any] = []  # saving has ways of its own for guards and quantised weights
        self.trains = True
        if inner is not None:
            self.inner = _make_inner(copy.deepcopy(inner), kwargs)
        self.pre_quantized = self.inner.pre_quantized if self.inner else True

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = None, **kwargs: Any
    ) -> Any:
        plan = self.quantization_config.share_plan
        if self.inner is None:
            attach(model, plan)
        else:
            check(model, plan)
            arrange(model, plan)
            self.inner.preprocess_model(model, checkpoint_files=checkpoint_files, **kwargs)
            bind(model, plan)
        record = attached(model)
        _check_places(record, kwargs.get("device_map"))
        check_files(model, checkpoint_files)
        self.converters = [*_guard_converters(model, record), *_prefix_converters(model)]
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        done = {id(converter) for converter in self.only_for_loading}
        self.converters = self.only_for_loading = []
        kept = (c for c in model._weight_conversions or () if not isinstance(c, Shelter))
        model._weight_conversions = [c for c in kept if id(c) not in done]
        model.config.quantization_config = self.quantization_config.written()
        publish(model)
        record = attached(model)
        if record is not None and is_narrowed(record.plan):
            remember(model, ())
        if self.inner is not None:
            self.trains = not activations_quantised(model)
            model = self.inner._process_model_after_weight_loading(model, **kwargs)
            never_repack(model)  # stock adapters and trainers do not ask us before they train
            return model
        # left set, these make Trainer refuse full fine-tuning and `save_pretrained` ignore its state_dict
        # argument
        model.is_quantized = False
        for name in ("hf_quantizer", "quantization_method"):
            model.__dict__.pop(name, None)
        return model

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if self.inner:
            self.inner.validate_environment(*args, **kwargs)

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.inner.update_dtype(dtype) if self.inner else dtype

    def update_device_map(self, device_map: Any) -> Any:
        return self.inner.update_device_map(device_map) if self.inner else device_map

    def adjust_max_memory(self, max_memory: Any) -> Any:
        return self.inner.adjust_max_memory(max_memory) if self.inner else max_memory

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        outer = super().param_element_size
        return (
            self.inner.param_element_size(model, param_name, param)
            if self.inner
            else outer(model, param_name, param)
        )

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self.inner.param_needs_quantization(model, param_name, **kwargs) if self.inner else False

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        if any(isinstance(op, _TakePrefix) for op in getattr(converter, "operations", ())):
            return None  # a cast reads all of a tensor
        outer = super().get_new_dtype
        return (
            self.inner.get_new_dtype(converter, param, dtype)
            if self.inner
            else outer(converter, param, dtype)
        )

    def get_quantize_ops(self) -> Any:
        return self.inner.get_quantize_ops() if self.inner else super().get_quantize_ops()

    def get_weight_conversions(self) -> Any:
        return self.inner.get_weight_conversions() if self.inner else []

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        given, found = {id(c) for c in weight_conversions}, weight_conversions
        if self.inner is not None:
            found = self.inner.update_weight_conversions(weight_conversions, model)
        self.only_for_loading = [*self.converters, *(c for c in found if id(c) not in given)]
        return [*self.converters, *sheltered(found)]

    def get_state_dict_and_metadata(self, model: Any) -> tuple[Any, dict]:
        if self.inner is None:
            return None, {}
        state, metadata = self.inner.get_state_dict_and_metadata(model)
        state = model.state_dict() if state is None else state
        return to_file(model, drop_tied(model, state)), metadata

    def is_serializable(self) -> bool:
        return bool(self.inner.is_serializable()) if self.inner else True

    @property
    def is_trainable(self) -> bool:
        return bool(self.inner.is_trainable) and self.trains if self.inner else True

    @property
    def is_qat_trainable(self) -> bool:
        return bool(self.inner.is_qat_trainable) if self.inner else True

    @property
    def is_compileable(self) -> bool:
        return bool(self.inner.is_compileable) if self.inner else True


def _make_inner(values: dict[str, Any], kwargs: dict[str, Any]) -> HfQuantizer:
    written = bool(values.get(WRITTEN, False))
    return AutoHfQuantizer.from_config(_inner_config(values), **{**kwargs, "pre_quantized": written})


def _inner_config(values: dict[str, Any]) -> Any:
    try:
        return AutoQuantizationConfig.from_dict({k: v for k, v in values.items() if k != WRITTEN})
    except (ValueError, TypeError, AssertionError, KeyError) as error:
        raise ConfigError(f"the inner quantisation of this checkpoint: {error}") from None


class _TakeGuard(ConversionOps):
    """Of a guard and its placeholder in a file, the guard."""

    def convert(self, input_dict: dict, *args: Any, full_layer_name: str = "", **kwargs: Any) -> dict:
        lists = (value if isinstance(value, list) else [value] for value in input_dict.values())
        return {full_layer_name: max((t for found in lists for t in found), key=torch.numel)}


class _TakePrefix(ConversionOps):
    """Of a tensor of the whole model, the first part, which is what the model has room for. The tensor is a
    map of the file, of which only what is kept is read, unless it goes to another device.
    """

    def convert(
        self, input_dict: dict, *args: Any, full_layer_name: str = "", model: Any = None, **kwargs: Any
    ) -> dict:
        (value,) = input_dict.values()
        value = value[0] if isinstance(value, list) else value
        room = get_tensor(model, full_layer_name)
        return {full_layer_name: prefix_of(value, room.shape).to(room.dtype)}


def _prefix_converters(model: Any) -> list[WeightConverter]:
    out = []
    for own in sorted(cut_tensors(model)):
        for at in _starts(model):
            out.append(WeightConverter([f"^{re.escape(at + own)}$"], [at + own], [_TakePrefix()]))
    return out


def _starts(model: Any) -> list[str]:
    """What names in a file may begin with: the backbone's prefix here, none, or the one of its class."""
    return list(dict.fromkeys((prefix(model), "", f"{model.base_model_prefix}.")))


def _guard_converters(model: Any, record: Attached) -> list[WeightConverter]:
    """Read a guard where the model has its stock tensor, with or without the backbone's prefix in a file."""
    dot, out = prefix(model), []
    for stock, written in record.guards.items():
        for at in _starts(model):
            name, source = at + stock.removeprefix(dot), at + written.removeprefix(dot)
            patterns = [f"^{re.escape(name)}$", f"^{re.escape(source)}$"]
            out.append(WeightConverter(patterns, [name], [_TakeGuard()]))
    return out


def _check_places(record: Attached, device_map: Any) -> None:
    """accelerate gives a tied tensor one place; refuse a map that asks for two, before weights are read."""
    if not isinstance(device_map, dict):
        return
    for target, source in record.ties.items():
        places = [device_map[_longest(device_map, name)] for name in (target, source)]
        if str(places[0]) != str(places[1]):
            raise Refused(
                f"device_map puts {target!r} on {places[0]!r} and {source!r}, which is the same tensor, on "
                f"{places[1]!r}; give layers that share weights one place"
            )


def _longest(device_map: dict[str, Any], name: str) -> str:
    fits = [key for key in device_map if key == "" or name == key or name.startswith(f"{key}.")]
    if not fits:
        raise ConfigError(f"device_map has no place for {name!r}")
    return max(fits, key=len)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The plan in `config.json`, where `save_pretrained` keeps it and `from_pretrained` finds it."""

from __future__ import annotations

import copy
import os
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import ConfigError
from ..plan import SharePlan
from ..ties import attached
from .checkpoint import METHOD
from .load import adapter_base
from .publish import publish
from .quantizer import WRITTEN, SharedConfig, SharedQuantizer


def record_plan(model: nn.Module) -> None:
    """Write the model's plan into its config; nothing for a model stock code can run as it is."""
    record, config = attached(model), getattr(model, "config", None)
    if record is not None:
        publish(model)
    if record is None or config is None or not hasattr(config, "to_dict") or record.plan.is_plain:
        return
    config.quantization_config = SharedConfig(plan=record.plan, inner=_inner_of(model))
    _adopt_quantizer(model)


def _inner_of(model: Any) -> dict[str, Any] | None:
    """The quantisation a model has already: the inner one of ours, or one that was there before the plan."""
    now = getattr(model.config, "quantization_config", None)
    if now is None or isinstance(now, SharedConfig):
        return None if now is None else now.inner
    values = dict(now) if isinstance(now, dict) else now.to_dict()
    return values.get("inner") if values.get("quant_method") == METHOD else {**values, WRITTEN: True}


def _adopt_quantizer(model: Any) -> None:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not isinstance(quantizer, SharedQuantizer):
        model.hf_quantizer = SharedQuantizer(model.config.quantization_config)
        model.hf_quantizer.inner = quantizer


def inner_config(
    model: str | os.PathLike | PretrainedConfig,
    quantization_config: QuantizationConfigMixin | dict[str, Any],
    **kwargs: Any,
) -> PretrainedConfig:
    """The config with which `from_pretrained` quantises a shared checkpoint while it loads.

    transformers keeps one `quantization_config` for a checkpoint, and a shared one's holds the plan; passing
    another to `from_pretrained` is refused there. The quantisation of the numbers rides inside it instead:

        config = hf_share.inner_config(path, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
        model = AutoModelForCausalLM.from_pretrained(path, config=config)

    Tied layers are quantised and stay tied; what a rule stores stays in floating point. `save_pretrained`
    then writes the quantised weights, which load without this. Save before the first forward pass: on some
    CPUs bitsandbytes repacks 4-bit weights there, and what is saved afterwards has lost bits.

    Args:
        model: path or Hub id of a shared checkpoint, or its config.
        quantization_config: `BitsAndBytesConfig`, `TorchAoConfig`, or the dict of one.
        kwargs: for `AutoConfig.from_pretrained` (`revision`, `token`, ...).
    """
    given = isinstance(model, PretrainedConfig)
    config = copy.deepcopy(model) if given else AutoConfig.from_pretrained(model, **kwargs)
    outer: Any = getattr(config, "quantization_config", None)
    values = outer.to_dict() if hasattr(outer, "to_dict") else outer
    if not isinstance(values, dict) or values.get("quant_method") != METHOD:
        raise ConfigError("this is no shared checkpoint; pass quantization_config= to from_pretrained itself")
    if (values.get("inner") or {}).get(WRITTEN):
        raise ConfigError("this checkpoint's weights are quantised already; load it as it is")
    config.quantization_config = SharedConfig(plan=values.get("plan"), inner=quantization_config).to_dict()
    return config


def stored_plan(place: str) -> SharePlan | None:
    """The plan of the checkpoint or adapter at a folder or Hub id; None for a plain model, such as one whose
    plan only left layers out.
    """
    if adapter_base(place) is not None:
        config: Any = PeftConfig.from_pretrained(place)
        return getattr(config, "_plan", None)
    values: Any = getattr(AutoConfig.from_pretrained(place), "quantization_config", None)
    values = values.to_dict() if hasattr(values, "to_dict") else values
    if not isinstance(values, dict) or values.get("quant_method") != METHOD:
        return None
    return SharePlan.from_dict(values["plan"])

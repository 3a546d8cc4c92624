# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A model from its config alone, on the meta device: every shape, no weight is read."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn

from .attach import attach
from .errors import ConfigError, Refused, unknown
from .hub.checkpoint import METHOD
from .hub.quantizer import SharedConfig
from .ties import attached


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_on_meta(source: Any, dtype: str | None = None) -> nn.Module:
    """The model of `source` (a transformers model or config) on the meta device, shared if `source` is.

    Args:
        dtype: float32, bfloat16 or float16; if None that of the model, or the one the config names, or
            bfloat16.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, ConfigError)
    plan, kind, chosen = None, None, DTYPES.get(dtype or "")
    if isinstance(source, nn.Module):
        if hasattr(source, "peft_config"):
            raise ConfigError("the model carries adapters; give the model without them, or its config")
        record = attached(source)
        plan = record.plan if record else None
        kind, chosen = type(source), chosen or getattr(source, "dtype", None)
        source = getattr(source, "config", None)
    if not isinstance(source, transformers.PreTrainedConfig):
        raise ConfigError("shapes are built from a transformers model or its config")
    config = copy.deepcopy(source)
    stored = _stored_plan(config)
    model = _build(kind or _class_of(config), config, chosen or _own_dtype(config))
    return model if plan is stored is None else attach(model, plan or stored)


def _own_dtype(config: Any) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def _stored_plan(config: Any) -> Any:
    """The plan a shared checkpoint's config carries, which is taken out of it."""
    found = config.__dict__.pop("quantization_config", None)
    if found is None:
        return None
    found = found if isinstance(found, dict) else found.to_dict()
    if found.get("quant_method") != METHOD or found.get("inner") is not None:
        raise Refused("the config is of a quantised checkpoint; give the one it was made from, and bits=")
    return SharedConfig(**found).share_plan


def _class_of(config: Any) -> Any:
    """The class the config names, or None."""
    name = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, name, None) if name else None


def _build(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        if kind is not None:
            return kind._from_config(config, dtype=dtype)
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        return auto.from_config(config, dtype=dtype)

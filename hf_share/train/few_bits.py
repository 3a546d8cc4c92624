# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A frozen base in few bits for an adapter to train over: bitsandbytes' NF4 or int8, made while it loads.

Gradients pass through the frozen weights to the adapter; the weights themselves have none, so what trains all
of them, or has to read them as numbers, is refused by name where it is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, BitsAndBytesConfig

from ..errors import ConfigError
from ..eval.causal import load_causal
from ..guards import never_repack
from ..hub.checkpoint import METHOD
from ..hub.load import QUANTS
from ..hub.record import inner_config


BITS = {4: "nf4", 8: "int8"}  # 0 leaves the weights as they are


def require_bits(bits: int) -> None:
    """Raise `ConfigError` unless there are weights of so many bits."""
    if bits and bits not in BITS:
        raise ConfigError(f"bits={bits}; 4 (nf4) or 8 (int8) fits, or 0 for weights as they are stored")


def load_frozen(
    place: str, context: int, bits: int = 0, compute: torch.dtype | None = None, **options: Any
) -> Any:
    """The causal language model at `place`, dense or shared, with its linear weights in `bits`; 0 leaves them
    as they are.

    Args:
        compute: what weights of four bits are multiplied in; what the model is stored in if None.
        options: more for `from_pretrained`.

    Raises:
        ConfigError: if the checkpoint is quantised already.
    """
    if not bits:
        return load_causal(place, context, **options)
    model = load_causal(place, context, **options, **_quantised(place, bits, compute))
    never_repack(model)  # it is measured before it trains
    return model


def _quantised(place: str, bits: int, compute: torch.dtype | None) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(place)
    found = getattr(config, "quantization_config", None) or {}
    if found and (found.get("quant_method") != METHOD or found.get("inner")):
        raise ConfigError(f"bits={bits}: the weights of {place} are quantised already; leave out bits")
    numbers = dict(QUANTS[BITS[bits]])
    if bits == 4:
        numbers["bnb_4bit_compute_dtype"] = compute or getattr(config, "dtype", None) or torch.float32
    asked = BitsAndBytesConfig(**numbers)
    key, value = ("config", inner_config(config, asked)) if found else ("quantization_config", asked)
    options: dict[str, Any] = {key: value}
    if torch.accelerator.is_available():
        options["device_map"] = {"": PartialState().device}  # of several processes each on its own
    return options

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The config of an arranged model, and a fresh build of its class on the meta device.

The fresh build is what `from_pretrained` will make of the saved config. It is compared with the arranged
model before anything is changed, it lends its configs, and it is the model on which a later method looks for
its sites.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .errors import Refused, SiteError, unknown
from .sites import Stack, depth_key, stacks
from .steps import Arrange


# Config lists with one entry a layer; each depth has that of the layer it stands for.
LAYER_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "attention_layers",
    "layers_block_type",
    "block_types",
    "num_attention_heads_per_layer",
    "layer_rope_theta",
    "intermediate_size",
)

# Config lists whose length has nothing to do with depth.
OTHER_LISTS = (
    "architectures",
    "eos_token_id",
    "bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "attention_types",  # runs of layers, spelled anew below
)


def find_stack(model: nn.Module, step: Arrange) -> Stack:
    found = stacks(model)
    if step.stack not in found:
        raise unknown("stack", step.stack, found, SiteError)
    return found[step.stack]


def rebuild(model: nn.Module, steps: tuple[Arrange, ...]) -> nn.Module | None:
    """A fresh build of the model's class on the meta device, with the config the steps leave; None for a
    custom module.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(type(model), "from_pretrained") or not hasattr(config, "to_dict"):
        return None
    with torch.device("meta"):
        fresh = type(model)(arranged_config(model, steps))
    _leave_out(fresh, model)
    return fresh


def _leave_out(fresh: nn.Module, model: nn.Module) -> None:
    """Take out what the model was built without (a pooler), which its config does not say."""
    held = dict(model.named_modules())
    for path, module in list(fresh.named_modules()):
        for name, child in module._modules.items():
            if path in held and getattr(held[path], name, child) is None:
                module._modules[name] = None


def arranged_config(model: nn.Module, steps: tuple[Arrange, ...]) -> Any:
    """A copy of the model's config in which depths count visits and per-layer lists follow the layers that
    the depths stand for.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    found = stacks(model)
    for step in steps:
        if step.roles != "all":
            continue
        stack = found[step.stack]
        place = depth_key(model, stack)
        if place is None:
            if len(step.order) == stack.depth:
                continue
            raise Refused(
                f"stack {step.stack!r}: no key of {type(config).__name__} counts its {stack.depth} layers, "
                "so its depth cannot be changed; tie layers without removing any"
            )
        _set_depth(config, place, step)
    _require_readable(config)
    return config


def _require_readable(config: Any) -> None:
    """A config that its own class would not read back must not be written."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:
        raise Refused(f"{type(config).__name__} cannot be written with the new depth: {error}") from error


def _set_depth(config: Any, place: tuple[tuple[str, ...], str], step: Arrange) -> None:
    where, key = place
    for name in where:
        config = getattr(config, name)
    old = getattr(config, key)
    for name, value in list(config.__dict__.items()):
        if (
            not isinstance(value, (list, tuple))
            or len(value) != old
            or name.startswith("_")
            or name in OTHER_LISTS
        ):
            continue
        if name not in LAYER_LISTS:
            raise Refused(
                f"stack {step.stack!r}: config list {name!r} has {old} entries, as many as there are layers, "
                "and hf_share does not know whether it belongs to them"
            )
        setattr(config, name, [value[layer] for layer in step.members])  # its kind is no weight
    if "attention_types" in config.__dict__:  # GPT-Neo writes its list as runs, and reads only those back
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    mirrors = [k for k in ("num_hidden_layers", "num_layers", "n_layer") if config.__dict__.get(k) == old]
    if key in ("decoder_layers", "num_decoder_layers"):
        mirrors = []
    for name in {key, *mirrors}:
        if name == "num_layers" and key != "num_layers" and "num_decoder_layers" in config.__dict__:
            continue
        setattr(config, name, len(step.order))

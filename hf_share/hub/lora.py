# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Any low-rank adapter as a plain peft LoRA, which vLLM, LoRAX and stock peft serve without hf_share.

Shared factors are written once for each layer, so the LoRA folder is larger; the function is the same. The
scale is folded into B and `lora_alpha = r`, so that LoRA's own factor is 1.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, Refused, unknown
from .layer import ShareLayer


def to_lora(
    model: Any, path: str | os.PathLike | None = None, adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter `adapter_name` of a peft model as a LoRA config and its state dict; saved to `path` if
    given.

    Load it with `PeftModel.from_pretrained(base, path)`, no import of hf_share needed. If the adapter also
    changed the structure of the base, the LoRA fits the changed base: publish it beside `materialize`'s
    model.

    Raises:
        Refused: if a rule of the adapter is not low-rank.
    """
    if not hasattr(model, "peft_config"):
        raise ConfigError(
            "to_lora takes a peft model; share's additive rules can be merged with materialize instead"
        )
    if adapter_name not in model.peft_config:
        raise unknown("adapter", adapter_name, model.peft_config, ConfigError)
    base = model.get_base_model()
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = []
    for name, layer in base.named_modules():
        if isinstance(layer, ShareLayer) and adapter_name in layer.bindings:
            A, B = _factors(layer, adapter_name, name)
            ranks[name] = A.shape[0]
            transposed.append(type(layer.get_base_layer()).__name__ == "Conv1D")
            state[f"base_model.model.{name}.lora_A.weight"] = A.detach().cpu().contiguous()
            state[f"base_model.model.{name}.lora_B.weight"] = B.detach().cpu().contiguous()
    config = _config(model, adapter_name, ranks, all(transposed))
    if path is not None:
        _save(config, state, os.fspath(path))
    return config, state


def _factors(layer: ShareLayer, adapter: str, name: str) -> tuple[Tensor, Tensor]:
    pairs = []
    for binding in layer.bindings[adapter]:
        pair = binding.rule.factors(layer.tensors(binding, adapter))
        if pair is None:
            raise Refused(f"site {name!r}: rule {binding.rule.name!r} is not low-rank, so it is no LoRA")
        A, B = pair
        pairs.append((A, B if binding.site.part is None else binding.site.part.place(B.mT).mT))
    return torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], dim=1)


def _config(model: nn.Module, adapter: str, ranks: dict[str, int], transposed: bool) -> LoraConfig:
    own = model.peft_config[adapter]
    if not ranks:
        raise ConfigError(f"adapter {adapter!r} adds no weights, so there is nothing to make a LoRA of")
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    pattern = {name: rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=common,
        target_modules=sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        fan_in_fan_out=transposed,
        task_type=own.task_type,
        base_model_name_or_path=own.base_model_name_or_path,
        inference_mode=True,
    )


def _save(config: LoraConfig, state: dict[str, Tensor], path: str) -> None:
    os.makedirs(path, exist_ok=True)
    part = os.path.join(path, "adapter_model.safetensors.part")
    save_file(state, part, metadata={"format": "pt"})
    os.replace(part, os.path.join(path, "adapter_model.safetensors"))
    config.save_pretrained(path)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Any low-rank adapter as a plain peft LoRA, which vLLM, LoRAX and stock peft serve without hf_share.

Shared factors are written once for each layer, so the LoRA folder is larger; the function is the same. The
scale is folded into B and `lora_alpha = r`, so that LoRA's own factor is 1. Of an elastic adapter the active
ranks are written; those that differ from the most common one stand in `rank_pattern` and `alpha_pattern`,
whose keys are regexes that fit one module each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from ..binding import Binding
from ..errors import ConfigError, Refused, unknown
from ..modules import Share
from ..rules import step_rule
from ..steps import Generate
from ..ties import attached
from .layer import ShareLayer


def to_lora(
    model: Any, path: str | os.PathLike | None = None, adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter `adapter_name` of a peft model as a LoRA config and its state dict, at its active ranks;
    saved to `path` if given.

    Load it with `PeftModel.from_pretrained(base, path)`, no import of hf_share needed. If the adapter also
    changed the structure of the base, the LoRA fits the changed base: publish it beside `materialize`'s
    model.

    A model that `share` added low-rank deltas to and nothing else, such as `ElasticConfig(preset="nls")`,
    becomes a LoRA, too. It fits the model that was shared if that model's own weights were not trained
    since, which nothing here can see.

    Raises:
        ConfigError: if there is no such adapter, or nothing that adds to weights.
        Refused: if a rule is not low-rank, or a plan changes what the base is.
    """
    adapted = hasattr(model, "peft_config")
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed = []
    for name, base, bindings, formed in _adapter(model, adapter_name) if adapted else _deltas(model):
        A, B = _factors(name, bindings, formed)
        ranks[name] = A.shape[0]
        transposed.append(type(base).__name__ == "Conv1D")
        state[f"base_model.model.{name}.lora_A.weight"] = A.detach().cpu().contiguous()
        state[f"base_model.model.{name}.lora_B.weight"] = B.detach().cpu().contiguous()
    if not ranks:
        raise ConfigError(f"adapter {adapter_name!r} adds no weights, so there is nothing to make a LoRA of")
    config = _config(ranks, all(transposed), _told(model.peft_config[adapter_name]) if adapted else {})
    if path is not None:
        _save(config, state, os.fspath(path))
    return config, state


# a module's name, the module that has the base's weight, what is bound there, and what a binding forms
Found = tuple[str, nn.Module, list[Binding], Callable[[Binding], Mapping[str, Tensor]]]


def _adapter(model: Any, adapter: str) -> Iterator[Found]:
    if adapter not in model.peft_config:
        raise unknown("adapter", adapter, model.peft_config, ConfigError)
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, ShareLayer) and adapter in layer.bindings:
            formed = partial(layer.tensors, adapter=adapter)
            yield name, layer.get_base_layer(), layer.bindings[adapter], formed


def _deltas(model: nn.Module) -> Iterator[Found]:
    """What rules add to the weights of a model that is as it was but for that."""
    record = attached(model)
    if record is None:
        raise ConfigError("to_lora takes a peft model, or a model that hf_share.share added deltas to")
    for step in record.plan.steps:
        if not isinstance(step, Generate) or step_rule(step).kind != "add":
            what = f"rule {step.rule!r}" if isinstance(step, Generate) else type(step).__name__
            raise Refused(
                "a LoRA is deltas on a base that stays as it was, and this is a whole model, whose plan "
                f"makes or changes weights ({what}); hf_share.materialize, or --format dense, makes it plain"
            )
    for name, module in model.named_modules():
        share = module._modules.get("share")
        if isinstance(share, Share):
            yield name, module, share.bindings, share.tensors


def _factors(
    name: str, bindings: list[Binding], formed: Callable[[Binding], Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    pairs = []
    for binding in bindings:
        pair = binding.rule.factors(formed(binding))
        if pair is None:
            raise Refused(
                f"site {name!r}: rule {binding.rule.name!r} is not low-rank, so it is no LoRA; "
                "merge_and_unload puts it into the weights"
            )
        A, B = pair
        pairs.append((A, B if binding.site.part is None else binding.site.part.place(B.mT).mT))
    return torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], dim=1)


def _told(own: Any) -> dict[str, Any]:
    return {"task_type": own.task_type, "base_model_name_or_path": own.base_model_name_or_path}


def _config(ranks: dict[str, int], transposed: bool, told: dict[str, Any]) -> LoraConfig:
    common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    # peft reads keys as regexes, which may begin after any dot of a path
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=common,
        target_modules=sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        fan_in_fan_out=transposed,
        inference_mode=True,
        **told,
    )


def _save(config: LoraConfig, state: dict[str, Tensor], path: str) -> None:
    os.makedirs(path, exist_ok=True)
    part = os.path.join(path, "adapter_model.safetensors.part")
    save_file(state, part, metadata={"format": "pt"})
    os.replace(part, os.path.join(path, "adapter_model.safetensors"))
    config.save_pretrained(path)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Any low-rank adapter as a plain peft LoRA, which vLLM, LoRAX and stock peft serve without hf_share.

Shared factors are written once for each layer, so the LoRA folder is larger; the function is the same. A
scale s that is one for all weights becomes `lora_alpha = s r`; scales that differ are folded into B, and
`lora_alpha = r`. So `lora_alpha / r` is right for every weight, even where a reader knows no patterns. Of an
elastic adapter the active ranks are written; those that differ from the most common one stand in
`rank_pattern` and `alpha_pattern`, whose keys are regexes that fit one module each.
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
    if adapted and getattr(model.peft_config.get(adapter_name), "modules_to_save", None):
        raise Refused(
            f"adapter {adapter_name!r} trained whole modules, too "
            f"({', '.join(model.peft_config[adapter_name].modules_to_save)}), which a LoRA made here would "
            "lose; use merge_and_unload(), which keeps them"
        )
    factors: dict[str, list[Scaled]] = {}
    transposed = []
    for name, base, bindings, formed in added(model, adapter_name):
        factors[name] = [_factors(name, binding, formed(binding)) for binding in bindings]
        transposed.append(type(base).__name__ == "Conv1D")
    if not factors:
        raise ConfigError(f"adapter {adapter_name!r} adds no weights, so there is nothing to make a LoRA of")
    scales = {s for found in factors.values() for _, _, s in found}
    scale = scales.pop() if len(scales) == 1 else 1.0
    state: dict[str, Tensor] = {}
    for name, found in factors.items():
        A = torch.cat([A for A, _, _ in found])
        B = torch.cat([B if s == scale else B * s for _, B, s in found], dim=1)
        for key, factor in zip(keys(name), (A, B), strict=True):
            state[key] = factor.detach().cpu().contiguous()
    ranks = {name: sum(len(A) for A, _, _ in found) for name, found in factors.items()}
    config = _config(ranks, scale, all(transposed), _told(model.peft_config[adapter_name]) if adapted else {})
    if path is not None:
        _save(config, state, os.fspath(path))
    return config, state


# a module's name, the module that has the base's weight, what is bound there, and what a binding forms
Found = tuple[str, nn.Module, list[Binding], Callable[[Binding], Mapping[str, Tensor]]]
Scaled = tuple[Tensor, Tensor, float]  # A (r, in), B (out, r) and s, of the delta s B A of a whole module


def keys(name: str) -> tuple[str, str]:
    """What A and B of the module `name` are called in a LoRA's file."""
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def added(model: Any, adapter_name: str = "default") -> Iterator[Found]:
    """What an adapter of a peft model has at each module, or else what rules of the model itself have."""
    return _adapter(model, adapter_name) if hasattr(model, "peft_config") else _shared(model)


def _adapter(model: Any, adapter: str) -> Iterator[Found]:
    if adapter not in model.peft_config:
        raise unknown("adapter", adapter, model.peft_config, ConfigError)
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, ShareLayer) and adapter in layer.bindings:
            formed = partial(layer.tensors, adapter=adapter)
            yield name, layer.get_base_layer(), layer.bindings[adapter], formed


def _require_deltas(model: nn.Module) -> None:
    """Raise unless rules add to the weights of `model` and do nothing else."""
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


def _shared(model: nn.Module) -> Iterator[Found]:
    _require_deltas(model)
    for name, module in model.named_modules():
        share = module._modules.get("share")
        if isinstance(share, Share):
            yield name, module, share.bindings, share.tensors


def _factors(name: str, binding: Binding, formed: Mapping[str, Tensor]) -> Scaled:
    found = binding.rule.scaled_factors(formed)
    if found is None:
        raise Refused(
            f"site {name!r}: rule {binding.rule.name!r} is not low-rank, so it is no LoRA; merge_and_unload "
            "puts it into the weights"
        )
    A, B, s = found
    return A, B if binding.site.part is None else binding.site.part.place(B.mT).mT, s


def _told(own: Any) -> dict[str, Any]:
    return {"task_type": own.task_type, "base_model_name_or_path": own.base_model_name_or_path}


def _config(ranks: dict[str, int], scale: float, transposed: bool, told: dict[str, Any]) -> LoraConfig:
    common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    # peft reads keys as regexes, which may begin after any dot of a path
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=_alpha(scale, common),
        target_modules=sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern={key: _alpha(scale, rank) for key, rank in pattern.items()},
        fan_in_fan_out=transposed,
        inference_mode=True,
        **told,
    )


def _alpha(scale: float, rank: int) -> Any:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _save(config: LoraConfig, state: dict[str, Tensor], path: str) -> None:
    os.makedirs(path, exist_ok=True)
    part = os.path.join(path, "adapter_model.safetensors.part")
    save_file(state, part, metadata={"format": "pt"})
    os.replace(part, os.path.join(path, "adapter_model.safetensors"))
    config.save_pretrained(path)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Guard rails for training over quantised weights, whose forward may be right and whose backward may not.

Two cases are known and dealt with unasked. bitsandbytes repacks 4-bit weights for CPUs with AVX512-BF16 at
the first forward pass that needs no gradient, and a later backward reads the packed bytes as if they were
not (cosine 0.5 to the true gradient). So every model that is shared, loaded or adapted here is kept from it,
whoever trains it then. torchao's configs that quantise activations, too, return gradients of something else
(0.3), or none. `check_backend_gradients` finds out about any other case.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, Refused


LEAST_COSINE = 0.999
_OF_ACTIVATIONS = ("act_quant_kwargs", "activation_quantization", "input_quant_func")  # torchao's tensors


def require_whole(model: nn.Module) -> None:
    """Raise `Refused` for a model some of whose weights accelerate keeps elsewhere (`device_map` with "cpu"
    or "disk"): they are put in for each pass and looked up by their old names, so a change of them is lost.
    """
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        hooks = getattr(hook, "hooks", (hook,))
        if any(getattr(h, "offload", False) for h in hooks) and any(p.is_meta for p in module.parameters()):
            raise Refused(
                f"{name or type(model).__name__} is offloaded (device_map), and what is changed in such a "
                "model is lost; load it whole: device_map=None, in the memory of the CPU"
            )


def ready_to_train(model: nn.Module) -> None:
    """Keep 4-bit weights as they are, and refuse weights that gradients do not come through.

    Raises:
        Refused: if a backend quantises activations; nothing is changed then.
    """
    found = activations_quantised(model)
    if found:
        raise Refused(
            f"{found[0]!r} and {len(found) - 1} more quantise their activations, and gradients through them "
            "are wrong. Train over weights that are quantised alone, such as torchao's "
            "Int8WeightOnlyConfig, and quantise activations in what you deploy"
        )
    never_repack(model)


def activations_quantised(model: nn.Module) -> list[str]:
    """Names of modules whose weights say that activations are to be quantised before they meet them."""
    return [
        name
        for name, module in model.named_modules()
        if any(getattr(module._parameters.get("weight"), key, None) is not None for key in _OF_ACTIVATIONS)
    ]


def never_repack(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for CPUs with AVX512-BF16 at the first forward pass that
    needs no gradient: no gradient comes back through packed weights, or a wrong one, a file written then has
    lost bits, and shapes that do not fill its blocks fail an assertion. Such a CPU decodes slower without it:
    14 tokens a second instead of 47 with eight layers of width 1024 in bf16.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # unpacks in place
            module.support_avx512bf16_for_cpu = False


@contextmanager
def left_packed(model: nn.Module) -> Iterator[None]:
    """Inside, `state_dict` leaves weights that bitsandbytes has repacked as they are: unpacking them loses
    bits.
    """
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    packed: Any = [s for s in states if getattr(s, "packing_format_for_cpu", False)]
    for state in packed:
        state.packing_format_for_cpu = False
    try:
        yield
    finally:
        for state in packed:
            state.packing_format_for_cpu = True


def check_backend_gradients(
    model: nn.Module, batch: Mapping[str, Any], least: float = LEAST_COSINE
) -> dict[str, float]:
    """Compare the gradients of everything that trains in `model` with those over dequantised weights, after
    a forward pass in evaluation mode, as training with evaluations has them.

    The model is copied with dense weights, so this takes the memory of both.

    Args:
        batch: inputs of the model, with labels.
        least: the smallest cosine between two gradients of one tensor that passes.

    Returns:
        The cosine by the tensor's name. Tensors without a gradient on either side (A while B is zero) are
        left out.

    Raises:
        Refused: with names and cosines, if a gradient points elsewhere or is missing.

    Example:
        >>> check_backend_gradients(peft_model, {"input_ids": ids, "labels": ids})  # doctest: +SKIP
    """
    if "labels" not in batch:
        raise ConfigError(f"the batch needs labels, to have a loss; it has {', '.join(batch) or 'nothing'}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("nothing trains in this model; add an adapter first")
    true = _gradients(_dequantised(model), batch)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(**batch)
        found = _gradients(model, batch)
    finally:
        for module, training in modes.items():
            module.training = training
    cosines = {name: _cosine(found[name], true[name]) for name in true if _any(found[name], true[name])}
    if not cosines:
        raise Refused("every gradient is zero, so nothing can be compared; give adapters a start that is not")
    wrong = {name: c for name, c in sorted(cosines.items(), key=lambda item: item[1]) if not c >= least}
    if wrong:
        shown = ", ".join(f"{name} {cosine:.3f}" for name, cosine in list(wrong.items())[:6])
        raise Refused(
            f"{len(wrong)} of {len(cosines)} gradients are not those over dequantised weights: cosine below "
            f"{least} for {shown}{', ...' if len(wrong) > 6 else ''}. The backend of "
            f"{', '.join(_backends(model))} cannot be trained over here; use another one, or dense weights"
        )
    return cosines


def _gradients(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """In training mode, with the dropout of a fixed seed; `.grad` is left alone."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        loss = model(**batch).loss
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, grads, strict=True))


@torch.no_grad()
def _dequantised(model: nn.Module) -> nn.Module:
    """A copy with plain linear layers in place of quantised ones."""
    whole = copy.deepcopy(model)
    never_repack(whole)
    dtype = getattr(model, "dtype", torch.float32)
    for name, module in list(_quantised(whole)):
        parent, _, leaf = name.rpartition(".")
        setattr(whole.get_submodule(parent), leaf, _plain(module, dtype))
    return whole


def _plain(module: Any, dtype: torch.dtype) -> nn.Linear:
    """The linear layer that a quantised one stands for: what its own forward makes of the unit vectors."""
    device = next(iter((*module.parameters(False), *module.buffers(False)))).device
    bias = getattr(module, "bias", None)
    rows = module.train().forward(torch.eye(module.in_features, dtype=dtype, device=device))  # without hooks
    rows = rows if bias is None else rows - bias.to(rows.dtype)
    new = nn.Linear(*reversed(rows.mT.shape), bias=False, device="meta")
    new.weight = nn.Parameter(rows.mT.to(dtype).contiguous(), requires_grad=False)
    new.bias = bias
    new._modules, new._forward_hooks = module._modules, module._forward_hooks  # rules that add to it
    return new


def _quantised(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear modules whose weight is no plain floating-point Parameter."""
    for name, module in model.named_modules():
        own = (*module._parameters.values(), *module._buffers.values())
        if not hasattr(module, "in_features") or hasattr(module, "share_kind") or not own:
            continue
        weight = module._parameters.get("weight")
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            yield name, module


def _backends(model: nn.Module) -> list[str]:
    def kind(module: nn.Module) -> str:
        weight = module._parameters.get("weight")
        return type(module).__name__ if weight is None else f"{type(module).__name__}/{type(weight).__name__}"

    return sorted({kind(module) for _, module in _quantised(model)})


def _any(one: Tensor | None, two: Tensor | None) -> bool:
    return any(g is not None and bool(g.any()) for g in (one, two))


def _cosine(one: Tensor | None, two: Tensor | None) -> float:
    if one is None or two is None:
        return 0.0
    return float(F.cosine_similarity(one.double().flatten(), two.double().flatten(), dim=0, eps=0.0))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Back to a plain model of the stock architecture: every weight its own, no trace of hf_share.

The plain model computes the same function and loads without hf_share (vLLM, GGUF converters, plain
transformers). It is
larger: each visit of a shared weight becomes a weight.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from . import arrange as _arrange
from . import depths
from .errors import Refused
from .guards import require_whole
from .modules import Share, SharedLinear, ZeroSublayer, add_share, limit_inputs, linear_weight
from .per_layer import cut_by_layer
from .plain_lanes import make_lanes_plain
from .rebuild import rebuild
from .sites import STORES, backbone, resolve, weight_kind
from .steps import Arrange
from .ties import attached, get_tensor, owner, undeclare


def materialize(model: nn.Module, dequantize: bool = False, per_layer: bool = False) -> nn.Module:
    """A plain copy of a shared model, as a stock class with a stock config.

    Args:
        model: a shared model; a plain model is returned as a copy. A peft model is refused: use its
            `merge_and_unload()`, which gives a plain model too.
        dequantize: also turn quantised weights into plain ones; without it a quantised model is refused,
            since its dense form is several times larger.
        per_layer: give every layer its own sizes, said by `config.per_layer_config`, where a stock class has
            one size for all and this fills up with zeros. Such a model loads by
            `per_layer_class(LlamaForCausalLM)`, until transformers' own classes read that config.

    Raises:
        Refused: for a peft model, for a quantised one without `dequantize`, or if the config has no word for
            a size with `per_layer`.
    """
    if hasattr(model, "peft_config"):
        raise Refused(
            "this model carries adapters; merge_and_unload() gives the plain model with them merged in"
        )
    require_whole(model)
    if getattr(model, "hf_quantizer", None) is not None:
        if not dequantize:
            raise Refused(
                "this model is quantised; its dense form is several times larger: "
                "materialize(model, dequantize=True)"
            )
        model = copy.deepcopy(model)
        return make_plain(model.dequantize(), per_layer)
    return make_plain(copy.deepcopy(model), per_layer)


def make_plain(model: Any, per_layer: bool = False) -> nn.Module:
    """Make a shared model plain in place: form dense weights, untie, and remove stores, hooks and
    declarations.
    """
    record = attached(model)
    if record is None:
        return model
    ties = record.ties
    undeclare(model)
    _fill_zero_sublayers(model)
    for module in list(backbone(model).modules()):
        _merge_share(module)
    _replace_shared_linears(backbone(model))
    for target, source in ties.items():
        _untie(model, target, source)
    if hasattr(backbone(model), STORES):
        delattr(backbone(model), STORES)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    depths.restore(model, record.plan)
    lanes = make_lanes_plain(model, record.plan)
    _leave_out_inactive(model, record.plan.arranges)
    if lanes and per_layer:
        cut_by_layer(model, record.plan, lanes)
    return model


def _leave_out_inactive(model: nn.Module, steps: tuple[Arrange, ...]) -> None:
    """A plain model has no choices: depths that are not active are gone."""
    active = [(s.stack, s.running, len(s.order)) for s in steps if not s.is_whole]
    kept = tuple(Arrange(stack=path, order=order, depth=depth) for path, order, depth in active)
    for step in kept:
        _arrange.check(model, step, "source")
    _arrange.check_cache(model, kept)
    _arrange.apply(model, kept)


@torch.no_grad()
def _untie(model: nn.Module, target: str, source: str) -> None:
    try:
        module, leaf = owner(model, target)
        value = get_tensor(model, target)
    except ValueError:
        return  # a weight that a rule replaced
    if value is not get_tensor(model, source):
        return  # merged into since: it is its own already
    if leaf in module._buffers:
        module._buffers[leaf] = value.detach().clone()
    else:
        module._parameters[leaf] = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)


@torch.no_grad()
def _merge_share(module: Any) -> None:
    share = module._modules.get("share")
    if not isinstance(share, Share) or isinstance(module, SharedLinear):
        return
    weight = module.weight
    if not weight.dtype.is_floating_point:
        raise Refused("a quantised weight carries a rule; materialize(model, dequantize=True) first")
    own = linear_weight(module).float()
    merged = (own + share.weight(own).float()).to(weight.dtype)
    merged = merged.mT.contiguous() if weight_kind(module) == "conv1d" else merged
    module.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
    del module._modules["share"]
    for hooks, ours in ((module._forward_hooks, add_share), (module._forward_pre_hooks, limit_inputs)):
        for key in [k for k, hook in hooks.items() if hook is ours]:
            del hooks[key]


@torch.no_grad()
def _replace_shared_linears(base: nn.Module) -> None:
    floating = (p.dtype for p in base.parameters() if p.is_floating_point())
    dtype = next(floating, torch.get_default_dtype())
    for path, module in list(base.named_modules()):
        if not isinstance(module, SharedLinear):
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(resolve(base, parent), leaf, _plain_linear(module, dtype))


def _plain_linear(module: SharedLinear, dtype: torch.dtype) -> nn.Module:
    conv1d = module.stood is Conv1D
    # a subclass that is built as Linear is (Falcon's); a quantiser's is not, and its numbers are dense now
    own = issubclass(module.stood, nn.Linear) and module.stood.__init__ is nn.Linear.__init__
    kind = module.stood if own else nn.Linear
    with torch.device("meta"):
        if conv1d:
            plain: nn.Module = Conv1D(module.out_features, module.in_features)
        else:
            plain = kind(module.in_features, module.out_features, bias=module.bias is not None)
    weight = module.weight.detach()
    if any(binding.rule.frozen for binding in module.share.bindings):
        weight = weight.to(dtype)  # as each pass casts it to the type of its input
    plain.weight = nn.Parameter(weight.mT.contiguous() if conv1d else weight.clone())
    if module.bias is not None:
        plain.bias = module.bias
    return plain.train(module.training)


def _fill_zero_sublayers(model: nn.Module) -> None:
    """A stock layer has its sub-layer: put a fresh one in with all weights zero, which adds exactly
    nothing.
    """
    zeros = [path for path, module in model.named_modules() if isinstance(module, ZeroSublayer)]
    if not zeros:
        return
    fresh = rebuild(model, ())
    if fresh is None:
        raise Refused("sub-layers were removed from a custom module, whose stock form is not known")
    like = next(p for p in model.parameters() if p.is_floating_point())
    for path in zeros:
        module = fresh.get_submodule(path).to_empty(device=like.device).to(like.dtype)
        for tensor in (*module.parameters(), *module.buffers()):
            torch.nn.init.zeros_(tensor.data)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.train(model.training))

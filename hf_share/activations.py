# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step keeps between forward and backward, without running it.

The model runs on the meta device, where tensors have shapes and no memory, and everything autograd saves is
counted once for each storage; parameters are not. So a method that trains less, or that makes weights on the
way, is counted as it is. Attention counts as PyTorch's fused kernel, which keeps queries, keys, values, the
output and one number for each row, and no table of length x length. With checkpointing of L layers

    activations = L x a layer's input + max(what the largest layer saves, what is saved outside the layers)

since the head's part is gone when the first layer runs again. It is an estimate: workspaces, fragmentation,
the gradients that backward holds on its way and communication buffers come on top.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .sites import stacks


class _Attention(torch.autograd.Function):
    """Saves what a fused kernel saves; on meta there are no values to compute."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it
        row = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, row, mask)
        return out


class _Fused(TorchFunctionMode):
    """The meta device by itself would take the kernel that keeps the table of length x length, and could not
    say whether rows are padded or packed: they are whole.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.all and len(args) == 1 and not kwargs and args[0].is_meta:
            return torch.ones((), dtype=torch.bool, device="cpu")  # no row is packed
        if func is torch.Tensor.__contains__ and args[0].is_meta:
            return False  # no padding token
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(_arguments).bind(*args, **(kwargs or {})).arguments
        return _Attention.apply(given["query"], given["key"], given["value"], given.get("attn_mask"))


def _arguments(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **more: Any) -> None:
    """The arguments of `scaled_dot_product_attention` that are tensors."""


class Ledger:
    """Bytes that autograd saves, in all and for each layer."""

    def __init__(self, held: list[Tensor]):
        self.seen: dict[Any, Tensor] = {_storage(t): t for t in held}
        self.total = 0
        self.started: dict[nn.Module, int] = {}
        self.inputs: list[int] = []
        self.layers: list[int] = []

    def save(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self.seen:
            self.seen[key] = tensor  # kept alive, or its storage's address would come again
            self.total += tensor.untyped_storage().nbytes()
        return tensor

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        self.inputs.append(hidden.numel() * hidden.element_size())
        self.started[layer] = self.total

    def leave(self, layer: nn.Module, *_: Any) -> None:
        self.layers.append(self.total - self.started[layer])

    def kept(self, checkpointing: bool) -> int:
        if not checkpointing:
            return self.total
        outside = self.total - sum(self.layers)
        return sum(self.inputs) + max(outside, *self.layers, 0)


def activation_bytes(model: Any, batch: int, length: int, *, checkpointing: bool = False) -> int | None:
    """Bytes that a step on `batch` rows of `length` tokens keeps for backward; None where the model does not
    take tokens, or where shapes follow from values. `model` is on the meta device, and what is trained
    requires gradients.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    ledger = Ledger([*model.parameters(), *model.buffers()])
    hooks = [h for layer in _layers(model) for h in _watch(layer, ledger)]
    training = model.training
    try:
        with _Fused(), torch.autograd.graph.saved_tensors_hooks(ledger.save, lambda tensor: tensor):
            model.train()(**_inputs(model, batch, length))
    except RuntimeError:  # experts are chosen by values, which are not there
        return None
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return ledger.kept(checkpointing)


def _layers(model: nn.Module) -> list[nn.Module]:
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    return [layer for stack in stacks(whole).values() for layer in stack.layers]


def _watch(layer: nn.Module, ledger: Ledger) -> list[Any]:
    return [
        layer.register_forward_pre_hook(ledger.enter, with_kwargs=True),
        layer.register_forward_hook(ledger.leave),
    ]


def _inputs(model: Any, batch: int, length: int) -> dict[str, Any]:
    tokens = torch.zeros(batch, length, dtype=torch.long, device="meta")
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    given: dict[str, Any] = {"input_ids": tokens}
    takes = inspect.signature(whole.forward).parameters
    if "use_cache" in takes:
        given["use_cache"] = False
    if whole.get_output_embeddings() is not None and "labels" in takes:
        given["labels"] = tokens  # the loss keeps the logits
    elif "decoder_input_ids" in takes:
        given["decoder_input_ids"] = tokens
    return given


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata

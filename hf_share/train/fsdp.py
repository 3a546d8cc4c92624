# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP2 of a shared model: its units before training, and the whole model after it.

`fully_shard` refuses a parameter that two units see, so layers that share tensors form one unit, and what a
layer shares with something outside the layers (a tied embedding) belongs to the root. Stores are
called, not aliased, and need nothing: they belong to the root.

    for unit in fsdp_units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)

accelerate makes every layer a unit of its own, which is right where nothing is tied; elsewhere `shard_tied`
goes before its `prepare`. The trainings of this folder do so. After
training the parameters are parts, which neither `compressed` nor a file can take: `blueprint` keeps the
structure, and `whole` puts the gathered weights into it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer

from ..errors import Refused
from ..sites import stacks


def fsdp_units(model: nn.Module) -> list[list[nn.Module]]:
    """Groups of layers that share tensors, in order of depth; a layer that shares with none stands alone.

    Layers that share a tensor with anything outside the stacks are left to the root and are in no group.
    """
    layers = [layer for stack in stacks(model).values() for layer in stack.layers]
    inside = {id(module) for layer in layers for module in layer.modules()}
    root = {
        id(p)
        for module in model.modules()
        if id(module) not in inside
        for p in module.parameters(recurse=False)
    }
    units: list[tuple[set[int], list[nn.Module]]] = []
    for layer in layers:
        tensors, members = {id(p) for p in layer.parameters()}, [layer]
        for unit in [u for u in units if u[0] & tensors]:
            units.remove(unit)
            tensors, members = tensors | unit[0], unit[1] + members
        units.append((tensors, members))
    place = {id(layer): i for i, layer in enumerate(layers)}
    found = [sorted(m, key=lambda layer: place[id(layer)]) for tensors, m in units if not tensors & root]
    return sorted(found, key=lambda unit: place[id(unit[0])])


def shard_tied(model: nn.Module, accelerator: Accelerator) -> None:
    """Under FSDP2, shard the units of a model whose layers share tensors; call it before
    `accelerator.prepare`, which then shards what is outside the layers.

    Where only the first process has read the weights (`cpu_ram_efficient_loading`), it sends them to the
    others if layers share tensors or the model stores buffers (codes, indices); else accelerate does. Without
    FSDP2, or where no layers share tensors, or where only the root is to be a unit (`NO_WRAP`), nothing is
    sharded.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    units = fsdp_units(model) if accelerator.is_fsdp2 and plugin.auto_wrap_policy is not None else []
    tied = any(len(unit) > 1 for unit in units)
    if accelerator.is_fsdp2 and plugin.cpu_ram_efficient_loading and (tied or _stores_buffers(model)):
        _send_from_first(model, accelerator.device)
        plugin.cpu_ram_efficient_loading = False
    if not tied:
        return
    for unit in units:
        if accelerator.mixed_precision != "no":
            _upcast(unit)
        fully_shard(
            unit, reshard_after_forward=plugin.reshard_after_forward, offload_policy=plugin.cpu_offload,
            mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        )  # fmt: skip
    plugin.auto_wrap_policy = None  # every layer has its unit


def _stores_buffers(model: nn.Module) -> bool:
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return not buffers.isdisjoint(model.state_dict())


def _send_from_first(model: nn.Module, device: torch.device) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        moved = tensor.detach().to(device)
        dist.broadcast(moved, src=0)
        tensor.data.copy_(moved)


def _upcast(unit: list[nn.Module]) -> None:
    """What accelerate does too: weights that train are kept in fp32, computing is in less."""
    for parameter in (p for layer in unit for p in layer.parameters()):
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def blueprint(trainer: Trainer) -> nn.Module | None:
    """Before training under FSDP2: the structure of the model with its ties, and no weights; else None."""
    _refuse_zero3(trainer.accelerator)
    if not trainer.accelerator.is_fsdp2:
        return None
    model: Any = trainer.model
    if getattr(model, "is_quantized", False):
        raise Refused(
            "FSDP2 divides weights that are numbers, and a base of few bits holds codes; leave out bits, or "
            "let each process hold the base whole (recipes/accelerate/ddp.yaml)"
        )
    blank = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, dict(blank))


def _refuse_zero3(accelerator: Accelerator) -> None:
    plugin: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise Refused(
            "under ZeRO-3 no process holds the weights that this recipe has to return; take FSDP2 "
            "(recipes/accelerate/fsdp2.yaml), ZeRO-2, or a script that saves by trainer.save_model"
        )


def whole(trainer: Trainer, twin: nn.Module | None) -> Any:
    """What was trained, as a model of this process alone, in the memory of its CPU; `twin` is its
    `blueprint`. All processes call it together. Without FSDP2 it is the trainer's model.
    """
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if twin is None:
        return trained
    values: dict[int, nn.Parameter] = {}
    given = dict(trained.named_parameters())
    for name, blank in list(twin.named_parameters(remove_duplicate=False)):
        if id(blank) not in values:
            values[id(blank)] = nn.Parameter(full(given[name]), requires_grad=blank.requires_grad)
        path, _, leaf = name.rpartition(".")
        twin.get_submodule(path)._parameters[leaf] = values[id(blank)]
    for name, buffer in twin.named_buffers():
        buffer.copy_(full(trained.get_buffer(name)))
    return twin


def full(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part, in memory of the CPU; all processes call it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().clone()


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Put what all processes hold whole into a tensor of which each may hold a part."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(values)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""FSDP2 units of a shared model.

`fully_shard` refuses a parameter that two units see, so layers that share tensors form one unit, and what a
layer shares with something outside the layers (a tied embedding) belongs to the root. Stores are
called, not aliased, and need nothing: they belong to the root.

    for unit in fsdp_units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)

With accelerate do the same before `prepare`, which leaves alone what is sharded already, or use its `NO_WRAP`
policy.
"""

from __future__ import annotations

from torch import nn

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

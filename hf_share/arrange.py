# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The mechanism of an `Arrange` step: which layer stands at each depth, and which tensors are one.

A layer that is visited twice becomes two layers (each with its own place in the KV cache) whose tensors are
the same objects. Everything a fresh build of the stock class would do differently at a depth is compared on
the meta device before the model is touched: what would not come back from a checkpoint is refused here, by
name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from . import depths
from .errors import Refused, SiteError
from .modules import ZeroSublayer
from .rebuild import find_stack, rebuild
from .sites import Stack, backbone, resolve, stacks, tensors, walk
from .steps import Arrange


# Attributes by which a layer's modules know their depth.
INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")


def check(model: nn.Module, step: Arrange, form: str) -> None:
    """Raise if `step` does not fit `model`; change nothing."""
    stack = find_stack(model, step)
    where = f"stack {step.stack!r}"
    for role in () if step.roles == "all" else step.roles:
        stack.require_role(role)
    for role in step.private:
        stack.require_role(role, tensors_too=True)
    expected = step.depth if form == "source" else len(step.order)
    if expected is not None and expected != stack.depth:
        raise SiteError(f"{where}: the plan is for {expected} layers, this model has {stack.depth}")
    last = max((s for s in (*step.order, *step.members) if s is not None), default=0)
    if last >= stack.depth:
        raise SiteError(f"{where}: order names layer {last}, this model has layers 0 to {stack.depth - 1}")
    if step.roles != "all" and len(step.order) != stack.depth:
        raise SiteError(
            f"{where}: roles {step.roles!r} are arranged within {stack.depth} depths, "
            f"order has {len(step.order)}"
        )
    if form == "checkpoint" and step.order != step.first_visits:
        raise SiteError(
            f"{where}: order {step.order} is in source form; a checkpoint's plan names first visits"
        )
    _check_members(stack, step)
    _check_mean(stack, step)
    _check_partial(stack, step, form)
    for depth, source in enumerate(step.order):
        if source is None:
            _check_removable(model, stack, step, depth)
    if form == "source" and step.roles == "all":
        _check_rebuild(model, step)
    else:
        depths.check_active(model, step)


def _check_members(stack: Stack, step: Arrange) -> None:
    for source, member in zip(step.order, step.members, strict=True):
        if source is None or member is None or source == member:
            continue
        mine, theirs = stack.signatures[member], stack.signatures[source]
        for name in set(mine) | set(theirs):
            if name in stack.partial or step.keeps(name) or not step.owns(name):
                continue
            if mine.get(name) != theirs.get(name):
                raise Refused(
                    f"stack {step.stack!r}: layers {source} and {member} cannot share {name!r}: "
                    f"{theirs.get(name)} != {mine.get(name)}"
                )


def _check_mean(stack: Stack, step: Arrange) -> None:
    """Quantised numbers have no mean, and skipping them would be silent."""
    if step.merge != "mean":
        return
    for layer in sorted({m for members in step.groups().values() if len(members) > 1 for m in members}):
        for name, value in tensors(stack.layers[layer]):
            plain = type(value) is nn.Parameter and value.is_floating_point()
            if isinstance(value, nn.Parameter) and not plain and step.owns(name):
                raise Refused(
                    f"stack {step.stack!r}: {name!r} of layer {layer} is quantised ({type(value).__name__}), "
                    "so the layers of a group have no mean; fold the model before it is quantised, or take "
                    "parent='first'"
                )


def _check_partial(stack: Stack, step: Arrange, form: str) -> None:
    """A tensor that only some depths own stays at its depth, or the result could not be rebuilt."""
    if form == "checkpoint":
        return
    for name in sorted(n for n in stack.partial if step.owns(n)):
        for owner in (d for d, s in enumerate(stack.signatures) if name in s):
            if owner >= len(step.order) or step.members[owner] != owner:
                raise Refused(
                    f"stack {step.stack!r}: layer {owner} owns {name!r} for the whole stack and must stay at "
                    f"depth {owner}; keep it in the order"
                )


def sublayer_is_pair(layer: nn.Module, role: str) -> bool | None:
    """True if the sub-layer returns (output, weights) like an attention, False for one tensor, None if
    unknown.
    """
    module, name = resolve(layer, role), type(resolve(layer, role)).__name__.lower()
    if "." in role or max(_norm_widths(module), default=0) == max(_norm_widths(layer), default=1):
        return None  # it holds its own norm and residual (BERT, T5): nothing outside adds the input back
    if "attention" in name or "attn" in name:
        return True
    return False if "mlp" in name or "feedforward" in name else None


def _norm_widths(module: nn.Module) -> list[int]:
    norms = (m for m in module.modules() if "norm" in type(m).__name__.lower())
    return [p.numel() for norm in norms for p in norm.parameters(recurse=False)]


def _check_removable(model: nn.Module, stack: Stack, step: Arrange, depth: int) -> None:
    for role in step.roles:
        where = f"stack {step.stack!r}, depth {depth}: {role!r}"
        module = resolve(stack.layers[depth], role)
        pair = (
            module.pair if isinstance(module, ZeroSublayer) else sublayer_is_pair(stack.layers[depth], role)
        )
        if pair is None:
            raise Refused(
                f"{where} cannot be removed: {type(module).__name__} adds its own residual or norm, or is "
                "not known to be an attention or an MLP"
            )
        kinds = getattr(getattr(backbone(model), "config", None), "layer_types", None)
        first = depth == 0 or (kinds and kinds.index(kinds[depth]) == depth)
        if pair and first:
            raise Refused(
                f"{where} is the attention by which the KV cache counts positions; keep the first one of "
                "its kind"
            )


def _check_rebuild(model: nn.Module, step: Arrange) -> None:
    """Compare, on meta, each depth with what the stock class builds there from the new config."""
    twin = rebuild(model, (step,))
    if twin is None:
        return
    stack, fresh = find_stack(model, step), find_stack(twin, step)
    depths.check_active(twin, step)
    if fresh.depth != len(step.order):
        raise Refused(
            f"stack {step.stack!r}: a stock model of the new config has {fresh.depth} layers, "
            f"not {len(step.order)}"
        )
    plain = all(p.is_floating_point() for _, p in tensors(stack.layers))
    for depth in range(len(step.order)):
        source = template(stack, step, depth)
        names, built = set(stack.signatures[source]), set(fresh.signatures[depth])
        names -= {n for n in stack.partial if n not in built}
        if plain and names != built:
            odd = sorted(names ^ built)[0]
            raise Refused(
                f"stack {step.stack!r}: layer {source} cannot stand at depth {depth}: {odd!r} exists in only "
                "one of them, so a checkpoint could not be loaded by the stock class"
            )
        _check_attributes(stack, fresh, step, source, depth)


def check_cache(model: nn.Module, steps: tuple[Arrange, ...]) -> None:
    """Raise if stock code would make a decoder's cache for fewer layers than the whole plan leaves it (T5
    counts it by the encoder).
    """
    if not steps or not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return
    twin = rebuild(model, steps)
    if twin is None or not twin.can_generate():
        return
    slots = len(DynamicCache(config=twin.config).layers)
    for path, stack in stacks(twin).items():
        if "decoder" in path.split(".") and stack.depth > slots:
            raise Refused(
                f"stack {path!r}: {stack.depth} layers, but {type(twin.config).__name__} gives its cache "
                f"{slots} places, so that generate would fail; keep at least as many encoder layers as "
                "decoder layers"
            )


def _check_attributes(stack: Stack, fresh: Stack, step: Arrange, source: int, depth: int) -> None:
    mine, theirs = dict(_plain_attributes(stack.layers[source])), dict(_plain_attributes(fresh.layers[depth]))
    for key, value in mine.items():
        path, name = key
        if name in INDEX_NAMES or theirs.get(key, value) == value:
            continue
        varies = (
            len({repr(dict(_plain_attributes(layer)).get(key)) for layer in (*stack.layers, *fresh.layers)})
            > 1
        )
        if varies and not _is_partial_flag(stack, path):
            raise Refused(
                f"stack {step.stack!r}: layer {source} has {path}.{name} = {value!r}, but a stock model has "
                f"{theirs[key]!r} at depth {depth}; the result would not reload exactly"
            )


def _is_partial_flag(stack: Stack, path: str) -> bool:
    return any(name.startswith(f"{path}.") for name in stack.partial)


def _plain_attributes(layer: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    for path, module in walk(layer):
        for name, value in module.__dict__.items():
            if (
                isinstance(value, (bool, int, float, str))
                and not name.startswith("_")
                and name not in ("training", "is_quantized")
            ):
                yield (path, name), value


def template(stack: Stack, step: Arrange, depth: int) -> int:
    """The layer whose modules stand at `depth`: the one it stands for, unless that owns tensors only its own
    depth may have.
    """
    member = step.members[depth]
    assert member is not None, "only whole layers are placed"
    own = [n for n in stack.signatures[member] if n in stack.partial]
    if not own or member == depth:
        return member
    plain = [i for i in range(stack.depth) if not any(n in stack.partial for n in stack.signatures[i])]
    if not plain:
        raise Refused(
            f"stack {step.stack!r}: depth {depth} would need {own[0]!r}, which only some layers own"
        )
    return plain[0]


def apply(model: nn.Module, steps: tuple[Arrange, ...]) -> None:
    """Put layers and configs in place for source-form steps. `check` has passed."""
    if not steps:
        return
    fresh = rebuild(model, steps)
    found = stacks(model)
    for step in steps:
        _place_layers(backbone(model), found[step.stack], step)
    if fresh is not None:
        _take_configs(model, fresh)


def _place_layers(base: nn.Module, stack: Stack, step: Arrange) -> None:
    values = [dict(tensors(layer)) for layer in stack.layers]
    if step.roles != "all":
        new = list(stack.layers)
    else:
        new = _new_layers(stack, step)
    taken: set[tuple[int, str]] = set()
    for depth, (source, member) in enumerate(zip(step.order, step.members, strict=True)):
        for name, _ in list(tensors(new[depth])):
            if source is None or not step.owns(name) or name in stack.partial:
                continue
            origin = member if step.keeps(name) else source
            value = values[origin][name]
            if step.keeps(name) and (origin, name) in taken:
                value = _clone(value)
            taken.add((origin, name))
            _put(new[depth], name, value)
    if step.roles == "all":
        path, _, leaf = stack.path.rpartition(".")
        setattr(resolve(base, path), leaf, type(stack.layers)(new))


def _new_layers(stack: Stack, step: Arrange) -> list[nn.Module]:
    new, used = [], set()
    for depth in range(len(step.order)):
        source = template(stack, step, depth)
        layer = stack.layers[source]
        if source in used:
            layer = _alias(layer)
        used.add(source)
        new.append(layer)
    for depth, layer in enumerate(new):
        for module in layer.modules():
            for name in INDEX_NAMES:
                if isinstance(module.__dict__.get(name), int):
                    setattr(module, name, depth)
    return new


def _alias(layer: nn.Module) -> nn.Module:
    """A copy of the layer's modules around the same tensors."""
    keep = [*layer.parameters(), *layer.buffers()]
    keep += [m.config for m in layer.modules() if hasattr(m, "config")]
    return copy.deepcopy(layer, {id(value): value for value in keep})


def _clone(value: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        copied = value.detach().clone()
    return (
        nn.Parameter(copied, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copied
    )


def _put(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = resolve(layer, path)
    (module._buffers if leaf in module._buffers else module._parameters)[leaf] = value  # type: ignore[assignment]


def _take_configs(model: nn.Module, fresh: nn.Module) -> None:
    mine = dict(model.named_modules())
    for path, module in fresh.named_modules():
        if "config" in module.__dict__ and path in mine and "config" in mine[path].__dict__:
            quantised = getattr(mine[path].config, "quantization_config", None)
            mine[path].config = module.config
            if quantised is not None:
                module.config.quantization_config = quantised


def remove_sublayers(model: nn.Module, step: Arrange) -> None:
    """Put a typed zero where a narrowed step says None."""
    if step.roles == "all" or None not in step.order:
        return
    stack = find_stack(model, step)
    for depth, source in enumerate(step.order):
        for role in step.roles if source is None else ():
            pair = sublayer_is_pair(stack.layers[depth], role)
            if pair is not None:
                stack.layers[depth].add_module(role, ZeroSublayer(pair))

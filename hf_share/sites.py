# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The grid of a model: stacks of layers, the roles in a layer, and the sites (weights, or parts of fused
weights).

A **stack** is an outermost `ModuleList` whose layers each hold at least two weights; a **role** is a path
inside a layer (`self_attn.q_proj`); a **site** is one weight at one depth, named by its path from the
backbone (`model.base_model`), so that a plan made with a head fits the headless model. All of it is read off
the modules: no list of model types, and a model with renamed modules works. The two tables at the top are the
only knowledge of architectures in hf_share.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from .errors import SiteError, nearest, unknown
from .fused import Part, fused_parts


# Config keys that count a stack. The first that exists and equals the stack's length wins.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
SIDE_KEYS = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}

STORES = "shared_stores"  # the attribute of the backbone that holds the stores


@dataclass(frozen=True, kw_only=True)
class Site:
    """One weight, or one part of a fused one.

    `name` is the path from the backbone with `:part` for a part; `kind` is `linear` (weight `out x in`),
    `conv1d` (`in x out`), `read` (a linear whose weight is read without calling the module, so that nothing
    can be added to its output) or `expert` (three-dimensional, one matrix an expert); `role` is the path
    inside the layer with its part.
    """

    name: str
    module: str
    part: Part | None
    kind: str
    in_features: int
    out_features: int
    stack: str | None = None
    depth: int | None = None
    role: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return (self.out_features, self.in_features)


@dataclass(frozen=True)
class Stack:
    """One list of layers: its `path` from the backbone and the layers themselves."""

    path: str
    layers: nn.ModuleList

    @property
    def depth(self) -> int:
        return len(self.layers)

    @cached_property
    def signatures(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """For each layer: name of every parameter and persistent buffer -> shape."""
        return tuple({n: tuple(t.shape) for n, t in tensors(layer)} for layer in self.layers)

    @cached_property
    def partial(self) -> frozenset[str]:
        """Tensors that only some depths own (T5's `relative_attention_bias`, which block 0 keeps for all)."""
        every = set().union(*self.signatures)
        return frozenset(n for n in every if sum(n in s for s in self.signatures) < len(self.layers))

    @property
    def owners(self) -> tuple[int, ...]:
        """Layers that own a tensor for the whole stack, and so cannot go: T5's block 0."""
        return tuple(d for d, s in enumerate(self.signatures) if any(name in self.partial for name in s))

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Roles that own vectors only and hold no weight: norms and scales."""
        found: dict[str, None] = {}
        for layer in self.layers:
            for path, module in walk(layer):
                own = list(module.parameters(recurse=False))
                if path and own and all(p.dim() <= 1 for p in own) and not _weights_in(module):
                    found.setdefault(path)
        return tuple(found)

    @cached_property
    def biases(self) -> tuple[str, ...]:
        """Vectors beside a weight: tensors of one dimension that belong to no norm."""
        norms = tuple(f"{role}." for role in self.norms)
        found = {n: None for s in self.signatures for n, shape in s.items() if len(shape) == 1}
        return tuple(n for n in found if not n.startswith(norms))

    def roles(self) -> tuple[str, ...]:
        """Every path inside a layer that a plan may name: modules and sub-modules that own tensors."""
        paths: dict[str, None] = {}
        for signature in self.signatures:
            for name in signature:
                role = name.rpartition(".")[0]
                while role:
                    paths.setdefault(role)
                    role = role.rpartition(".")[0]
        return tuple(paths)

    def require_role(self, role: str, tensors_too: bool = False) -> None:
        if tensors_too and any(role in signature for signature in self.signatures):
            return
        if role not in self.roles():
            raise unknown(f"role of stack {self.path!r}", role, self.roles(), SiteError)


def backbone(model: nn.Module) -> nn.Module:
    """The module that all paths of a plan begin at: `model.base_model`, the model without its head."""
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def prefix(model: nn.Module) -> str:
    """The path of the backbone inside `model`, with its dot: `"model."`, or `""` for a headless model."""
    base = backbone(model)
    return next((f"{name}." for name, module in model.named_modules() if module is base and name), "")


def unwrap(module: nn.Module) -> nn.Module:
    """The module of the model itself below peft's wrappers, which keep it as `base_layer` or
    `original_module`.
    """
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` of the model itself: adapters and stores are passed over, their wrapped module is
    named as before.
    """
    module = unwrap(module)
    yield path, module
    for name, child in module.named_children():
        if name in (STORES, "share"):
            continue
        yield from walk(child, f"{path}.{name}" if path else name)


def resolve(root: nn.Module, path: str) -> nn.Module:
    """The module at `path` below `root`, looking through peft's wrappers."""
    module = unwrap(root)
    for name in path.split(".") if path else ():
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            raise SiteError(
                f"{path!r}: {type(module).__name__} has no module {name!r}"
                + nearest(name, dict(module.named_children()))
            )
        module = unwrap(child)
    return module


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers of the model itself below `module`, by name, aliases included."""
    for path, part in walk(module):
        dot = f"{path}." if path else ""
        for name, value in part._parameters.items():
            if value is not None:
                yield dot + name, value
        for name, value in part._buffers.items():
            if value is not None and name not in part._non_persistent_buffers_set:
                yield dot + name, value


def store_groups(model: nn.Module) -> set[str]:
    """Names of the groups whose stores are part of the model itself; an adapter's stores do not count."""
    stores = getattr(backbone(model), STORES, {})
    return {name for name, store in stores.items() if getattr(store, "of_model", False)}


def weight_kind(module: nn.Module) -> str | None:
    """`linear`, `conv1d` or `expert` if `module` owns a weight a plan can address, else None."""
    if isinstance(module, nn.Linear) or hasattr(module, "share_kind"):
        return getattr(module, "share_kind", "linear")
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    if any(p.dim() == 3 for p in module.parameters(recurse=False)):
        return "expert" if not isinstance(module, nn.modules.conv._ConvNd) else None
    weight = getattr(module, "weight", None)
    quantised = hasattr(module, "in_features") and hasattr(module, "out_features") and weight is not None
    return "linear" if quantised else None


def stacks(model: nn.Module) -> dict[str, Stack]:
    """Every stack of layers of `model`, by its path from the backbone, in the order of the modules."""
    return dict(_stacks(backbone(model), ""))


def _stacks(module: nn.Module, path: str) -> Iterator[tuple[str, Stack]]:
    module = unwrap(module)
    module = getattr(module, "every", module)  # of a list that shows some depths only
    if isinstance(module, nn.ModuleList) and len(module) and all(_weights_in(layer) >= 2 for layer in module):
        yield path, Stack(path, module)
        return
    for name, child in module.named_children():
        if name not in (STORES, "share"):
            yield from _stacks(child, f"{path}.{name}" if path else name)


def _weights_in(layer: nn.Module) -> int:
    # a sub-layer that a plan removed still counts, or its layers would be no stack any more
    return sum(getattr(module, "stands_for", weight_kind(module) is not None) for _, module in walk(layer))


def sites(model: nn.Module, parts: bool = False) -> list[Site]:
    """All weights of `model` outside embeddings and heads, in the order of the modules.

    With `parts`, the parts of a fused weight follow the whole (`h.0.attn.c_attn`, then `h.0.attn.c_attn:q`,
    ...).
    """
    base, found = backbone(model), []
    homes = sorted(_stacks(base, ""), key=lambda s: len(s[0]))
    config = getattr(base, "config", None)
    for path, module in walk(base):
        kind = weight_kind(module)
        stack, depth, role = _home(path, homes)
        if kind is None or (kind == "expert" and depth is None):
            continue  # three-dimensional parameters outside the layers are embeddings (ViT's positions)
        if kind == "linear" and _is_read(base, path):
            kind = "read"
        where: dict[str, Any] = {"module": path, "kind": kind, "stack": stack, "depth": depth}
        if kind == "expert":
            found += _expert_sites(path, role, module, where)
            continue
        n_in, n_out = features(module)
        found.append(Site(name=path, part=None, in_features=n_in, out_features=n_out, role=role, **where))
        for part in fused_parts(base, path, n_out, config) if parts else ():
            found.append(
                Site(
                    name=f"{path}:{part.name}",
                    part=part,
                    in_features=n_in,
                    out_features=part.size,
                    role=f"{role}:{part.name}",
                    **where,
                )
            )
    return found


def _expert_sites(path: str, role: str, module: nn.Module, where: dict[str, Any]) -> Iterator[Site]:
    for name, p in module.named_parameters(recurse=False):
        if p.dim() != 3:
            continue
        # transformers marks experts whose matrices are (in, out)
        n_out, n_in = reversed(p.shape[1:]) if getattr(module, "is_transposed", False) else p.shape[1:]
        sizes = {"in_features": n_in, "out_features": n_out}
        yield Site(name=f"{path}.{name}", part=None, role=f"{role}.{name}", **sizes, **where)


def features(module: Any) -> tuple[int, int]:
    """(in, out) of a linear or Conv1D module."""
    if type(module).__name__ == "Conv1D":
        return module.nx, module.nf
    return module.in_features, module.out_features


def _is_read(base: nn.Module, path: str) -> bool:
    """Whether the module above reads this one's weight instead of calling it (Mamba's `dt_proj`, the output
    projection of torch's `MultiheadAttention`).
    """
    parent, _, leaf = path.rpartition(".")
    return bool(path) and leaf in _names_read(type(resolve(base, parent)))


@cache
def _names_read(cls: type) -> frozenset[str]:
    """Children whose weight the code of `cls` uses itself. Asking for its type, dtype or shape is no use."""
    text = "".join(_source(c) for c in cls.__mro__ if c is not nn.Module)
    asked = r"\.(?:dtype|device|shape|ndim|size|numel|data)\b"
    return frozenset(re.findall(rf"(?<!isinstance\()(?<!_\()\bself\.(\w+)\.weight\b(?!{asked})", text))


def _source(cls: type) -> str:
    try:
        text = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        return ""
    # inspect.getsource(cls) would parse the whole file for each class
    found = re.search(rf"^class {cls.__name__}\b.*?(?=^(?:class|def|@)|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def _home(path: str, homes: Iterable[tuple[str, Stack]]) -> tuple[str | None, int | None, str]:
    for stack, _ in homes:
        dot = f"{stack}." if stack else ""
        if path.startswith(dot):
            depth, _, role = path[len(dot) :].partition(".")
            if depth.isdigit():
                return stack, int(depth), role
    return None, None, path


def find_site(index: dict[str, Site], name: str) -> Site:
    """The site called `name`, or a `SiteError` that names the nearest one."""
    if name not in index:
        raise unknown("site", name, index, SiteError)
    return index[name]


def depth_key(model: nn.Module, stack: Stack) -> tuple[tuple[str, ...], str] | None:
    """Where the model's config counts `stack`: (path of the sub-config, key), or None if nothing counts
    it.
    """
    config = getattr(model, "config", None)
    if config is None:
        return None
    sides = [keys for side, keys in SIDE_KEYS.items() if side in stack.path.split(".")]
    names = (*(key for keys in sides for key in keys), *DEPTH_KEYS)
    for where, part in _configs(config, stack.path):
        for key in names:
            if part.__dict__.get(key) == stack.depth:
                return where, key
    return None


def _configs(config: Any, path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The config's own level first, then sub-configs, those whose name begins like a part of `path` before
    the others.
    """
    yield (), config
    subs = [name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None]
    words = set(path.split("."))

    def fits(name: str) -> bool:
        stem = name.removesuffix("_config")
        return any(word.startswith(stem) for word in words) or (
            stem == "text" and not words & {"vision_tower", "audio_tower"}
        )

    for name in sorted(subs, key=lambda n: not fits(n)):
        yield (name,), getattr(config, name)

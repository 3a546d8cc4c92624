# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Files against the plan, from their headers: what is ours in a file must be what the plan says, all of it.

transformers only logs a tensor that is missing or that nobody expects, and fills the missing one with random
numbers. For what hf_share adds that is an error, raised before a value is read or a tensor allocated. Stock
tensors are checked after loading (`ties.py`), since transformers may rename and fuse them on the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from ..cut import cuts
from ..errors import CheckpointError
from ..modules import Share
from ..shelter import renamer
from ..sites import STORES, backbone, prefix, resolve
from ..ties import attached, get_tensor


METHOD = "hf_share"  # the `quant_method` of a shared checkpoint
Shape = tuple[int, ...]


def check_files(model: Any, files: Sequence[str] | None) -> None:
    """Raise `CheckpointError` if `files` do not hold exactly what `attach` added to `model`."""
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        return  # a state dict in memory, or pickled files, which have no header
    found = _headers(model, files)
    where = Path(files[0]).parent if len(files) > 1 else files[0]
    expected, shortened = _added(model), cut_tensors(model)
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(
                f"{where} lacks {name!r}, which its plan says is stored; the file was cut or changed"
            )
        if found[name] != shape and not (name in shortened and _holds(found[name], shape)):
            is_shape, said = list(found[name]), list(shape)
            raise CheckpointError(f"{where}: {name!r} has shape {is_shape}, its plan says {said}")
    unread = _unread(model)
    extra = sorted(set(found) - set(expected) - unread)
    if unread & set(found):
        own = {f"^{re.escape(prefix(model) + name)}$" for name in unread}
        before = set(type(model)._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = before | own
    if extra:
        raise CheckpointError(
            f"{where} holds {extra[0]!r}, which its plan does not know and loading would leave out"
        )


def _holds(found: Shape, shape: Shape) -> bool:
    """Whether a tensor of one shape begins with one of the other."""
    return len(found) == len(shape) and all(a >= b for a, b in zip(found, shape, strict=True))


def cut_tensors(model: nn.Module) -> set[str]:
    """Tensors, by name from the backbone, of which a file of the whole model holds more than the plan's lanes
    need.
    """
    record, base = attached(model), backbone(model)
    names: set[str] = set()
    for path in cuts(record.plan) if record is not None else ():
        module = resolve(base, path)
        names |= {f"{path}.{name}" for name, _ in chain(module.named_parameters(), module.named_buffers())}
        for binding in module.share.bindings if "share" in module._modules else ():
            if binding.store is not None:
                names |= {f"{STORES}.{binding.group}.{name}" for name in binding.store()}
    return names


def _unread(model: nn.Module) -> set[str]:
    """Tensors of choices that the plan leaves out, which a file of the whole model holds as well."""
    names: set[str] = set()
    for path, module in backbone(model).named_modules():
        for binding in module.bindings if isinstance(module, Share) else ():
            if getattr(binding.rule, "kept", None) is None:
                continue
            whole: Any = replace(binding.rule, kept=None)
            names |= {f"{path}.{binding.stem}{t}" for t in whole.private(binding.site)}
            if binding.store is not None:
                names |= {f"{STORES}.{binding.group}.{t}" for t in whole.shared([binding.site])}
    return names - set(_added(model))


def is_added(name: str) -> bool:
    """Whether a tensor's name is one that a plan added."""
    parts = name.split(".")
    return STORES in parts or "share" in parts[:-1]


def _headers(model: Any, files: Sequence[str]) -> dict[str, Shape]:
    """Name from the backbone -> shape of every tensor of ours in the files."""
    found: dict[str, Shape] = {}
    dot, in_model = f"{getattr(model, 'base_model_prefix', '')}.", renamer(model)
    for file in files:
        try:
            with safe_open(file, framework="pt") as f:
                for key in f.keys():
                    if is_added(key):
                        name = in_model(key).removeprefix(dot)
                        found[name] = tuple(f.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read, it is truncated or no safetensors file: {error}"
            ) from None
    return found


def _added(model: nn.Module) -> dict[str, Shape]:
    record, dot = attached(model), prefix(model)
    if record is None:
        return {}
    base = backbone(model)
    named = chain(base.named_parameters(remove_duplicate=False), base.named_buffers(remove_duplicate=False))
    added = {name: tuple(value.shape) for name, value in named if is_added(name)}
    guards = {w.removeprefix(dot): tuple(get_tensor(model, s).shape) for s, w in record.guards.items()}
    return added | guards

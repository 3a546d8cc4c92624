# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The bytes `save_pretrained` writes for a model, from its shapes: exact for one file of stock names.

    8 + the header, padded to 8 + the tensors, each once
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .budget import BYTES
from .dense import plain_parts
from .errors import ConfigError
from .guards import left_packed
from .ties import drop_tied, to_file


HEADER = {"__metadata__": {"format": "pt"}}
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip

Shaped = tuple[torch.dtype, tuple[int, ...]]
Tensors = Mapping[str, Shaped]


def file_size(model: Any) -> int:
    """Bytes of the weights file of `model`, which may be on the meta device."""
    return file_bytes(tensors_of(model))


def tensors_of(model: Any) -> dict[str, Shaped]:
    """Type and shape of every tensor in the file of `model`, each once, by the name it is written under."""
    with left_packed(model):
        state = to_file(model, drop_tied(model, model.state_dict(keep_vars=True)))
    aliases = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        alias = name in aliases and state.get(aliases[name]) is tensor
        if torch.is_tensor(tensor) and not alias and id(tensor) not in seen:
            seen.add(id(tensor))
            found |= {part: (t.dtype, tuple(t.shape)) for part, t in plain_parts(name, tensor)}
    return found


def file_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the safetensors file, as transformers writes it, that holds tensors like these, and `metadata`
    about them.
    """
    header: dict[str, Any] = {"__metadata__": {**HEADER["__metadata__"], **(metadata or {})}}
    end = 0
    for name in in_order(tensors):
        header |= entry(name, tensors[name], end)
        end += data_bytes(tensors[name])
    return 8 + -(-written(header) // 8) * 8 + end


def in_order(tensors: Tensors) -> list[str]:
    """Names as the format sorts them: by alignment, then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))


def entry(name: str, tensor: Shaped, start: int) -> dict[str, Any]:
    """What the header says of a tensor whose data begin at `start`."""
    offsets = [start, start + data_bytes(tensor)]
    return {name: {"dtype": DTYPES[tensor[0]], "shape": list(tensor[1]), "data_offsets": offsets}}


def written(header: Mapping[str, Any]) -> int:
    """Bytes of a header, or of a part of one, as JSON."""
    return len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())


def data_bytes(tensor: tuple[torch.dtype, Iterable[int]]) -> int:
    return tensor[0].itemsize * math.prod(tensor[1])


def parse_target(text: str | float, dense: int) -> int:
    """The bytes a target stands for: a fraction of `dense` (`0.6`, `60%`) or a size (`4GB`, `2GiB`).

    Example:
        >>> parse_target("0.5", 1000), parse_target("60%", 1000), parse_target("2kB", 1000)
        (500, 600, 2000)
    """
    word = str(text).strip().lower().replace(" ", "")
    number = word.rstrip("%bigkmt")
    unit = word[len(number) :]
    try:
        value = float(number)
        if not 0.0 < value < 1e18:
            raise ValueError
        if unit in ("", "%"):
            fraction = value / 100 if unit else value
            if fraction > 1.0:
                raise ValueError
            return int(fraction * dense)
        return int(value * BYTES[unit])
    except (ValueError, KeyError):
        raise ConfigError(
            f"a target of {text!r} fits nothing; a fraction of the dense file (0.6, 60%) or a size (4GB) does"
        ) from None

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The bytes `save_pretrained` writes for a model, from its shapes: exact for one file of stock names.

    8 + the header, padded to 8 + the tensors, each once
"""

from __future__ import annotations

import json
from typing import Any

import torch

from .errors import ConfigError
from .ties import to_file


METADATA = {"format": "pt"}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def file_size(model: Any) -> int:
    """Bytes of the weights file of `model`, which may be on the meta device."""
    header: dict[str, Any] = {"__metadata__": METADATA}
    seen: set[int] = set()
    end = 0
    for name, tensor in sorted(to_file(model, model.state_dict(keep_vars=True)).items()):
        if id(tensor) in seen or not torch.is_tensor(tensor):
            continue
        seen.add(id(tensor))
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = CODES.get(tensor.dtype, "I64")
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    written = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-written // 8) * 8 + end


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
        stem = unit.removesuffix("b").removesuffix("i")
        base = UNITS[stem]
        return int(value * (1024 ** (list(UNITS).index(stem)) if "i" in unit else base))
    except (ValueError, KeyError):
        raise ConfigError(
            f"a target of {text!r} fits nothing; a fraction of the dense file (0.6, 60%) or a size (4GB) does"
        ) from None

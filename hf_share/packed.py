# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The chosen size of an elastic model as a compressed-tensors checkpoint, which stock transformers and vLLM
load: true 1 to 8 bits a weight on disk, each weight at the width that is active here.

The format (`pack-quantized`) is read with its zero at zero,

    w = s q        q from -2^(b-1) to 2^(b-1) - 1

where a nested weight has a line of its own. (It has a form with an offset, too, but transformers 5.23 with
compressed-tensors 0.20 looks for offsets unpacked where the file holds them packed, and cannot load it.) So
the weight, with its deltas merged, gets a grid of its own: for a range of clippings, and for both signs of s,
since the grid reaches further down than up, the nearest codes, then the least-squares s, and the best of all
for each group. That costs little at 4 bits and much at 2: measure what you export.

Groups divide the inputs evenly in this format; the largest group up to the asked size that does is taken.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .codes import CLIPS
from .elastic import coded
from .errors import ConfigError, Refused
from .filesize import file_bytes, tensors_of
from .materialize import materialize
from .nested import Nested
from .sites import prefix


METHOD = "compressed-tensors"
EXTRA = 'compressed-tensors is not installed: pip install "hf_share[quant]" (Python 3.11 or newer)'


@dataclass(frozen=True)
class Grid:
    """Codes (out, in) as int8, and the scale of each group, (out, groups)."""

    codes: Tensor
    scale: Tensor

    def weight(self) -> Tensor:
        """What it stands for: (out, in), in the type of the scale."""
        size = self.codes.shape[1] // self.scale.shape[1]
        return (self.codes.unflatten(1, (-1, size)).to(self.scale.dtype) * self.scale[..., None]).flatten(1)


def integer_grid(W: Tensor, bits: int, group_size: int, dtype: torch.dtype = torch.float32) -> Grid:
    """The best grid found for W (out, in) with groups of `group_size` inputs, and scales kept in `dtype`."""
    if W.shape[1] % group_size:
        raise ConfigError(f"groups of {group_size} do not divide {W.shape[1]} inputs")
    w = W.float().unflatten(1, (-1, group_size))
    half = 2 ** (bits - 1)
    reach = w.abs().amax(-1, keepdim=True).clamp_min(1e-12) / half
    best: tuple[Tensor, ...] | None = None
    for clip, sign in product(CLIPS, (1.0, -1.0)):
        step = (reach * clip * sign).to(dtype).float()
        q = (w / step).round().clamp(-half, half - 1)
        for scale in (step, _scale(w, q, step).to(dtype).float()):
            found = ((w - q * scale).square().sum(-1, keepdim=True), q, scale)
            best = found if best is None else _better(found, best)
    assert best is not None
    _, q, scale = best
    return Grid(q.to(torch.int8).flatten(1), scale[..., 0].to(dtype))


def _better(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For each group the one with the smaller loss, which comes first."""
    return tuple(torch.where(a[0] < b[0], x, y) for x, y in zip(a, b, strict=True))


def _scale(w: Tensor, q: Tensor, step: Tensor) -> Tensor:
    """The least-squares scale of codes q; `step` where they are all zero."""
    energy = q.square().sum(-1, keepdim=True)
    return torch.where(energy > 0, (w * q).sum(-1, keepdim=True) / energy.clamp_min(1e-12), step)


def group_of(width: int, group_size: int) -> int:
    """The largest divisor of `width` up to `group_size`."""
    return next(size for size in range(min(group_size, width), 0, -1) if width % size == 0)


@torch.no_grad()
def packed(model: nn.Module, folder: Path, group_size: int | None = None) -> nn.Module:
    """Write the active size of an elastic model to `folder` in this format, and return the plain model that
    the file stands for: the one stock transformers will load.

    Args:
        group_size: inputs that have one scale; as the model's codes have if None.

    Raises:
        ConfigError: if the model has no codes, or compressed-tensors is not installed.
        Refused: for weights that are no plain linear layers (Conv1D).
    """
    quantize, pack = _tools()
    cut = _cut(model, group_size)
    plain: Any = materialize(model)
    dot, state, groups = prefix(plain), dict(plain.state_dict()), {}
    for name, (bits, size) in cut.items():
        module = plain.get_submodule(dot + name)
        if not isinstance(module, nn.Linear):
            raise Refused(f"site {name!r} is a {type(module).__name__}; this format holds linear layers only")
        grid = integer_grid(module.weight, bits, size, module.weight.dtype)
        module.weight.copy_(grid.weight().to(module.weight.dtype))
        del state[f"{dot}{name}.weight"]
        state |= {
            f"{dot}{name}.weight_packed": pack(grid.codes, bits),
            f"{dot}{name}.weight_scale": grid.scale,
            f"{dot}{name}.weight_shape": torch.tensor(module.weight.shape),
        }
        groups.setdefault((bits, size), []).append(dot + name)
    out = copy.copy(plain)
    out.config = copy.deepcopy(plain.config)
    out.config.quantization_config = quantize(groups, plain)
    out.save_pretrained(folder, state_dict=state)
    return plain


def packed_size(model: nn.Module, plain: nn.Module, group_size: int | None = None) -> int:
    """Bytes of the weights file that `packed` writes for `model`, from the shapes of its plain form."""
    tensors, dot = tensors_of(plain), prefix(plain)
    for name, (bits, size) in _cut(model, group_size).items():
        dtype, (rows, columns) = tensors.pop(f"{dot}{name}.weight")
        tensors |= {
            f"{dot}{name}.weight_packed": (torch.int32, (rows, -(-columns * bits // 32))),
            f"{dot}{name}.weight_scale": (dtype, (rows, columns // size)),
            f"{dot}{name}.weight_shape": (torch.int64, (2,)),
        }
    return file_bytes(tensors)


def _cut(model: nn.Module, group_size: int | None) -> dict[str, tuple[int, int]]:
    """Weight of the plain form -> the width that is active there, and the inputs of a group."""
    here = {name: b for name, b in coded(model).items() if isinstance(b.rule, Nested)}  # a code for a weight
    if not here:
        raise ConfigError("this model has no codes of few bits; hf_share.ElasticConfig makes one that has")
    found = {}
    for name, binding in here.items():
        rule: Any = binding.rule
        found[name] = (rule.width, group_of(binding.site.in_features, group_size or rule.group_size))
    return found


def _tools() -> tuple[Any, Any]:
    try:
        from compressed_tensors.compressors.pack_quantized import pack_to_int32
        from compressed_tensors.quantization import QuantizationConfig
    except ImportError:
        raise ConfigError(EXTRA) from None

    def quantize(groups: dict[tuple[int, int], list[str]], plain: nn.Module) -> dict[str, Any]:
        """One group for each width and group size, whose targets are the names of its layers."""
        quantised = {name for names in groups.values() for name in names}
        linears = [name for name, m in plain.named_modules() if isinstance(m, nn.Linear)]
        config = {
            "quant_method": METHOD,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": [name for name in linears if name not in quantised],
            "config_groups": {
                f"bits_{bits}_group_{size}": {
                    "targets": [f"re:^{re.escape(name)}$" for name in names],
                    "weights": {
                        "num_bits": bits, "type": "int", "symmetric": True, "strategy": "group",
                        "group_size": size,
                    },
                }
                for (bits, size), names in groups.items()
            },
        }  # fmt: skip
        return QuantizationConfig.model_validate(config).model_dump()

    return quantize, pack_to_int32

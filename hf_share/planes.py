# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Whole numbers as bit planes, the most significant first: the first b planes are the b top bits.

A code q of n bits at each of (out, in) places is n tensors (out, ceil(in / 8)) of bytes, eight places a byte,
the first place in the highest bit. Who wants q >> (n - b) reads b of them.

Numbers that no cast may touch, such as scales in fp16 beside weights in bf16, are kept as the whole numbers
their bits spell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


SHIFTS = (7, 6, 5, 4, 3, 2, 1, 0)
SPELLED = {"fp16": (torch.float16, torch.int16), "fp32": (torch.float32, torch.int32)}


def pack(codes: Tensor, bits: int) -> list[Tensor]:
    """`bits` planes (out, ceil(in / 8)) of codes (out, in) below 2^bits, the most significant first."""
    padded = F.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % 8))
    shifts = torch.tensor(SHIFTS, dtype=torch.uint8, device=codes.device)
    eights = padded.unflatten(-1, (-1, 8))
    planes = [((eights >> (bits - 1 - k)) & 1) << shifts for k in range(bits)]
    return [plane.sum(-1, dtype=torch.uint8) for plane in planes]


def unpack(planes: Sequence[Tensor], width: int) -> Tensor:
    """Codes (out, width) of as many bits as there are planes."""
    shifts = torch.tensor(SHIFTS, dtype=torch.uint8, device=planes[0].device)
    codes = torch.zeros(*planes[0].shape, 8, dtype=torch.uint8, device=planes[0].device)
    for plane in planes:
        codes = (codes << 1) | ((plane.unsqueeze(-1) >> shifts) & 1)
    return codes.flatten(-2)[..., :width]


def spell(values: Tensor, kind: str) -> Tensor:
    """Floating-point values, rounded to `kind` ("fp16", "fp32"), as the whole numbers their bits spell."""
    floating, whole = SPELLED[kind]
    return values.to(floating).view(whole)


def read(spelled: Tensor) -> Tensor:
    """The values `spell` wrote, in fp32."""
    floating = next(f for f, whole in SPELLED.values() if whole == spelled.dtype)
    return spelled.view(floating).float()

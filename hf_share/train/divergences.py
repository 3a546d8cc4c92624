# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How far a student's distribution q is from a teacher's p, summed over tokens.

    KL(p || q)     = sum of p log(p / q)
    D_a(p || q)    = sum of q ((p/q)^a - 1) / (a (a - 1))
    a -> 1: KL(p || q)        a -> 0: KL(q || p)        a = -1: half of Neyman's chi square

A student that KL trains may spread out at no cost where the teacher has little mass; a negative a forbids
that and a positive one the opposite, so AlphaNet (arXiv 2102.07954) takes for each token the worse of two. As

    grad D_a = - sum of q r grad log q,   r = (p/q)^a / a,   (a = 0: r = log(p/q))

up to a constant in r that no gradient sees, the ratios (p/q)^a can be clipped: few tokens do not make the
whole step then. Without clipping the value and the gradient are those of D_a.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, unknown


Divergence = Callable[[Tensor, Tensor], Tensor]
"""Of log q and log p (tokens, vocabulary), in this order; a scalar."""


@dataclass(frozen=True)
class ForwardKL:
    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return F.kl_div(ours, theirs, log_target=True, reduction="sum")


KL = ForwardKL()


@dataclass(frozen=True, kw_only=True)
class Alpha:
    """max(D_low, D_high) of each token, with (p/q)^a at most `clip`."""

    low: float = -1.0
    high: float = 1.0
    clip: float = 5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and self.low <= self.high < math.inf):
            raise ConfigError(f"alpha: low={self.low} must not exceed high={self.high}, both finite")
        if not self.clip > 0.0:
            raise ConfigError(f"alpha: clip={self.clip} must be above 0; inf clips nothing")

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        parts = [_alpha(ours, theirs, a, self.clip) for a in dict.fromkeys((self.low, self.high))]
        values = torch.stack([value for value, _ in parts])  # (1 or 2, tokens)
        slopes = torch.stack([slope for _, slope in parts])
        worse = values.argmax(dim=0, keepdim=True)
        slope = slopes.gather(0, worse).sum()
        return slope + (values.gather(0, worse).sum() - slope).detach()


def _alpha(ours: Tensor, theirs: Tensor, a: float, clip: float) -> tuple[Tensor, Tensor]:
    """D_a of each token, and an expression in log q with its gradient."""
    q, log_ratio = ours.detach().exp(), theirs - ours.detach()
    ratio = (a * log_ratio).exp().clamp(max=clip)
    if abs(a) < 1e-3:
        value, r = -log_ratio, log_ratio
    elif abs(a - 1.0) < 1e-3:
        value, r = ratio * log_ratio, ratio
    else:
        value, r = (ratio - 1.0) / (a * (a - 1.0)), ratio / a
    return (q * value).sum(-1), -(q * r * ours).sum(-1)


DIVERGENCES: dict[str, Callable[..., Divergence]] = {"kl": ForwardKL, "alpha": Alpha}


def make_divergence(kind: str, **numbers: float) -> Divergence:
    """The divergence called `kind`, with its own numbers.

    >>> make_divergence("alpha", clip=2.0)
    Alpha(low=-1.0, high=1.0, clip=2.0)
    """
    if kind not in DIVERGENCES:
        raise unknown("divergence", kind, DIVERGENCES, ConfigError)
    known = getattr(DIVERGENCES[kind], "__dataclass_fields__", {})
    for key, value in numbers.items():
        if key not in known:
            raise unknown(f"number of divergence {kind!r}", key, known, ConfigError)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"divergence {kind!r}: {key}={value!r} is not a number")
    return DIVERGENCES[kind](**numbers)

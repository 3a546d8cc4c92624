# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Which weights of a matrix stay when a share of them is pruned: pure tensor functions.

Wanda (arXiv 2306.11695) scores a weight of W (out, in) by what it adds to the output on calibration text,

    score_ij = |W_ij| ||x_j||,        ||x_j||^2 = E[x_j^2], the diagonal of the inputs' second moment

and compares scores within an output row, so that every row loses the same share. Without text every ||x_j||
is 1, which is pruning by magnitude. The pattern "N:M" keeps N of every M neighbours of a row.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from .errors import PlanError, ShareError


MASKS = ("magnitude", "wanda")


def keep_mask(W: Tensor, sparsity: float, power: Tensor | None = None, pattern: str | None = None) -> Tensor:
    """True where a weight of W (out, in) stays; in each row `round(sparsity * in)` do not, or M - N of every
    M with a pattern. Of equal scores the last ones stay.

    Args:
        power: E[x_j^2] of each input, (in,); one for all if None.
    """
    score = W.float().abs() if power is None else W.float().abs() * power.float().to(W.device).sqrt()
    count = round(sparsity * W.shape[1])
    if pattern is not None:
        stay, of = read_pattern(pattern)
        score, count = score.unflatten(1, (-1, of)), of - stay
    lowest = score.argsort(dim=-1, stable=True)[..., :count]
    mask = torch.ones_like(score, dtype=torch.bool).scatter_(-1, lowest, False)
    return mask.reshape(W.shape)


def read_pattern(pattern: str, error: type[ShareError] = PlanError) -> tuple[int, int]:
    """`"2:4"` -> (2, 4)."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern) if isinstance(pattern, str) else None
    stay, of = map(int, found.groups()) if found else (0, 0)
    if not 0 < stay < of:
        raise error(f"pattern is {pattern!r:.80}; one such as '2:4' fits, of every 4 neighbours 2 stay")
    return stay, of


def require_share(sparsity: float, pattern: str | None, error: type[ShareError] = PlanError) -> None:
    """Raise `error` unless `sparsity` is a share of weights to prune, and the pattern's if there is one."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0.0 <= sparsity < 1.0:
        raise error(f"sparsity is {sparsity!r:.80}; 0 <= sparsity < 1 fits")
    if pattern is None:
        return
    stay, of = read_pattern(pattern, error)
    if abs(sparsity - (1 - stay / of)) > 1e-6:
        raise error(f"pattern {pattern!r} is of sparsity {1 - stay / of:g}, not {sparsity:g}")


def require_width(name: str, inputs: int, pattern: str | None, error: type[ShareError] = PlanError) -> None:
    """Raise `error` unless the `inputs` of site `name` divide into the pattern's neighbours."""
    if pattern is not None and inputs % read_pattern(pattern, error)[1]:
        raise error(f"site {name!r} has {inputs} inputs, which do not divide into pattern {pattern!r}")

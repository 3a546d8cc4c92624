# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""LIM and ZD: whole blocks ranked by a score, the important ones at the high option, the rest at the low one
(arXiv 2406.17415). Baselines: nothing is evaluated, and a block is a coarse unit.

    LIM_l = -cos(x_l, y_l), x_l what enters block l and y_l what leaves it, averaged over tokens:
            higher = more important, the block turns its input more
    ZD_l  = share of the block's weights whose z-score (w - mean) / std exceeds 1:
            lower = more important; no data
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..budget import Budget
from ..errors import ConfigError
from ..sites import Site
from .space import Candidate, Space


def block_of(site: Site) -> str:
    """The layer of a site; a site outside of all stacks is a block by itself."""
    return site.name if site.stack is None else f"{site.stack}.{site.depth}"


def lim(influence: Iterable[float]) -> list[float]:
    """LIM of each block from its block influence, 1 - cos."""
    return [value - 1.0 for value in influence]


def zd(weights: Iterable[Tensor]) -> float:
    """ZD of a block from its weights."""
    total = high = 0
    sums = [0.0, 0.0]
    held = [w.detach() for w in weights]
    for w in held:
        total += w.numel()
        sums[0] += float(w.double().sum())
        sums[1] += float(w.double().square().sum())
    if not total:
        raise ConfigError("a block without weights has no z-scores")
    mean = sums[0] / total
    edge = mean + max(sums[1] / total - mean**2, 0.0) ** 0.5
    for w in held:
        high += int((w.double() > edge).sum())
    return high / total


def two_levels(space: Space, importance: Mapping[str, float], budget: Budget) -> Candidate:
    """Blocks at their largest option in order of importance, as many as the budget allows, others at their
    smallest.
    """
    space.check(budget)
    missing = sorted({d.block for d in space.decisions} - set(importance))
    if missing:
        raise ConfigError(f"no importance for the block {missing[0]!r}")
    candidate = space.smallest
    for block in sorted(importance, key=lambda b: (-importance[b], b)):
        raised = tuple(
            n - 1 if d.block == block else now
            for d, n, now in zip(space.decisions, space.sizes, candidate, strict=True)
        )
        if not space.fits(raised, budget):
            break
        candidate = raised
    return candidate

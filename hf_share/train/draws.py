# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Random choices that are functions of names alone, and the distribution that a mean leaves most open.

    u(seed, step, ...) = sha256("seed/step/...") as a fraction of 1
    p(v) = exp(tau x_v) / sum over w of exp(tau x_w),   tau such that sum of x_v p(v) = f,   x in [0, 1]

There is no state: every process, a recomputed forward and a restarted run draw the same, and the draw at a
site does not depend on which other sites there are. The second line is the maximum-entropy distribution over
the offered values v, at x_v between the smallest (0) and the largest (1), with the mean at f.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar


Value = TypeVar("Value", int, float)


def uniform(*names: object) -> float:
    """A number in [0, 1) that is a function of `names`."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def pick(values: Sequence[Value], weights: Sequence[float], u: float) -> Value:
    """The value at fraction `u` of the summed weights."""
    *inner, total = accumulate(weights)
    return values[bisect_right(inner, u * total)]


@lru_cache(maxsize=1024)
def max_entropy(values: tuple[Value, ...], level: float) -> tuple[float, ...]:
    """Probabilities of `values`, smallest first, whose mean lies at `level` between the smallest and the
    largest.

    >>> [round(p, 3) for p in max_entropy((2, 3, 4), 0.5)]
    [0.333, 0.333, 0.333]
    """
    span = values[-1] - values[0]
    if span == 0:
        return (1.0,)
    at = [(value - values[0]) / span for value in values]
    if level in (0.0, 1.0):  # tau is infinite
        return tuple(float(x == level) for x in at)
    bound = 1.0
    while not _mean(at, -bound) <= level <= _mean(at, bound):
        bound *= 2.0
    low, high = -bound, bound
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _mean(at, middle) < level else (low, middle)
    return tuple(_tilted(at, (low + high) / 2.0))


def _tilted(at: Sequence[float], tau: float) -> list[float]:
    most = max(0.0, tau)  # of tau x for x in [0, 1]
    weights = [math.exp(tau * x - most) for x in at]
    total = sum(weights)
    return [weight / total for weight in weights]


def _mean(at: Sequence[float], tau: float) -> float:
    return sum(x * p for x, p in zip(at, _tilted(at, tau), strict=True))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Means with spread, paired differences over seeds, and verdicts on hypotheses.

Runs of one seed see the same data in the same order, so their difference d_s has less spread than either.
The 95 % interval of its mean is  mean(d) +- t_{0.975, n-1} sd(d) / sqrt(n).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % t-interval; infinite for fewer than two numbers."""

    mean: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if math.isinf(self.half) else f"{self.mean:.4f} ± {self.half:.4f}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its 95 % interval."""
    n = len(values)
    if n < 2:
        return Interval(statistics.fmean(values) if n else math.nan, math.inf, n)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(statistics.fmean(values), half, n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """ours - theirs over the seeds that both have."""
    return interval([ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())])


def verdict(difference: Interval) -> str:
    """Whether a number that should be below 0 is: "confirmed", "refuted", or "undecided"."""
    if difference.high < 0.0:
        return "confirmed"
    return "refuted" if difference.low > 0.0 else "undecided"


def verdict_within(difference: Interval, margin: float) -> str:
    """Whether a difference lies within +- margin."""
    if -margin <= difference.low and difference.high <= margin:
        return "confirmed"
    outside = difference.low > margin or difference.high < -margin
    return "refuted" if outside else "undecided"

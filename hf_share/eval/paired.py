# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The difference of two models on the same items.

    d_i = theirs_i - ours_i,        mean(d) +- sd(d) / sqrt(n)

Two models that mostly agree have a difference with far less spread than either score, so that a paired
difference finds what two separate standard errors hide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Mean difference, its standard error (None for fewer than two items), and the items it is of."""

    mean: float
    stderr: float | None
    items: int

    @property
    def differs(self) -> bool:
        """Whether the difference is more than two standard errors from none."""
        return self.stderr is not None and abs(self.mean) > 2 * self.stderr

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" if self.stderr is None else f"{self.mean:+.4f} ± {self.stderr:.4f}"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """theirs - ours over items in the same order.

    Example:
        >>> print(paired_difference([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]))
        -0.2500 ± 0.2500
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} and {len(theirs)} items; both models must have scored the same ones")
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else None
    return Paired(mean=statistics.fmean(differences), stderr=error, items=n)

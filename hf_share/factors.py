# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The rule `factors`: a weight is replaced by a product of two thin matrices of its own.

    W' = B A,    A (r, in),  B (out, r)        r (in + out) numbers instead of in out

Nothing is shared. It is what MASA comes to with no atoms, what it is compared with (whitened singular value
decomposition, SVD-LLM, arXiv 2403.07378), and, trained from random numbers, its low-rank baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .errors import PlanError, unknown
from .linalg import best_factors
from .rules import Rule, Shape, rule
from .sites import Site


INITS = ("svd", "whitened", "random")


@rule
@dataclass(frozen=True, kw_only=True)
class Factors(Rule):
    """`W' = B A`. With init "svd" it is the nearest product to the weight it replaces, "whitened" weighs the
    error by the inputs of calibration text, "random" draws factors whose product has standard deviation
    `std`.
    """

    name: ClassVar[str] = "factors"
    kind: ClassVar[str] = "replace"
    about: ClassVar[About | None] = About("low-rank", "weights are products of two thin matrices")

    r: int
    init: str = "svd"
    std: float = 0.02

    def __post_init__(self):
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise PlanError(f"factors: r is {self.r!r}; a whole number of at least 1 fits")
        if self.init not in INITS:
            raise unknown("factors init", self.init, INITS)
        if isinstance(self.std, bool) or not isinstance(self.std, (int, float)) or not 0 < self.std < 1e6:
            raise PlanError(f"factors: std is {self.std!r}; a positive number fits")

    @property
    def reads(self) -> str:
        return "" if self.init == "random" else "weight"

    @property
    def calibrated(self) -> bool:
        return self.init == "whitened"

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if self.r > min(site.shape):
                raise PlanError(
                    f"rank {self.r} at site {site.name!r}: the weight is {site.out_features} x "
                    f"{site.in_features}, at most rank {min(site.shape)} fits"
                )

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return {}

    def private(self, site: Site) -> dict[str, Shape]:
        return {"A": (self.r, site.in_features), "B": (site.out_features, self.r)}

    def along(self, name: str) -> int:
        return -2 if name == "B" else -1

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["B"] @ t["A"]

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        return F.linear(F.linear(x, t["A"]), t["B"])

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        value = torch.empty(tensor.shape)
        value.normal_(0.0, math.sqrt(self.std / math.sqrt(self.r)), generator=generator)
        with torch.no_grad():
            tensor.copy_(value)

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        values = {}
        for site in sites if self.reads else ():
            moment = moments[site.name] if self.calibrated else None
            A, B = best_factors(source[site.name], self.r, moment)
            values[site.name] = {"A": A, "B": B}
        return values

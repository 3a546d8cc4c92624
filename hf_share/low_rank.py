# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The rule `low_rank`: a delta B A, each factor shared by the group or private to the site.

    y = W x + s B A dropout(x)        A (r, in), B (out, r)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .errors import PlanError, unknown
from .linalg import best_factors
from .rules import Rule, Shape, rule
from .sites import Site


LOW_RANK = About("low-rank", "each weight has a low-rank delta of its own")
SHARED_LOW_RANK = About("share-lora", "low-rank deltas share factors between layers", "2406.10785")


@rule
@dataclass(frozen=True, kw_only=True)
class LowRank(Rule):
    """`delta W = scale * B A`, A (r, in), B (out, r); `share` names the factors the group stores once: "",
    "A", "B", "AB".

    With share "" it is LoRA; "A" is ShareLoRA's ShareA. `rank` is the active choice: the first `rank` rows of
    A and columns of B, the full `r` if None; `ranks` narrows what is offered. The scale does not follow the
    choice.

    With init "svd" the delta starts as the best rank-r approximation of what the present weight lacks of the
    source model's; "whitened" weighs the error by the inputs of calibration text. A site that lacks nothing
    starts like LoRA.
    """

    name: ClassVar[str] = "low_rank"
    kind: ClassVar[str] = "add"
    prefixes: ClassVar[bool] = True
    active: ClassVar[tuple[str, ...]] = ("rank",)

    r: int
    scale: float = 1.0
    share: str = ""
    dropout: float = 0.0
    init: str = "kaiming"
    rank: int | None = None
    ranks: tuple[int, ...] | None = None

    INITS: ClassVar[tuple[str, ...]] = ("kaiming", "gaussian", "random", "svd", "whitened")

    def __post_init__(self):
        for name in ("r", "rank"):
            value = getattr(self, name)
            if not (value is None and name == "rank") and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise PlanError(f"low_rank: {name} is {value!r}; a whole number of at least 1 fits")
        if self.rank is not None and self.rank > self.r:
            raise PlanError(f"low_rank: rank {self.rank} is more than r = {self.r}")
        self._read_ranks()
        if self.share not in ("", "A", "B", "AB"):
            raise unknown("low_rank share", self.share, ("", "A", "B", "AB"))
        if self.init not in self.INITS:
            raise unknown("low_rank init", self.init, self.INITS)
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise PlanError(f"low_rank: dropout is {self.dropout!r}; 0 <= dropout < 1 fits")
        if (
            isinstance(self.scale, bool)
            or not isinstance(self.scale, (int, float))
            or not math.isfinite(self.scale)
        ):
            raise PlanError(f"low_rank: scale is {self.scale!r}; a finite number fits")
        if self.fitted and (self.share or not self.scale):
            raise PlanError(
                f"low_rank: init {self.init!r} fits each site by itself; share {self.share!r} and scale "
                f"{self.scale!r} do not go with it"
            )

    def _read_ranks(self) -> None:
        if self.ranks is None:
            return
        ranks = tuple(self.ranks) if isinstance(self.ranks, (list, tuple)) else ()
        known = all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in ranks)
        if not ranks or not known or list(ranks) != sorted(set(ranks)) or ranks[-1] != self.r:
            raise PlanError(f"low_rank: ranks is {self.ranks!r:.80}; rising ranks up to r = {self.r} fit")
        object.__setattr__(self, "ranks", ranks)
        if self.rank is not None and self.rank not in ranks:
            raise PlanError(f"low_rank: rank {self.rank} is not one of {ranks}")

    def told(self) -> About:
        return SHARED_LOW_RANK if self.share else LOW_RANK

    @property
    def fitted(self) -> bool:
        """Whether the factors start as those of what the present weight lacks."""
        return self.init in ("svd", "whitened")

    @property
    def reads(self) -> str:
        return "residual" if self.fitted else ""

    @property
    def calibrated(self) -> bool:
        return self.init == "whitened"

    def check(self, sites: Sequence[Site]) -> None:  # noqa: B027 - most rules have nothing to check
        for site in sites:
            # beyond min(in, out) more rank adds nothing but is what peft's LoRA allows on narrow heads;
            # beyond max(in, out) the factors alone outgrow the weight on both sides
            most = max(site.shape)
            if self.r > most:
                raise PlanError(
                    f"rank {self.r} at site {site.name!r}: the weight is {site.out_features} x "
                    f"{site.in_features}, at most rank {most} fits"
                )
            for letter, size in (("A", site.in_features), ("B", site.out_features)):
                first = sites[0].in_features if letter == "A" else sites[0].out_features
                if letter in self.share and size != first:
                    raise PlanError(
                        f"site {site.name!r} cannot share {letter} with {sites[0].name!r}: {size} != {first}"
                    )

    def _shapes(self, site: Site) -> dict[str, Shape]:
        return {"A": (self.r, site.in_features), "B": (site.out_features, self.r)}

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return {k: v for k, v in self._shapes(sites[0]).items() if k in self.share}

    def private(self, site: Site) -> dict[str, Shape]:
        return {k: v for k, v in self._shapes(site).items() if k not in self.share}

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        found = self.scaled_factors(t)
        return None if found is None else (found[0], found[1] * found[2])

    def scaled_factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
        return (*self._active(t), self.scale)

    def along(self, name: str) -> int:
        return -2 if name == "B" else -1

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        A, B = self._active(t)
        return (B @ A) * self.scale

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        A, B = self._active(t)
        if training and self.dropout:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, A), B) * self.scale

    def _active(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        A, B = t["A"], t["B"]
        return (A, B) if self.rank is None else (A[: self.rank], B[:, : self.rank])

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        values = {}
        for site in sites:
            residual = source[site.name]
            if not residual.any():
                continue
            A, B = best_factors(residual, self.r, moments[site.name] if self.calibrated else None)
            values[site.name] = {"A": A, "B": B / self.scale}
        return values

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        value = torch.zeros(tensor.shape)
        if name == "A" and self.init == "gaussian":
            value.normal_(0.0, 1.0 / self.r, generator=generator)
        elif name == "A":
            bound = 1.0 / math.sqrt(sites[0].in_features)
            value.uniform_(-bound, bound, generator=generator)
        elif self.init == "random":
            value.normal_(0.0, 0.02, generator=generator)
        with torch.no_grad():
            tensor.copy_(value)

    def choices(self) -> dict[str, tuple[Any, ...]]:
        return {"rank": self.ranks or tuple(range(1, self.r + 1))}

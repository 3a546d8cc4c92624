# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The rule `sparse_delta`: a low-rank delta that leaves the zeros of a pruned weight alone.

    W' = W + s (B A) * (W != 0)        A (r, in), B (out, r)

SparsePEFT of SQFT (arXiv 2410.03750): merged, the weight is as sparse as it was, where W + B A would be dense
again. The first k ranks work by themselves, as in `low_rank`. It costs a product of the size of W, where an
unmasked delta costs r (in + out).

With `sparsity` the weight is pruned before (`masks.py`), once, when the rule is fitted; a checkpoint holds
what is left. A mask that follows the present zeros needs no tensor of its own, and says the same after a
reload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .errors import PlanError, unknown
from .low_rank import LowRank
from .masks import MASKS, keep_mask, require_share, require_width
from .rules import rule
from .sites import Site


@rule
@dataclass(frozen=True, kw_only=True)
class SparseDelta(LowRank):
    """`W' = W + scale (B A) * (W != 0)`; fields as of `low_rank`.

    Args:
        sparsity: share of each output row's weights that `fit` prunes; 0 takes the zeros there are.
        pattern: "2:4" keeps 2 of every 4 neighbours; None any of the row.
        mask: "magnitude", or "wanda", which weighs magnitudes by the inputs of calibration text.
    """

    name: ClassVar[str] = "sparse_delta"
    kind: ClassVar[str] = "map"
    over: ClassVar[str] = "Wy"
    about: ClassVar[About | None] = About(
        "sparse-peft", "low-rank deltas leave the zeros of pruned weights alone", "2410.03750"
    )

    sparsity: float = 0.0
    pattern: str | None = None
    mask: str = "magnitude"

    def __post_init__(self):
        super().__post_init__()
        if self.fitted:
            raise PlanError(f"sparse_delta: init {self.init!r} is of unmasked factors; 'kaiming' fits")
        require_share(self.sparsity, self.pattern)
        if self.mask not in MASKS:
            raise unknown("sparse_delta mask", self.mask, MASKS)

    def told(self) -> About:
        return self.about or super().told()

    @property
    def reads(self) -> str:
        return "weight" if self.sparsity else ""

    @property
    def rewrites(self) -> bool:
        return bool(self.sparsity)

    @property
    def calibrated(self) -> bool:
        return bool(self.sparsity) and self.mask == "wanda"

    def check(self, sites: Sequence[Site]) -> None:
        super().check(sites)
        for site in sites:
            require_width(site.name, site.in_features, self.pattern)

    def scaled_factors(self, t: Mapping[str, Tensor]) -> None:
        return None  # masked, the product has no low rank

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["W"] + self._delta(t)

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        if training and self.dropout:
            x = F.dropout(x, self.dropout)
        return t["y"] + F.linear(x, self._delta(t).to(x.dtype))

    def _delta(self, t: Mapping[str, Tensor]) -> Tensor:
        delta = super().weight(t)
        return torch.where(t["W"] != 0, delta, torch.zeros_like(delta))

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """The pruned weights; one that stands at several depths is pruned once, for the inputs of all."""
        visits: dict[int, list[str]] = {}
        for site in sites if self.sparsity else ():
            visits.setdefault(source[site.name].data_ptr(), []).append(site.name)
        values: dict[str, dict[str, Tensor]] = {}
        for names in visits.values():
            W, power = source[names[0]], None
            if self.calibrated:
                power = torch.stack([moments[name].diagonal() for name in names]).mean(0)
            pruned = W.masked_fill(~keep_mask(W, self.sparsity, power, self.pattern), 0.0)
            values.update(dict.fromkeys(names, {"W": pruned}))
        return values

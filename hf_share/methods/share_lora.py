# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""ShareLoRA: LoRA whose A, B, or both are one matrix for all layers of a module type (arXiv 2406.10785).

For layer l of module type t (q, k, v, o, gate, up, down), with s = alpha / r:

    y = W[t,l] x + s B[t,l] A[t] dropout(x)          ShareA: one A for each type        B[t,l] zero at start
    y = W[t,l] x + s B[t]   A[t,l] dropout(x)        ShareB
    y = W[t,l] x + s B[t]   A[t] dropout(x)          ShareAB: the same delta in every layer of the type

    parameters = sum over t of  r in_t (1 or L)  +  r out_t (1 or L)

The shared matrices are trained; the gradient of a shared A is the sum over its layers. `share_modules`
narrows sharing to some types (`("q_proj", "k_proj", "v_proj")`), the rest is ordinary LoRA. Types whose
layers differ in shape share within each shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..adapter import INITS, AdapterConfig, ends, group_names, require_ends
from ..config import method
from ..errors import ConfigError, unknown
from ..low_rank import LowRank
from ..plan import SharePlan
from ..sites import Site
from ..steps import Generate


SHARES = ("A", "B", "AB")


@method
@dataclass
class ShareLoraConfig(AdapterConfig):
    """Config of ShareLoRA, for `get_peft_model` or `hf_share.share`. Takes what `AdapterConfig` takes.

    Args:
        share: which factors are one per module type: `"A"`, `"B"` or `"AB"`.
        share_modules: types that share, by the end of their path; all targets if None.

    Example:
        >>> config = ShareLoraConfig(r=8, lora_alpha=16, share="A", target_modules="all-linear")
        >>> config.method
        'share_lora'
    """

    name: ClassVar[str] = "share_lora"

    share: str = "A"
    share_modules: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.share not in SHARES:
            raise unknown("share", self.share, SHARES, ConfigError)
        self._take_list("share_modules", str)

    def steps(self, model: nn.Module, calibration: object = None) -> SharePlan:
        types = self.types(model)
        require_ends(self.share_modules or (), [sites[0].role for sites in types], "share_modules names ")
        names = group_names(model, "lora", types)
        return SharePlan(tuple(self._step(*pair) for pair in zip(types, names, strict=True)))

    def _step(self, sites: list[Site], group: str) -> Generate:
        delta = LowRank(
            r=self.r,
            scale=self.scale,
            share=self._shared(sites[0].role),
            dropout=self.lora_dropout,
            init=INITS[self.init_weights],
        )
        args = {**delta.args(), "scale": self.scale}
        return Generate(rule=delta.name, sites=tuple(s.name for s in sites), group=group, args=args)

    def _shared(self, role: str) -> str:
        everywhere = self.share_modules is None
        return self.share if everywhere or any(ends(role, m) for m in self.share_modules or ()) else ""

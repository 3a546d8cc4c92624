# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A private scale on the outputs of a shared weight: `W' = diag(s) W`, with s (out,) one at start.

It costs one number for each output where a low-rank delta costs r for each input and output, and works on
quantised weights, since `diag(s) W x = s * (W x)` needs the product alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .about import About
from .rules import Rule, Shape, rule
from .sites import Site


@rule
@dataclass(frozen=True, kw_only=True)
class Scale(Rule):
    """`W' = diag(s) W`: every output of every site has a factor of its own."""

    name: ClassVar[str] = "scale"
    kind: ClassVar[str] = "map"
    over: ClassVar[str] = "y"
    about: ClassVar[About | None] = About("scale", "each output of a weight has a factor of its own")

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return {}

    def private(self, site: Site) -> dict[str, Shape]:
        return {"s": (site.out_features,)}

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["s"][:, None] * t["W"]

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        return t["s"] * t["y"]

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        with torch.no_grad():
            tensor.fill_(1.0)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The rule `atoms` of MASA (arXiv 2508.04581): the weights of a group are sums of the same few matrices.

    W_l = sum over s of c_ls D_s         D (S, out, in) stored once,  c_l (S,) of each layer

is formed in fp32 and then cast, at the cost of S out in multiplications for a pass, however many tokens. Two
ways to hold the coefficients. `direct`: c itself. `mlp`, for training: a three-layer net of the group maps an
embedding e (64,) of each site to c,

    c = M3 silu(M2 silu(M1 e + m1) + m2) + m3        M1, M2 (64, 64), M3 (S, 64)

which couples the steps the layers take; `settled` evaluates it once and keeps c. The paper has an embedding
for each block and does not print its sizes; here every site has its own, and widths and starting values are
ours: e ~ N(0, 1), D ~ N(0, std^2), m3 = 1 / sqrt(S) and a little noise, so that |c| is about 1 and W_l has
about the variance of D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .errors import PlanError, unknown
from .linalg import gram_pca
from .rules import Rule, Shape, rule
from .sites import Site


COEFS = ("direct", "mlp")
INITS = ("pca", "random")
WIDTH = 64  # of the embeddings and of the net
NOISE = 0.02  # on the net's last bias


@rule
@dataclass(frozen=True, kw_only=True)
class Atoms(Rule):
    """`W_l = sum over s of c_ls D_s`, letters as above. With init "pca" the atoms are the principal ones of
    the weights they replace, and the squared error is the sum of the discarded eigenvalues; with "random"
    they are drawn with standard deviation `std`, to be trained.
    """

    name: ClassVar[str] = "atoms"
    kind: ClassVar[str] = "replace"
    about: ClassVar[About | None] = About("masa", "weights are sums of a few shared matrices", "2508.04581")

    S: int
    coef: str = "direct"
    init: str = "pca"
    std: float = 0.02

    def __post_init__(self):
        if isinstance(self.S, bool) or not isinstance(self.S, int) or self.S < 1:
            raise PlanError(f"atoms: S is {self.S!r}; a whole number of at least 1 fits")
        if self.coef not in COEFS:
            raise unknown("atoms coef", self.coef, COEFS)
        if self.init not in INITS:
            raise unknown("atoms init", self.init, INITS)
        if self.coef == "mlp" and self.init != "random":
            raise PlanError("atoms: coefficients of an mlp are trained from init 'random'")
        if isinstance(self.std, bool) or not isinstance(self.std, (int, float)) or not 0 < self.std < 1e6:
            raise PlanError(f"atoms: std is {self.std!r}; a positive number fits")

    @property
    def reads(self) -> str:
        return "weight" if self.init == "pca" else ""

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.shape != sites[0].shape:
                raise PlanError(
                    f"site {site.name!r} cannot share atoms with {sites[0].name!r}: {site.shape} != "
                    f"{sites[0].shape}"
                )

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        net = {
            "M1": (WIDTH, WIDTH), "m1": (WIDTH,), "M2": (WIDTH, WIDTH), "m2": (WIDTH,),
            "M3": (self.S, WIDTH), "m3": (self.S,),
        }  # fmt: skip
        return {"D": (self.S, *sites[0].shape), **(net if self.coef == "mlp" else {})}

    def private(self, site: Site) -> dict[str, Shape]:
        return {"e": (WIDTH,)} if self.coef == "mlp" else {"c": (self.S,)}

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        D = t["D"]
        with _in_fp32(D.device.type):
            return {"W": torch.tensordot(self.coefficients(t), D.float(), dims=1).to(D.dtype)}

    def coefficients(self, t: Mapping[str, Tensor]) -> Tensor:
        """c (S,) in fp32."""
        if self.coef == "direct":
            return t["c"].float()
        t = {name: value.float() for name, value in t.items() if name != "D"}
        x = F.silu(_affine(t["e"], t["M1"], t["m1"]))
        x = F.silu(_affine(x, t["M2"], t["m2"]))
        return _affine(x, t["M3"], t["m3"])

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["W"]

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        value = torch.empty(tensor.shape)
        if name == "D":
            value.normal_(0.0, self.std, generator=generator)
        elif name == "e":
            value.normal_(generator=generator)
        elif name == "c":
            value.normal_(generator=generator)
            value /= value.norm().clamp_min(1e-6)
        elif name == "m3":
            value.normal_(1.0 / math.sqrt(self.S), NOISE, generator=generator)
        else:
            bound = 1.0 / math.sqrt(WIDTH)
            value.uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            tensor.copy_(value)

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        if self.init != "pca":
            return {}
        D, C, _ = gram_pca([source[site.name] for site in sites], self.S)
        full = D.new_zeros(self.S, *D.shape[1:])  # more atoms than sites start at zero
        full[: len(D)] = D
        rows = {site.name: {"c": F.pad(c, (0, self.S - len(c)))} for site, c in zip(sites, C, strict=True)}
        return {"": {"D": full}, **rows}

    def settled(self, t: Mapping[str, Tensor]) -> tuple[Rule, dict[str, Tensor]] | None:
        if self.coef == "direct":
            return None
        c = self.coefficients(t).to(t["e"].dtype)
        return replace(self, coef="direct"), {"D": t["D"], "c": c}


def _in_fp32(device: str):
    """Sums of atoms are taken in fp32 also where a training run computes in bf16."""
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _affine(x: Tensor, M: Tensor, m: Tensor) -> Tensor:
    # not F.linear: how it sums the product with one vector depends on where in memory a file was put
    return (M * x).sum(-1) + m

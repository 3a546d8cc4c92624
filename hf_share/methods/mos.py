# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""MoS, mixture of shards: every layer's LoRA factors are put together from one pool for each module type
(arXiv 2410.00938).

For module type t with L layers, equivalent rank e, rank r, l shards to a vector and private rank p:

    pool A (N, in / l),  pool B (N, out / l),  N = e L l        e L sum over t of (in_t + out_t) parameters
    I_A[k] = the first (r - p) l of a random permutation of the (e - p) L l public shards,
             then layer k's own p l private shards              I_B[k] is another draw
    A[k] = pool_A[I_A[k]] reshaped to (r, in),  B[k] = pool_B[I_B[k]] reshaped to (r, out), transposed
    y = W x + alpha / r  B[k] A[k] dropout(x)

The count of parameters depends on e alone; r is free, and is larger than e because shards are met in many
layers. What sets the layers apart are four switches, and each can be turned off: *subset selection* (a layer
takes some of the pool, in an order of its own), *pair dissociation* (I_B differs from I_A), *vector
sharding* (l > 1) and *shard privatisation* (p > 0). With p = e = r it is LoRA of rank e.

Indices are drawn for each site by its name, from Python's `random.Random`, whose numbers are the same for a
seed on every machine and in every version; they are never stored.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..about import About
from ..adapter import INITS, AdapterConfig, group_names
from ..config import method
from ..errors import ConfigError, PlanError, unknown
from ..plan import SharePlan
from ..rules import Rule, rule
from ..sites import Site
from ..steps import Generate


MOST_UNUSED = 0.15  # share of public shards that no layer selects, above which a user should know


@rule
@dataclass(frozen=True, kw_only=True)
class Shards(Rule):
    """`delta W = scale * B A` with factors assembled from the pools of the group, as above.

    Letters as in the formula: `r`, `e`, `l` shards to a vector, `p`. `select` False takes the whole pool in
    its order; `dissociate` False makes I_B = I_A; `seed` is of the indices.
    """

    name: ClassVar[str] = "shards"
    kind: ClassVar[str] = "add"
    light: ClassVar[bool] = True
    about: ClassVar[About | None] = About(
        "mos", "low-rank factors are put together from a shared pool", "2410.00938"
    )

    r: int
    e: int
    l: int = 1  # noqa: E741 - the paper's letter
    p: int = 0
    scale: float = 1.0
    select: bool = True
    dissociate: bool = True
    seed: int = 0
    dropout: float = 0.0
    init: str = "kaiming"

    def __post_init__(self):
        for name, least in (("r", 1), ("e", 1), ("l", 1), ("p", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanError(f"shards: {name} is {value!r}; a whole number of at least {least} fits")
        if self.p > min(self.e, self.r):
            raise PlanError(
                f"shards: private rank {self.p} is more than min(e, r) = {min(self.e, self.r)}"
            )
        for name in ("select", "dissociate"):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"shards: {name} is {getattr(self, name)!r}; true or false fits")
        if self.init not in INITS.values():
            raise unknown("shards init", self.init, INITS.values())
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise PlanError(f"shards: dropout is {self.dropout!r}; 0 <= dropout < 1 fits")
        if not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise PlanError(f"shards: scale is {self.scale!r}; a finite number fits")

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.shape != sites[0].shape:
                raise PlanError(
                    f"site {site.name!r} cannot share a pool with {sites[0].name!r}: {site.shape} != "
                    f"{sites[0].shape}"
                )
            for side, size in (("input", site.in_features), ("output", site.out_features)):
                if size % self.l:
                    raise PlanError(
                        f"site {site.name!r}: {self.l} shards do not divide its {side} of {size}; "
                        f"{_divisors(site)} fit"
                    )
        most = largest_rank(self.e, self.p, len(sites))
        if self.r > most or (not self.select and self.r != most):
            exactly = "" if self.select else ", and without subset selection exactly that"
            raise PlanError(
                f"site {sites[0].name!r}: rank {self.r} does not fit: equivalent rank {self.e} and private "
                f"rank {self.p} over {len(sites)} layers give a layer at most r = {most}{exactly}; a larger "
                "equivalent rank gives more"
            )

    def shared(self, sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
        count, site = self.e * len(sites) * self.l, sites[0]
        return {"A": (count, site.in_features // self.l), "B": (count, site.out_features // self.l)}

    def private(self, site: Site) -> dict[str, tuple[int, ...]]:
        return {}

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        layer = [s.name for s in sites].index(site.name)
        index = self.index(site.name, layer, len(sites), "A")
        other = self.index(site.name, layer, len(sites), "B") if self.dissociate else index
        with torch.device("cpu"):
            return {"I_A": torch.tensor(index), "I_B": torch.tensor(other)}

    def index(self, name: str, layer: int, layers: int, matrix: str) -> list[int]:
        """Numbers of the r l shards that make `matrix` of the site `name`, the layer-th of its group."""
        public, own = (self.e - self.p) * layers * self.l, self.p * self.l
        chosen: Sequence[int] = range(public)
        if self.select:
            draw = random.Random(f"{self.seed}\0{name}\0{matrix}")
            keys = [draw.random() for _ in range(public)]
            chosen = sorted(range(public), key=keys.__getitem__)
        start = public + layer * own
        return [*chosen[: (self.r - self.p) * self.l], *range(start, start + own)]

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        A, B = t["A"].index_select(0, t["I_A"]), t["B"].index_select(0, t["I_B"])
        return {"A": A.reshape(self.r, -1), "B": B.reshape(self.r, -1).mT}

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return t["A"], t["B"] * self.scale

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return (t["B"] @ t["A"]) * self.scale

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        if training and self.dropout:
            x = F.dropout(x, self.dropout)
        return F.linear(F.linear(x, t["A"]), t["B"]) * self.scale

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        value = torch.zeros(tensor.shape)
        if name == "A" and self.init == "gaussian":
            value.normal_(0.0, 1.0 / self.r, generator=generator)
        elif name == "A":
            bound = 1.0 / math.sqrt(sites[0].in_features)  # of the whole vector, not of a shard
            value.uniform_(-bound, bound, generator=generator)
        elif self.init == "random":
            value.normal_(0.0, 0.02, generator=generator)
        with torch.no_grad():
            tensor.copy_(value)

    def unused(self, sites: Sequence[Site], matrix: str) -> float:
        """The share of public shards that no layer of the group selects, which never train."""
        layers, public = len(sites), (self.e - self.p) * len(sites) * self.l
        met = {i for k, s in enumerate(sites) for i in self.index(s.name, k, layers, matrix) if i < public}
        return 1.0 - len(met) / public if public else 0.0


def largest_rank(e: int, p: int, layers: int) -> int:
    """The largest rank a layer can put together: the whole public pool and its own shards."""
    return p + (e - p) * layers


def _divisors(site: Site) -> str:
    both = math.gcd(site.in_features, site.out_features)
    return ", ".join(str(d) for d in range(1, min(both, 64) + 1) if both % d == 0)


@method
@dataclass
class MosConfig(AdapterConfig):
    """Config of MoS, for `get_peft_model` or `hf_share.share`. Takes what `AdapterConfig` takes.

    Args:
        r: rank of each layer's factors, put together from shards; at most p + (e - p) layers.
        equivalent_rank: e; the adapter trains as many parameters as LoRA of this rank.
        num_shards: l, shards to a vector; it divides inputs and outputs of the targets.
        private_rank: p, how much of r a layer keeps to itself.
        pair_dissociation: B is put together by indices of its own.
        subset_selection: each layer takes its own part of the pool; False takes all of it, which needs
            r = p + (e - p) layers.
        index_seed: seed of the indices.

    Example:
        >>> MosConfig(r=8, equivalent_rank=2, target_modules="all-linear").method
        'mos'
    """

    name: ClassVar[str] = "mos"

    equivalent_rank: int = 2
    num_shards: int = 2
    private_rank: int = 1
    pair_dissociation: bool = True
    subset_selection: bool = True
    index_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.require_count("equivalent_rank")
        self.require_count("num_shards")
        self.require_count("private_rank", least=0)
        self.require_count("index_seed", least=0)
        if self.private_rank > min(self.equivalent_rank, self.r):
            raise ConfigError(
                f"private_rank={self.private_rank} is more than equivalent_rank={self.equivalent_rank} or "
                f"r={self.r}"
            )
        for name in ("pair_dissociation", "subset_selection"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; True or False fits")

    def steps(self, model: nn.Module, calibration: object = None) -> SharePlan:
        types = self.types(model)
        names = group_names(model, "mos", types)
        shards = self._rule()
        for sites in types:
            shards.check(sites)
        self._warn_unused(shards, types)
        args = {**shards.args(), "scale": shards.scale}
        return SharePlan(
            tuple(
                Generate(rule="shards", sites=tuple(s.name for s in sites), group=name, args=args)
                for sites, name in zip(types, names, strict=True)
            )
        )

    def _rule(self) -> Shards:
        return Shards(
            r=self.r,
            e=self.equivalent_rank,
            l=self.num_shards,
            p=self.private_rank,
            scale=self.scale,
            select=self.subset_selection,
            dissociate=self.pair_dissociation,
            seed=self.index_seed,
            dropout=self.lora_dropout,
            init=INITS[self.init_weights],
        )

    def _warn_unused(self, shards: Shards, types: list[list[Site]]) -> None:
        unused = [shards.unused(sites, matrix) for sites in types for matrix in "AB"]
        mean = sum(unused) / len(unused)
        if mean > MOST_UNUSED:
            warnings.warn(
                f"{mean:.0%} of the public shards are selected by no layer and will never train; a larger r "
                f"(now {self.r}) or private_rank (now {self.private_rank}) uses more of them",
                stacklevel=2,
            )

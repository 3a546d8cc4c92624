# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that let a weight see its first inputs only: feed-forward blocks and attentions of several sizes.

A *lane* is what runs through the middle of a sub-layer: a neuron of a feed-forward block, or a key-value
group of an attention with its queries. The *feeds* of a sub-layer (gate and up; q, k and v) fill the lanes,
and one weight (down; o) empties them. A sub-layer of k lanes is that weight on its first inputs,

    y = W (m * x)        m = 1 for inputs of the first k lanes, 0 for all others

which is the function of a sub-layer whose other lanes do not exist, whatever feeds them and however W is
made. Lanes are sorted once, the most important first (`sort_lanes.py`), so that every size is a prefix: a
smaller sub-layer holds the first rows of its feeds and the first columns of the weight (`cut.py`), as
MatFormer (arXiv 2310.07707) and LoNAS do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .errors import PlanError, unknown
from .plain import require_name
from .rules import Rule, Shape, rule
from .sites import Site


ORDERS = ("none", "l2", "activation")
MOST_LANES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Lanes(Rule):
    """A weight on the inputs of its first lanes. A subclass names the choice.

    Args:
        lanes: how many there are.
        sizes: the sizes that are offered, rising.
        role: the role of the weight itself, which is the end of its sites' names.
        feeds: the roles in the same layer that fill the lanes; of a fused weight, its part (`attn.c_attn:q`).
        order: what the lanes were sorted by: "l2", the norm of what they write; "activation", that times the
            root mean square of what they carry; or "none".
        cut: the other lanes are gone.
    """

    kind: ClassVar[str] = "limit"
    prefixes: ClassVar[bool] = True
    size_name: ClassVar[str]  # the field that holds the active choice

    lanes: int
    sizes: tuple[Any, ...]
    role: str
    feeds: tuple[str, ...]
    order: str = "none"
    cut: bool = False

    def __post_init__(self):
        lanes = self.lanes
        if isinstance(lanes, bool) or not isinstance(lanes, int) or not 1 <= lanes <= MOST_LANES:
            raise PlanError(f"{self.name}: lanes is {lanes!r}; a whole number from 1 to {MOST_LANES} fits")
        sizes = tuple(self.sizes) if isinstance(self.sizes, (list, tuple)) else ()
        if not sizes or not all(map(self._fits, sizes)) or list(sizes) != sorted(set(sizes)):
            raise PlanError(f"{self.name}: sizes is {self.sizes!r:.80}; rising {self._fitting} fit")
        object.__setattr__(self, "sizes", sizes)
        if self.count(sizes[-1]) != lanes:
            raise PlanError(f"{self.name}: the largest of sizes {sizes} is not the whole, {lanes} lanes")
        require_name(self.role, f"{self.name}: role")
        feeds = tuple(self.feeds) if isinstance(self.feeds, (list, tuple)) else ()
        for feed in feeds:
            require_name(feed, f"{self.name}: feed")
        if not feeds:
            raise PlanError(f"{self.name}: feeds is {self.feeds!r:.80}; the roles that fill the lanes fit")
        object.__setattr__(self, "feeds", feeds)
        if self.order not in ORDERS:
            raise unknown(f"{self.name} order", self.order, ORDERS)
        if self.size is not None and (not self._fits(self.size) or self.size not in sizes):
            raise PlanError(f"{self.name}: {self.size_name} is {self.size!r}; offered are {sizes}")
        if not isinstance(self.cut, bool):
            raise PlanError(f"{self.name}: cut is {self.cut!r}; true or false fits")

    _fitting: ClassVar[str]

    def _fits(self, size: Any) -> bool:
        raise NotImplementedError

    @property
    def size(self) -> Any:
        """The active choice; None is the whole."""
        return getattr(self, self.size_name)

    @property
    def calibrated(self) -> bool:
        return self.order == "activation"

    def count(self, size: Any = None) -> int:
        """How many lanes a sub-layer of this size has."""
        raise NotImplementedError

    def fed_by(self, site: str) -> tuple[str, ...]:
        """The names of the sites that fill the lanes of the site of this name."""
        return tuple(site.removesuffix(self.role) + feed for feed in self.feeds)

    @property
    def active_lanes(self) -> int:
        return self.lanes if self.size is None else self.count(self.size)

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.part is not None:
                raise PlanError(f"{self.name}: {site.name!r} is a part of a weight; lanes end in a whole one")
            if not site.name.endswith(self.role):
                raise PlanError(f"{self.name}: site {site.name!r} is not in the role {self.role!r}")
            if site.in_features % self.lanes:
                raise PlanError(f"site {site.name!r} has {site.in_features} inputs, not {self.lanes} lanes")

    def width(self, features: int) -> int:
        """How many of `features` inputs, or of a feed's rows, belong to the active lanes."""
        return features // self.lanes * self.active_lanes

    @property
    def limits(self) -> bool:
        """Whether there are lanes that are not active."""
        return not self.cut and self.active_lanes < self.lanes

    def limit(self, x: Tensor) -> Tensor:
        """x (..., in), zero beyond the active lanes."""
        if not self.limits:
            return x
        k = self.width(x.shape[-1])
        return F.pad(x[..., :k], (0, x.shape[-1] - k))

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return {}

    def private(self, site: Site) -> dict[str, Shape]:
        return {}

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return self.limit(t["W"])

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        raise AssertionError("a limit has no tensors")

    def choices(self) -> dict[str, tuple[Any, ...]]:
        return {} if self.cut else {self.size_name: self.sizes}


@rule
@dataclass(frozen=True, kw_only=True)
class Neurons(Lanes):
    """The first neurons of a feed-forward block: `ffn`, a share of them, to the nearest `multiple_of`."""

    name: ClassVar[str] = "neurons"
    about: ClassVar[About | None] = About(
        "elastic", "feed-forward blocks whose first neurons are narrower blocks", "2310.07707"
    )
    active: ClassVar[tuple[str, ...]] = ("ffn",)
    size_name: ClassVar[str] = "ffn"
    _fitting: ClassVar[str] = "shares, above 0 and up to 1,"

    ffn: float | None = None
    multiple_of: int = 1

    def __post_init__(self):
        m = self.multiple_of
        if isinstance(m, bool) or not isinstance(m, int) or m < 1:
            raise PlanError(f"neurons: multiple_of is {m!r}; a whole number of at least 1 fits")
        super().__post_init__()

    def _fits(self, size: Any) -> bool:
        return isinstance(size, (int, float)) and not isinstance(size, bool) and 0 < size <= 1

    def count(self, size: Any = None) -> int:
        if size is None or size == 1:
            return self.lanes
        m = self.multiple_of
        return min(max(round(size * self.lanes / m), 1) * m, self.lanes)


@rule
@dataclass(frozen=True, kw_only=True)
class Heads(Lanes):
    """The first key-value groups of an attention, with the queries that read them: `kv_groups`, a number."""

    name: ClassVar[str] = "heads"
    about: ClassVar[About | None] = About(
        "elastic", "attentions whose first heads are narrower attentions", "2310.07707"
    )
    active: ClassVar[tuple[str, ...]] = ("kv_groups",)
    size_name: ClassVar[str] = "kv_groups"
    _fitting: ClassVar[str] = "whole numbers up to the number of groups"

    kv_groups: int | None = None

    def _fits(self, size: Any) -> bool:
        return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= self.lanes

    def count(self, size: Any = None) -> int:
        return self.lanes if size is None else size

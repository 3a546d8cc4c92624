# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters that know the active width: rules around another rule that adds.

`by_width` has the tensors of its inner rule once for each width, and uses those of the active one (LLM-QFA's
decoupled adapters). `gated` has them once and multiplies what they add by a learned number for each width,

    delta W_b = g_b delta W

which starts at 1 for every width but the widest, where it is 0: low widths learn together, and the widest is
left alone until it pays. The inner rule is any that adds: low-rank, low-rank with A shared by all layers, MoS
shards, pooled low-rank. So the adapters of an elastic model may be shared, too.

`pooled` is QA-LoRA's form (arXiv 2309.14717): A (r, groups) meets the sum of each group of inputs,

    delta W[o, i] = scale (B A)[o, group of i]

a constant for each output and group, which `offset` of a nested weight takes in exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .about import About
from .around import Around
from .errors import PlanError
from .low_rank import LowRank
from .rules import Rule, Shape, rule
from .sites import Site
from .widths import Widths


@dataclass(frozen=True, kw_only=True)
class _Around(Widths, Around):
    """A rule around `inner` for each of `widths`."""

    kind: ClassVar[str] = "add"

    def __post_init__(self):
        Widths.__post_init__(self)
        Around.__post_init__(self)

    def check_inner(self, made: Rule) -> None:
        if made.kind != "add" or made.reads:
            known = "does not start as a delta that adds nothing known"
            raise PlanError(f"{self.name}: rule {made.name!r} {known}")

    @property
    def prefixes(self) -> bool:  # type: ignore[override]
        return self.made.prefixes


@rule
@dataclass(frozen=True, kw_only=True)
class ByWidth(_Around):
    """The tensors of the inner rule once for each width: `A_2bit`, `B_2bit`, `A_3bit`, ..."""

    name: ClassVar[str] = "by_width"
    about: ClassVar[About | None] = About(
        "elastic", "each width of a weight has a low-rank delta of its own", "2405.20202"
    )

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return self._each(self.made.shared(sites), self.kept or self.widths)

    def private(self, site: Site) -> dict[str, Shape]:
        return self._each(self.made.private(site), self.held)

    @staticmethod
    def _each(shapes: Mapping[str, Shape], widths: Sequence[int]) -> dict[str, Shape]:
        return {f"{name}_{b}bit": shape for b in widths for name, shape in shapes.items()}

    def whole(self, name: str) -> torch.dtype | None:
        return self.made.whole(name.rpartition("_")[0])

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        end, every = f"_{self.width}bit", tuple(f"_{b}bit" for b in self.widths)
        own = {name.removesuffix(end): value for name, value in t.items() if name.endswith(end)}
        constants = {name: value for name, value in t.items() if not name.endswith(every)}
        return self.made.form({**constants, **own})

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return self.made.weight(t)

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        return self.made.apply(x, t, training)

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        return self.made.factors(t)

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        self.made.reset(name.rpartition("_")[0], tensor, sites, generator)


@rule
@dataclass(frozen=True, kw_only=True)
class Gated(_Around):
    """The inner rule's delta times `g_2bit`, `g_3bit`, ... (1,), one number for each width of each site: a
    tensor each, so that training one width leaves the others' alone.
    """

    name: ClassVar[str] = "gated"
    about: ClassVar[About | None] = About(
        "elastic", "all widths of a weight share a low-rank delta, each behind a gate of its own"
    )

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return self.made.shared(sites)

    def private(self, site: Site) -> dict[str, Shape]:
        gates = {name: (1,) for name, b in self._gates.items() if b in self.held}
        return {**self.made.private(site), **gates}

    @property
    def _gates(self) -> dict[str, int]:
        return {f"g_{b}bit": b for b in self.widths}

    def whole(self, name: str) -> torch.dtype | None:
        return None if name in self._gates else self.made.whole(name)

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        formed = self.made.form({name: value for name, value in t.items() if name not in self._gates})
        return {**formed, "g": t[f"g_{self.width}bit"]}

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["g"] * self.made.weight(t)

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        return t["g"] * self.made.apply(x, t, training)

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        found = self.made.factors(t)
        return None if found is None else (found[0], t["g"] * found[1])

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        if name not in self._gates:
            return self.made.reset(name, tensor, sites, generator)
        widest = len(self.widths) > 1 and self._gates[name] == self.widths[-1]
        with torch.no_grad():
            tensor.fill_(0.0 if widest else 1.0)


@rule
@dataclass(frozen=True, kw_only=True)
class Pooled(LowRank):
    """`delta W[o, i] = scale (B A)[o, group of i]`: low-rank in groups of `group_size` inputs."""

    name: ClassVar[str] = "pooled"
    about: ClassVar[About | None] = About(
        "qa-lora", "low-rank deltas are constants of groups of inputs", "2309.14717"
    )

    group_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PlanError(f"pooled: group_size is {size!r}; a whole number of at least 1 fits")
        if self.reads:
            raise PlanError(f"pooled: init {self.init!r} is of unpooled factors; 'kaiming' fits")

    def check(self, sites: Sequence[Site]) -> None:
        super().check([replace(site, in_features=self._groups(site)) for site in sites])

    def _groups(self, site: Site) -> int:
        return -(-site.in_features // self.group_size)

    def _shapes(self, site: Site) -> dict[str, Shape]:
        return {"A": (self.r, self._groups(site)), "B": (site.out_features, self.r)}

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        return {"group": torch.arange(site.in_features, device="cpu") // self.group_size}

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**t, "A": t["A"][:, t["group"]]}

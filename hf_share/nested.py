# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The rule `nested`: a weight of few bits that holds its narrower versions.

Every weight has one code q of n bits, kept as n planes, and every width b a scale and an offset for each
group of G weights (`codes.py`):

    W_b = s_b (q >> (n - b)) + z_b

so the b-bit weight reads the first b planes, and 2, 3 and 4 bits together cost 4 + 3 * 32 / G bits a weight
where three models cost 9 + 3 * 32 / G. Three ways to hold several widths, `slicing`:

| slicing    | planes            | scales         | as in                                          |
| ---------- | ----------------- | -------------- | ---------------------------------------------- |
| "own"      | one code          | one each width | here                                           |
| "matquant" | one code, rounded | one for all    | MatQuant (arXiv 2502.06786)                    |
| "copies"   | a code each width | one each width | LLM-QFA (arXiv 2405.20202)                     |

MatQuant's slice is not the top bits alone but min(floor(q / 2^(n-b) + 1/2), 2^b - 1) 2^(n-b), so it reads a
plane more. `base` says how codes are found: "minmax" (clipped ranges), "gptq" (calibrated), "hqq"
(half-quadratic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About
from .codes import BY_WEIGHT, MOST_BITS, Coded, compensated, groups_of
from .errors import PlanError, unknown
from .planes import SPELLED, pack, read, spell, unpack
from .rules import Shape, rule
from .sites import Site
from .widths import Widths


SLICINGS = ("own", "matquant", "copies")
BASES = ("minmax", "gptq", "hqq")


@rule
@dataclass(frozen=True, kw_only=True)
class Nested(Widths):
    """`W_b = s_b (q >> (n - b)) + z_b`, letters as above.

    Args:
        widths, bits, kept: the widths b (`hf_share/widths.py`).
        planes: n, with slicing "matquant" at least the widest width; that width if None.
        group_size: G.
        lambdas: what an error counts at each width when codes are chosen; 2^-(widest - b) if None.
        affine: "fp16" or "fp32", in which scales and offsets are kept.
        tied: whether all sites of the group are visits of one weight, whose code is then stored once.
    """

    name: ClassVar[str] = "nested"
    kind: ClassVar[str] = "replace"
    about: ClassVar[About | None] = About(
        "elastic", "weights are codes of few bits whose top bits are narrower weights", "2402.10517"
    )
    frozen: ClassVar[bool] = True
    prefixes: ClassVar[bool] = True
    most: ClassVar[int] = MOST_BITS

    planes: int | None = None
    group_size: int = 64
    slicing: str = "own"
    base: str = "minmax"
    lambdas: tuple[float, ...] | None = None
    affine: str = "fp16"
    tied: bool = False

    def __post_init__(self):
        super().__post_init__()
        widths = self.widths
        for name, least, most in (("planes", widths[-1], MOST_BITS), ("group_size", 1, 1 << 20)):
            value = getattr(self, name)
            if value is None and name == "planes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise PlanError(f"nested: {name} is {value!r}; a whole number from {least} to {most} fits")
        for name, fit in (("slicing", SLICINGS), ("base", BASES), ("affine", SPELLED)):
            if getattr(self, name) not in fit:
                raise unknown(f"nested {name}", getattr(self, name), fit)
        if self.slicing != "matquant" and self.depth != widths[-1]:
            raise PlanError(
                f"nested: a code of {self.depth} bits has planes that no width of {widths} reads; only "
                "slicing 'matquant' rounds by them"
            )
        self._read_lambdas()

    def _read_lambdas(self) -> None:
        if self.lambdas is None:
            return
        given = self.lambdas if isinstance(self.lambdas, (list, tuple)) else ()
        known = all(isinstance(x, (int, float)) and not isinstance(x, bool) and x >= 0 for x in given)
        if len(given) != len(self.widths) or not known or not sum(given) > 0:
            raise PlanError(f"nested: lambdas is {self.lambdas!r}; a number for each of {self.widths} fits")
        object.__setattr__(self, "lambdas", tuple(map(float, given)))

    @property
    def calibrated(self) -> bool:
        return self.base == "gptq"

    @property
    def depth(self) -> int:
        """n, the number of bits of the code."""
        return self.planes or self.widths[-1]

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites if self.tied else ():
            if site.shape != sites[0].shape:
                raise PlanError(
                    f"site {site.name!r} cannot have the code of {sites[0].name!r}: {site.shape} != "
                    f"{sites[0].shape}"
                )

    def _shapes(self, site: Site, widths: Sequence[int]) -> dict[str, Shape]:
        eights = (site.out_features, -(-site.in_features // 8))
        count = groups_of(site.in_features, self.group_size)
        lines = (site.out_features, count, SPELLED[self.affine].itemsize)
        names = sorted({name for b in widths for name in self.names(b)})
        return {name: eights if name.startswith("plane") else lines for name in names}

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return self._shapes(sites[0], self.kept or self.widths) if self.tied else {}

    def private(self, site: Site) -> dict[str, Shape]:
        return {} if self.tied else self._shapes(site, self.held)

    def numbers(self, sites: Sequence[Site]) -> tuple[int, list[int]]:
        whole = [site.out_features * site.in_features for site in sites]  # a code for each weight
        return (whole[0], [0] * len(sites)) if self.tied else (0, whole)

    def whole(self, name: str) -> torch.dtype:
        return torch.uint8

    def names(self, b: int) -> list[str]:
        """The tensors that the weight of width b is made of."""
        if self.slicing == "copies":
            return [*(f"plane{b}_{k}" for k in range(b)), f"scale_{b}", f"offset_{b}"]
        if self.slicing == "matquant":
            count = min(b + 1, self.depth)  # the plane after the last one rounds
            return [*(f"plane_{k}" for k in range(count)), f"scale_{self.depth}", f"offset_{self.depth}"]
        return [*(f"plane_{k}" for k in range(b)), f"scale_{b}", f"offset_{b}"]

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        return {"group": torch.arange(site.in_features, device="cpu") // self.group_size}

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        *planes, s, z = (t[name] for name in self.names(self.width))
        group = t["group"]  # of each column
        q = self._slice(unpack(planes, len(group)))
        return {"W": read(s)[:, group] * q + read(z)[:, group]}

    def _slice(self, q: Tensor) -> Tensor:
        """What the planes that were read say at the active width, in fp32."""
        if self.slicing != "matquant":
            return q.float()
        if self.depth > self.width:
            q = ((q.int() + 1) >> 1).clamp(max=2**self.width - 1)
        return (q.int() << (self.depth - self.width)).float()

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return t["W"]

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        return F.linear(x, t["W"].to(x.dtype))

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        """Every weight zero."""
        with torch.no_grad():
            tensor.zero_()

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        if self.tied:
            mean = None
            if self.calibrated:  # one weight meets the inputs of all its visits
                mean = torch.stack([moments[site.name] for site in sites]).mean(0)
            return {"": self._coded(source[sites[0].name], mean)}
        return {s.name: self._coded(source[s.name], moments.get(s.name)) for s in sites}

    def _coded(self, W: Tensor, M: Tensor | None) -> dict[str, Tensor]:
        weights = self.lambdas or tuple(2.0 ** (b - self.widths[-1]) for b in self.widths)
        widths = dict(zip(self.widths, weights, strict=True))
        if self.slicing == "copies":
            made = [self._tensors(self._codes_of(W, M, b, {b: 1.0}), f"plane{b}", b, (b,)) for b in widths]
            return {name: value for tensors in made for name, value in tensors.items()}
        if self.slicing == "matquant":
            widths = {self.depth: 1.0}
        coded = self._codes_of(W, M, self.depth, widths)
        return self._tensors(coded, "plane", self.depth, tuple(widths))

    def _codes_of(self, W: Tensor, M: Tensor | None, bits: int, widths: Mapping[int, float]) -> Coded:
        if self.base == "gptq":
            assert M is not None, "gptq is calibrated"
            return compensated(W, M, bits, widths, self.group_size)
        return BY_WEIGHT[self.base](W, bits, widths, self.group_size)

    def _tensors(self, coded: Coded, stem: str, bits: int, lines: Sequence[int]) -> dict[str, Tensor]:
        out = {f"{stem}_{k}": plane for k, plane in enumerate(pack(coded.codes, bits))}
        for b in lines:
            out[f"scale_{b}"] = spell(coded.scale[b], self.affine)
            out[f"offset_{b}"] = spell(coded.offset[b], self.affine)
        return out

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Codes of few bits for what another rule stores: atoms, factors, low-rank deltas.

Every matrix that the inner rule stores has a code of b bits for each number and a scale and an offset for
each group of G neighbours (`codes.py`),

    m = s q + z        kept as b planes of bits and the bytes of s and z (`planes.py`)

and vectors are kept as they are, as their bytes. Neighbours are numbers of one rank, which are of one size: a
row of A (r, in), a column of B (out, r), a row of an atom. `hf_share.quantize` codes a model that is trained;
in a plan of its own the inner rule is fitted first, and its answer coded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .about import About
from .around import Around
from .codes import BY_WEIGHT, MOST_BITS, groups_of
from .errors import PlanError, unknown
from .planes import SPELLED, pack, read, spell, unpack
from .rules import Rule, Shape, rule
from .sites import Site


VECTORS = "fp32"
BYTES, GROUP = "_bytes", "_group"  # ends of names: of a vector's bytes, of a constant


@dataclass(frozen=True, kw_only=True)
class _Coded(Around):
    """Args: `bits`, `group_size`; `base`, how codes are found; `affine`, in which s and z are kept."""

    frozen: ClassVar[bool] = True

    bits: int = 4
    group_size: int = 64
    base: str = "minmax"
    affine: str = "fp16"

    def __post_init__(self):
        for name, most in (("bits", MOST_BITS), ("group_size", 1 << 20)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise PlanError(f"{self.name}: {name} is {value!r}; a whole number from 1 to {most} fits")
        for name, fit in (("base", BY_WEIGHT), ("affine", SPELLED)):
            if getattr(self, name) not in fit:
                raise unknown(f"{self.name} {name}", getattr(self, name), fit)
        super().__post_init__()

    def check_inner(self, made: Rule) -> None:
        if made.kind != self.kind or made.frozen:
            raise PlanError(f"{self.name}: rule {made.name!r} has no numbers that it could code")

    def told(self) -> About:
        inner = self.made.told()
        return replace(inner, does=f"{inner.does}, kept in codes of {self.bits} bits")

    @property
    def reads(self) -> str:
        return self.made.reads

    @property
    def calibrated(self) -> bool:
        return self.made.calibrated

    @property
    def light(self) -> bool:  # type: ignore[override]
        return self.made.light

    def numbers(self, sites: Sequence[Site]) -> tuple[int, list[int]]:
        return self.made.numbers(sites)

    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        return self._shapes(self.made.shared(sites))

    def private(self, site: Site) -> dict[str, Shape]:
        return self._shapes(self.made.private(site))

    def whole(self, name: str) -> torch.dtype:
        return torch.uint8

    def _shapes(self, inner: Mapping[str, Shape]) -> dict[str, Shape]:
        out: dict[str, Shape] = {}
        for name, shape in inner.items():
            if len(shape) < 2:
                out[name + BYTES] = (*shape, SPELLED[VECTORS].itemsize)
                continue
            *rows, width = self._laid(name, shape)
            lines = (*rows, groups_of(width, self.group_size), SPELLED[self.affine].itemsize)
            out |= {f"{name}_plane_{k}": (*rows, -(-width // 8)) for k in range(self.bits)}
            out |= {f"{name}_scale": lines, f"{name}_offset": lines}
        return out

    def _laid(self, name: str, shape: Shape) -> Shape:
        """The shape of a stored tensor once neighbours lie in a row."""
        sizes = list(shape)
        axis = self.made.along(name)
        sizes[axis], sizes[-1] = sizes[-1], sizes[axis]
        return tuple(sizes)

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Those of the inner rule, and for each matrix the group that each column of its codes is in."""
        out = self.made.constants(site, sites)
        for name, shape in (self.made.shared(sites) | self.made.private(site)).items():
            if len(shape) > 1:
                width = self._laid(name, shape)[-1]
                out[name + GROUP] = torch.arange(width, device="cpu") // self.group_size
        return out

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        stems = [name.removesuffix(GROUP) for name in t if name.endswith(GROUP)]
        vectors = [name.removesuffix(BYTES) for name in t if name.endswith(BYTES)]
        coded = {part for stem in stems for part in (*self._parts(stem), stem + GROUP)}
        left = {name: value for name, value in t.items() if name not in coded and not name.endswith(BYTES)}
        left |= {name: read(t[name + BYTES]) for name in vectors}
        return self.made.form(left | {stem: self._decoded(stem, t) for stem in stems})

    def _parts(self, stem: str) -> list[str]:
        return [*(f"{stem}_plane_{k}" for k in range(self.bits)), f"{stem}_scale", f"{stem}_offset"]

    def _decoded(self, stem: str, t: Mapping[str, Tensor]) -> Tensor:
        *planes, s, z = (t[name] for name in self._parts(stem))
        group = t[stem + GROUP]
        value = read(s)[..., group] * unpack(planes, len(group)).float() + read(z)[..., group]
        return value.transpose(self.made.along(stem), -1)

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return self.made.weight(t)

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        same = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in t.items()}
        return self.made.apply(x, same, training)

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        return self.made.factors(t)

    def scaled_factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
        return self.made.scaled_factors(t)

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        """Zero codes; what starts as something else is fitted."""
        with torch.no_grad():
            tensor.zero_()

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        found = self.made.fit(source, sites, moments)
        return {place: self.coded(values) for place, values in found.items()}

    def coded(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rule stores in place of these tensors of the inner rule."""
        out: dict[str, Tensor] = {}
        for name, value in stored.items():
            if value.dim() < 2:
                out[name + BYTES] = spell(value, VECTORS)
                continue
            laid = value.transpose(self.made.along(name), -1)
            found = BY_WEIGHT[self.base](laid.flatten(0, -2), self.bits, {self.bits: 1.0}, self.group_size)
            rows = laid.shape[:-1]
            planes = pack(found.codes, self.bits)
            out |= {f"{name}_plane_{k}": plane.unflatten(0, rows) for k, plane in enumerate(planes)}
            for part, line in (("scale", found.scale), ("offset", found.offset)):
                out[f"{name}_{part}"] = spell(line[self.bits], self.affine).unflatten(0, rows)
        return out


@rule
@dataclass(frozen=True, kw_only=True)
class Coded(_Coded):
    """A weight that the inner rule makes of what is kept in codes."""

    name: ClassVar[str] = "coded"
    kind: ClassVar[str] = "replace"


@rule
@dataclass(frozen=True, kw_only=True)
class CodedDelta(_Coded):
    """A delta that the inner rule makes of what is kept in codes."""

    name: ClassVar[str] = "coded_delta"
    kind: ClassVar[str] = "add"


def codes_of(made: Rule, **settings: int | str) -> _Coded | None:
    """The rule that keeps in codes what `made` stores; None for one that has no numbers to code."""
    around = {cls.kind: cls for cls in (Coded, CodedDelta)}.get(made.kind)
    if around is None or made.frozen:
        return None
    return around(inner={"rule": made.name, "args": made.args()}, **settings)  # type: ignore[arg-type]

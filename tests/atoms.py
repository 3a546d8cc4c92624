# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A third party's rules and method, as another package would write them: one file that registers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_share import Generate, PlanError, ShareConfig, SharePlan
from hf_share.config import method
from hf_share.rules import Rule, rule
from hf_share.sites import Site
from hf_share.targets import select


@rule
@dataclass(frozen=True, kw_only=True)
class SumOfAtoms(Rule):
    """A third party's rule: `W = sum over s of c_s D_s`, atoms D (S, out, in) of the group, coefficients c
    (S,) of the site. With as many atoms as sites the fit is exact.
    """

    name: ClassVar[str] = "test_atoms"
    kind: ClassVar[str] = "replace"

    atoms: int

    def check(self, sites: Sequence[Site]) -> None:
        for site in sites:
            if site.shape != sites[0].shape:
                raise PlanError(f"site {site.name!r} cannot share atoms with {sites[0].name!r}")

    def shared(self, sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
        return {"atoms": (self.atoms, *sites[0].shape)}

    def private(self, site: Site) -> dict[str, tuple[int, ...]]:
        return {"c": (self.atoms,)}

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return torch.einsum("s,soi->oi", t["c"], t["atoms"])

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """The first `atoms` sites' weights are the atoms; the others take the least-squares coefficients."""
        atoms = torch.stack([source[s.name] for s in sites[: self.atoms]])
        basis = atoms.flatten(1).T
        values: dict[str, dict[str, Tensor]] = {"": {"atoms": atoms}}
        for i, site in enumerate(sites):
            unit = torch.eye(self.atoms)[i] if i < self.atoms else None
            known = (
                unit if unit is not None else torch.linalg.lstsq(basis, source[site.name].flatten()).solution
            )
            values[site.name] = {"c": known}
        return values


@rule
@dataclass(frozen=True, kw_only=True)
class Squash(Rule):
    """A third party's map, which needs the weight itself: `W' = tanh(c W)`, c (1,) of the site."""

    name: ClassVar[str] = "test_squash"
    kind: ClassVar[str] = "map"

    def shared(self, sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
        return {}

    def private(self, site: Site) -> dict[str, tuple[int, ...]]:
        return {"c": (1,)}

    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        return torch.tanh(t["c"] * t["W"])

    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        with torch.no_grad():
            tensor.fill_(1.0)


@method
@dataclass
class AtomsConfig(ShareConfig):
    """A third party's method: atoms for each role of the targets."""

    name: ClassVar[str] = "test_atoms"

    atoms: int = 2

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        groups: dict[str, list[str]] = {}
        for site in select(model, self):
            groups.setdefault(site.role, []).append(site.name)
        return SharePlan(
            tuple(
                Generate(
                    rule="test_atoms", sites=tuple(names), group=f"atoms_{i}", args={"atoms": self.atoms}
                )
                for i, names in enumerate(groups.values())
            )
        )

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What every size of an elastic model costs: bits of its codes, and bytes of its file, exactly.

The choice of bits is made for each *unit*, the sites that have one code: one site, or all visits of a tied
weight. A file of one subnet holds what no choice touches, and for each unit the tensors of the active width.
Its bytes are those of its tensors and of the safetensors header that names them, in one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .cut import cuts, narrow
from .cut_sizes import shapes_after
from .elastic import narrowed
from .errors import ConfigError, unknown
from .filesize import Tensors, file_bytes, tensors_of
from .modules import Share
from .sites import STORES, backbone, prefix
from .ties import attached


@dataclass(frozen=True)
class Unit:
    """Sites that have one code, which is called after the first of them: how many weights it has, and the
    names of the tensors that each width needs.
    """

    name: str
    sites: tuple[str, ...]
    weights: int
    needs: Mapping[int, frozenset[str]]


@dataclass(frozen=True)
class Pool:
    """Sites with a store, and the names of the tensors in it that each width needs."""

    sites: set[str]
    needs: dict[int, set[str]]


@dataclass(frozen=True)
class Costs:
    """The costs of all subnets of one model. `tensors` are those of the whole file, `fixed` the names that
    every subnet has, and `pools` what groups of sites store once for a width, if one of them uses it.
    """

    units: tuple[Unit, ...]
    tensors: Tensors
    fixed: frozenset[str]
    pools: tuple[Pool, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Costs:
        """The costs of an elastic model's subnets.

        Raises:
            ConfigError: if the model has no choice of bits.
        """
        record, dot = attached(model), prefix(model)
        if record is None or narrowed(record.plan) == record.plan:
            raise ConfigError("this model has no choice of bits; hf_share.ElasticConfig makes one that has")
        gone = cuts(narrowed(record.plan), record.plan)  # lanes that are left out now are not in the file
        known = tensors_of(model)
        tensors = {**known, **{n: s for n, s in shapes_after(model, gone).items() if n in known}}
        codes: dict[str, list[Any]] = {}
        own: dict[str, dict[int, set[str]]] = {}
        pools: dict[str, Pool] = {}
        for path, module in backbone(model).named_modules():
            for binding in module.bindings if isinstance(module, Share) else ():
                rule: Any = binding.rule
                site = binding.site
                if "bits" not in rule.choices():
                    continue
                tied = rule.kind == "replace" and not binding.names
                unit = binding.group if tied else site.name
                if rule.kind == "replace":
                    codes.setdefault(unit, []).append(site)
                for b in rule.widths:
                    only = rule.only(b)
                    names = {f"{dot}{path}.{binding.names[t]}" for t in only.private(site)}
                    mine = own.setdefault(site.name, {}).setdefault(b, set())
                    mine |= names
                    store = {f"{dot}{STORES}.{binding.group}.{t}" for t in only.shared([site])}
                    if tied:
                        mine |= store
                    elif store:
                        pool = pools.setdefault(binding.group, Pool(set(), {}))
                        pool.sites.add(site.name)
                        pool.needs.setdefault(b, set()).update(store)
        small = ([narrow(site, gone.get(site.name, {})) for site in sites] for sites in codes.values())
        units = tuple(_unit(sites, own) for sites in small)
        needs = (*own.values(), *(pool.needs for pool in pools.values()))
        optional = {n for widths in needs for names in widths.values() for n in names}
        return cls(units, tensors, frozenset(tensors) - optional, tuple(pools.values()))

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width that some unit offers, narrowest first."""
        return tuple(sorted({b for unit in self.units for b in unit.needs}))

    def expand(self, choices: Mapping[str, int]) -> dict[str, int]:
        """A width for each unit as a width for each site, which `choose(model, bits=...)` takes."""
        return {site: choices[unit.name] for unit in self.units for site in unit.sites}

    def uniform(self, bits: int) -> dict[str, int]:
        """The same width for every unit."""
        if bits not in self.widths:
            raise unknown("width", bits, map(str, self.widths), ConfigError)
        return {unit.name: bits for unit in self.units}

    def mean_bits(self, choices: Mapping[str, int]) -> float:
        """Mean width of the codes, weighted by their weights."""
        total = sum(unit.weights for unit in self.units)
        return sum(unit.weights * choices[unit.name] for unit in self.units) / total

    def bytes(self, choices: Mapping[str, int]) -> int:
        """Bytes of the safetensors file that holds this subnet alone."""
        names = set(self.fixed)
        for unit in self.units:
            names |= unit.needs[choices[unit.name]]
        widths = self.expand(choices)
        for pool in self.pools:
            for b in {widths[site] for site in pool.sites if site in widths}:
                names |= pool.needs[b]
        return file_bytes({name: self.tensors[name] for name in names})


def _unit(sites: list[Any], own: Mapping[str, Mapping[int, set[str]]]) -> Unit:
    names = tuple(site.name for site in sites)
    widths = set.intersection(*(set(own[name]) for name in names))
    needs = {b: frozenset().union(*(own[name][b] for name in names)) for b in sorted(widths)}
    return Unit(names[0], names, sites[0].in_features * sites[0].out_features, needs)

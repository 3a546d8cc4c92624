# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What every size of an elastic model costs: bits of its codes, and bytes of its file, exactly.

The choice of bits is made for each *unit*, the sites that have one code: one site, or all visits of a tied
weight. A file of one subnet holds what no choice touches, and for each unit the tensors of the active width.
Its bytes are those of its tensors and of the safetensors header that names them, in one file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .elastic import narrowed
from .errors import ConfigError, unknown
from .modules import Share
from .sites import STORES, backbone, prefix
from .ties import attached, to_file


DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip

Tensors = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


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
        state = to_file(model, model.state_dict(keep_vars=True))
        aliases = getattr(model, "all_tied_weights_keys", None) or {}
        once = {n: t for n, t in state.items() if n not in aliases or state.get(aliases[n]) is not t}
        tensors = {name: (t.dtype, tuple(t.shape)) for name, t in once.items()}
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
        units = tuple(_unit(sites, own) for sites in codes.values())
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

    def unit_bytes(self, unit: Unit, bits: int) -> int:
        """What `unit` adds to a file at this width, but for a few digits of the header."""
        return sum(_data(self.tensors[n]) + _named(n, self.tensors[n]) for n in unit.needs[bits])


def _unit(sites: list[Any], own: Mapping[str, Mapping[int, set[str]]]) -> Unit:
    names = tuple(site.name for site in sites)
    widths = set.intersection(*(set(own[name]) for name in names))
    needs = {b: frozenset().union(*(own[name][b] for name in names)) for b in sorted(widths)}
    return Unit(names[0], names, sites[0].in_features * sites[0].out_features, needs)


def file_bytes(tensors: Tensors) -> int:
    """Bytes of the safetensors file, as transformers writes it, that holds tensors like these."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # the format sorts by alignment, then by name
    for name in sorted(tensors, key=lambda n: (-tensors[n][0].itemsize, n)):
        start, end = end, end + _data(tensors[name])
        dtype, shape = tensors[name]
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + end


def _data(tensor: tuple[torch.dtype, Iterable[int]]) -> int:
    return tensor[0].itemsize * math.prod(tensor[1])


def _named(name: str, tensor: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """About what one tensor takes in the header."""
    entry = {"dtype": DTYPES[tensor[0]], "shape": tensor[1], "data_offsets": [10**9, 10**9]}
    return len(json.dumps({name: entry}))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""An elastic model as a search space: a decision for each code, with what it costs in bits and in bytes.

`hf_share/costs.py` knows the exact bytes of a subnet's file. They add up over codes but for the digits of the
offsets in the file's header and for tensors that one width shares over several sites; the sum here leaves
these out, so it is a lower bound, and `slack` is the most they come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from torch import Tensor, nn

from ..costs import Costs
from ..elastic import bindings, choose
from ..filesize import HEADER, data_bytes, entry, in_order, written
from ..importance import block_influence
from ..modules import linear_weight
from ..sites import Site, backbone, resolve
from .blocks import block_of, lim, zd
from .space import Candidate, Cost, Decision, Space


def elastic_space(model: nn.Module) -> Space:
    """The space of an elastic model's widths, with the costs `bits` and `bytes`, at the structure it has now.

    Raises:
        ConfigError: if the model has no choice of bits.
    """
    costs = Costs.of(model)
    sites = _sites(model)
    decisions = tuple(
        Decision(
            kind="bits", name=unit.name, options=tuple(sorted(unit.needs)), sites=unit.sites,
            block=block_of(sites[unit.name]),
        )
        for unit in costs.units
    )  # fmt: skip
    return Space(decisions=decisions, costs={"bits": _bits(costs), "bytes": _bytes(costs, decisions)})


def modules_of(model: nn.Module, space: Space) -> dict[str, nn.Module]:
    """The module of each decision, by the decision's name."""
    base, sites = backbone(model), _sites(model)
    return {d.name: resolve(base, sites[d.name].module) for d in space.decisions}


def importances(
    model: nn.Module, space: Space, data: Sequence[Tensor]
) -> dict[str, Callable[[], Mapping[str, float]]]:
    """Scores of blocks of the largest subnet, higher = more important, for the methods that rank blocks."""
    return {"lim": lambda: _lim(model, space, data), "zd": lambda: _zd(model, space)}


def _lim(model: nn.Module, space: Space, data: Sequence[Tensor]) -> dict[str, float]:
    choose(model, **space.choices(space.largest))
    sites = _sites(model)
    scores: dict[str, float] = {}
    for stack in dict.fromkeys(sites[d.name].stack for d in space.decisions):
        found = lim(block_influence(model, data, stack))
        scores |= {f"{stack}.{depth}": score for depth, score in enumerate(found)}
    return {d.block: scores[d.block] for d in space.decisions}


def _zd(model: nn.Module, space: Space) -> dict[str, float]:
    choose(model, **space.choices(space.largest))
    modules = modules_of(model, space)
    blocks: dict[str, list[nn.Module]] = {}
    for d in space.decisions:
        blocks.setdefault(d.block, []).append(modules[d.name])
    return {block: -zd(linear_weight(m) for m in held) for block, held in blocks.items()}


def _sites(model: nn.Module) -> dict[str, Site]:
    return {binding.site.name: binding.site for binding in bindings(model)}


def _bits(costs: Costs) -> Cost:
    options = tuple(tuple(b * unit.weights for b in sorted(unit.needs)) for unit in costs.units)
    return Cost(options=options, over=sum(unit.weights for unit in costs.units))


def _bytes(costs: Costs, decisions: Sequence[Decision]) -> Cost:
    sizes, slack = _entries(costs)

    def least(names: Iterable[str]) -> int:
        return sum(sizes[name] for name in names)

    @lru_cache(maxsize=4096)
    def exact(candidate: Candidate) -> float:
        chosen = {d.name: d.options[i] for d, i in zip(decisions, candidate, strict=True)}
        return costs.bytes(chosen)

    options = tuple(tuple(least(unit.needs[b]) for b in sorted(unit.needs)) for unit in costs.units)
    pools = [[least(names) for names in pool.needs.values()] for pool in costs.pools]
    fixed = 8 + written(HEADER) + least(costs.fixed) + sum(map(min, pools))
    return Cost(
        options=options, fixed=fixed, exact=exact, slack=slack + sum(sum(p) - min(p) for p in pools)
    )


def _entries(costs: Costs) -> tuple[dict[str, int], int]:
    """The least that each tensor takes in a file, data and entry in the header, and what all of them together
    may take beyond: its offsets have as many digits as what surely stands before it, or more.
    """
    sizes, before, slack = {}, 0, 8  # the header ends at a multiple of 8
    total = sum(map(data_bytes, costs.tensors.values()))
    for name in in_order(costs.tensors):
        data = data_bytes(costs.tensors[name])
        # a comma takes the place of the braces of an entry alone
        sizes[name] = data + written(entry(name, costs.tensors[name], before)) - 1
        slack += sum(len(str(total)) - len(str(offset)) for offset in (before, before + data))
        before += data if name in costs.fixed else 0
    return sizes, slack

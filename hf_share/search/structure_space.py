# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Elastic structure as a search space: a decision for each sub-layer, with what it costs in parameters and
in bytes.

A file of one size holds the first part of each tensor that the size touches (`hf_share/cut.py`). Its bytes
add up over sub-layers but for digits in the file's header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..cut import Cuts, cut_at
from ..cut_sizes import shapes_after
from ..elastic import bindings
from ..errors import ConfigError
from ..filesize import Shaped, data_bytes, file_bytes, tensors_of
from ..lanes import Lanes
from ..sites import sites
from ..ties import attached
from ..visits import first_visit
from .blocks import block_of
from .space import Candidate, Cost, Decision, Space, file_cost


Shapes = dict[str, Shaped]


def structure_space(model: nn.Module) -> Space:
    """The space of the sizes of an elastic model's sub-layers, with the costs `params` and `bytes`.

    Raises:
        ConfigError: if a size cannot be cut off, so that it would cost as much as the whole.
    """
    groups = _groups(model)
    index, tensors = {s.name: s for s in sites(model, parts=True)}, tensors_of(model)
    decisions = tuple(
        Decision(
            kind=rule.size_name, name=names[0], options=rule.sizes, sites=names,
            block=block_of(index[names[0]]),
        )
        for names, rule in groups
    )  # fmt: skip
    changed = [
        [_changed(model, names, rule, rule.count(size), tensors) for size in rule.sizes]
        for names, rule in groups
    ]
    costs = {"params": _params(tensors, changed), "bytes": _bytes(tensors, changed)}
    return Space(decisions=decisions, costs=costs)


def _groups(model: nn.Module) -> list[tuple[tuple[str, ...], Any]]:
    """The sites that take a size together, since they are visits of one weight, and their rule."""
    record = attached(model)
    found: dict[tuple[str, str], list[str]] = {}
    rules: dict[tuple[str, str], Any] = {}
    for binding in bindings(model):
        if isinstance(binding.rule, Lanes) and binding.rule.choices():
            first = first_visit(binding.site, record.plan.arranges if record else ())
            found.setdefault((binding.group, first), []).append(binding.site.name)
            rules[binding.group, first] = binding.rule
    return [(tuple(names), rules[key]) for key, names in found.items()]


def _changed(
    model: nn.Module, names: tuple[str, ...], rule: Any, lanes: int, tensors: Mapping[str, Shaped]
) -> Shapes:
    """The tensors that a sub-layer of so many lanes has otherwise, as the file holds them."""
    gone: Cuts = {}
    for name in names:
        gone |= cut_at(rule, name, lanes, rule.lanes)
    part = next((at for at in gone if ":" in at), None)
    if part is not None:
        raise ConfigError(
            f"site {part!r} is a part of a weight, which cannot be cut, so every size of {names[0]!r} costs "
            "the same; choose one by its loss alone"
        )
    return {name: shaped for name, shaped in shapes_after(model, gone).items() if name in tensors}


def _params(tensors: Shapes, changed: list[list[Shapes]]) -> Cost:
    def count(shapes: Shapes) -> int:
        return sum(math.prod(shape) for _, shape in shapes.values())

    touched = {name for options in changed for name in options[-1]}
    rest = {name: shaped for name, shaped in tensors.items() if name not in touched}
    return Cost(options=tuple(tuple(map(count, options)) for options in changed), fixed=count(rest))


def _bytes(tensors: Shapes, changed: list[list[Shapes]]) -> Cost:
    def data(shapes: Shapes) -> int:
        return sum(map(data_bytes, shapes.values()))

    def exact(candidate: Candidate) -> float:
        shapes = dict(tensors)
        for options, i in zip(changed, candidate, strict=True):
            shapes |= options[i]
        return file_bytes(shapes)

    return file_cost(tuple(tuple(map(data, options)) for options in changed), exact)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Elastic ranks as a search space: a decision for each low-rank delta, with what its first ranks cost.

What is chosen becomes a plain LoRA with a rank for each weight (`hub/lora.py`), so `params` and `bytes` are
that LoRA's. A sparse delta cannot be one, and counts the same. Bytes add up but for digits in the file's
header.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..binding import Binding
from ..filesize import file_bytes
from ..hub.lora import added, keys
from ..sites import Site
from .blocks import block_of
from .space import Candidate, Cost, Decision, Space, file_cost


@dataclass(frozen=True)
class Delta:
    """A low-rank delta of the module `name`: columns of A, rows of B (all of a fused weight's), and type."""

    name: str
    binding: Binding
    columns: int
    rows: int
    dtype: torch.dtype

    @property
    def site(self) -> Site:
        return self.binding.site

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.binding.rule.choices()["rank"]


def rank_space(model: nn.Module) -> Space:
    """The space of the ranks of a model's low-rank deltas, with the costs `params` and `bytes`.

    Raises:
        Refused: if no LoRA can be made of what is chosen, since the model's plan does more than add deltas.
    """
    deltas = _deltas(model)
    decisions = tuple(
        Decision(kind="rank", name=delta.site.name, options=delta.ranks, block=block_of(delta.site))
        for delta in deltas
    )
    params = tuple(tuple(r * (d.columns + d.rows) for r in d.ranks) for d in deltas)
    return Space(decisions=decisions, costs={"params": Cost(options=params), "bytes": _bytes(deltas)})


def _deltas(model: nn.Module) -> list[Delta]:
    name = getattr(model, "active_adapter", "default")
    return [
        _delta(module, binding, formed(binding)["A"].dtype)
        for module, _, bindings, formed in added(model, name)
        for binding in bindings
        if "rank" in binding.rule.choices()
    ]


def _delta(name: str, binding: Binding, dtype: torch.dtype) -> Delta:
    part, site = binding.site.part, binding.site
    rows = site.out_features if part is None else part.stride * part.repeat
    return Delta(name, binding, site.in_features, rows, dtype)


def _bytes(deltas: list[Delta]) -> Cost:
    """Deltas of parts of one weight are one LoRA, of their ranks together."""

    def exact(candidate: Candidate) -> float:
        ranks: dict[str, int] = {}
        for delta, i in zip(deltas, candidate, strict=True):
            ranks[delta.name] = ranks.get(delta.name, 0) + delta.ranks[i]
        shapes = {}
        for delta in deltas:
            a, b = keys(delta.name)
            shapes[a] = (delta.dtype, (ranks[delta.name], delta.columns))
            shapes[b] = (delta.dtype, (delta.rows, ranks[delta.name]))
        return file_bytes(shapes)

    options = tuple(tuple(d.dtype.itemsize * r * (d.columns + d.rows) for r in d.ranks) for d in deltas)
    return file_cost(options, exact)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""FoldGPT: remove the layers that matter least, then let groups of neighbours share one layer's weights
(arXiv 2407.00928).

From L layers, floor(rho L) of the least important are removed (block influence, or an explicit list). The m
that stay are cut, in order, into groups of g neighbours; every member uses the weights of its group's parent,
and keeps its own norms:

    stored = embeddings + head + ceil(m / g) linears + m norms         (latency falls with removal only)

The paper's body is not public in code; where it is silent this follows the reconstruction in the README.
Learnable gates and healing are training and live elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..config import ShareConfig, method
from ..errors import ConfigError, unknown
from ..importance import block_influence, only_stack
from ..plan import SharePlan
from ..sites import Stack, stacks
from ..steps import Arrange


PARENTS = ("first", "mean")
IMPORTANCES = ("bi",)


@method
@dataclass
class FoldConfig(ShareConfig):
    """Config of FoldGPT's structural part, for `hf_share.share` or `get_peft_model`.

    Args:
        removal_rate: share of the layers to remove by `importance`, rounded down; needs calibration text.
        remove: layers to remove, instead of a rate.
        group_size: how many neighbours among the layers that stay share one set of weights; 1 shares nothing.
        groups: explicit groups of source layers, in order, instead of `group_size`: `[[0], [1, 2], [3]]`.
        parent: weights of a group: `"first"` member's, or the `"mean"` of its members'.
        share_norms: share norms as well; by default every depth keeps its own.
        importance: `"bi"`, block influence.
        stack: path of the stack, for models with several (T5: `"encoder.block"`, `"decoder.block"`).

    Example:
        >>> FoldConfig(remove=[5, 6], group_size=2).method
        'fold'
    """

    name: ClassVar[str] = "fold"

    removal_rate: float = 0.0
    remove: list[int] | None = None
    group_size: int = 1
    groups: list[list[int]] | None = None
    parent: str = "first"
    share_norms: bool = False
    importance: str = "bi"
    stack: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.parent not in PARENTS:
            raise unknown("parent", self.parent, PARENTS, ConfigError)
        if self.importance not in IMPORTANCES:
            raise unknown("importance", self.importance, IMPORTANCES, ConfigError)
        self._take_list("remove", int)
        self._take_list("groups", (list, tuple))
        if isinstance(self.removal_rate, bool) or not isinstance(self.removal_rate, (int, float)):
            raise ConfigError(f"removal_rate is {self.removal_rate!r}; a number fits")
        if not 0.0 <= self.removal_rate < 1.0:
            raise ConfigError(f"removal_rate is {self.removal_rate!r}; 0 <= removal_rate < 1 fits")
        self.require_count("group_size")
        if self.remove is not None and self.removal_rate:
            raise ConfigError("give removal_rate or remove, not both")
        if self.groups is not None and (self.group_size != 1 or self.remove is not None or self.removal_rate):
            raise ConfigError(
                "groups says which layers stay and share; leave out group_size, remove and removal_rate"
            )
        self.groups = None if self.groups is None else [list(g) for g in self.groups]
        if self.groups is not None and not (self.groups and all(self.groups)):
            raise ConfigError(f"groups is {self.groups}; every group names at least one layer")
        self.remove = None if self.remove is None else sorted(self.remove)

    @property
    def needs_calibration(self) -> bool:
        return bool(self.removal_rate) and self._given is None

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        stack = stacks(model)[only_stack(model, self.stack)]
        groups = self.groups or self._groups(self._kept(model, stack, calibration))
        order = tuple(group[0] for group in groups for _ in group)
        members = tuple(layer for group in groups for layer in group)
        bad = [m for m in members if type(m) is not int or not 0 <= m < stack.depth]
        if bad or len(set(members)) != len(members):
            raise ConfigError(
                f"groups name layer {bad[0]!r}; this model has layers 0 to {stack.depth - 1}"
                if bad
                else f"groups name a layer twice: {groups}"
            )
        shares = order != members
        return SharePlan(
            (
                Arrange(
                    stack=stack.path,
                    order=order,
                    depth=stack.depth,
                    sources=members if shares else None,
                    private=stack.norms if shares and not self.share_norms else (),
                    merge=self.parent if shares else "first",
                ),
            )
        )

    def _kept(self, model: nn.Module, stack: Stack, calibration: Any) -> list[int]:
        gone = self.remove if self.remove is not None else self._least(model, stack, calibration)
        for layer in gone:
            if not 0 <= layer < stack.depth:
                raise ConfigError(
                    f"remove names layer {layer!r}; this model has layers 0 to {stack.depth - 1}"
                )
        kept = [layer for layer in range(stack.depth) if layer not in gone]
        if not kept:
            raise ConfigError(f"all {stack.depth} layers would be removed; at least one must stay")
        return kept

    def _least(self, model: nn.Module, stack: Stack, calibration: Any) -> Sequence[int]:
        count = math.floor(self.removal_rate * stack.depth + 1e-9)
        if count == 0:
            return ()
        if calibration is None:
            raise ConfigError(
                f"removal_rate={self.removal_rate} ranks layers by {self.importance!r}, which needs text: "
                "hf_share.share(model, config, calibration=...), or name the layers with remove=[...]"
            )
        scores = block_influence(model, calibration, stack.path)
        free = [layer for layer in range(stack.depth) if not _owns_for_all(stack, layer)]
        return sorted(free, key=lambda layer: (scores[layer], layer))[:count]

    def _groups(self, kept: list[int]) -> list[list[int]]:
        return [kept[i : i + self.group_size] for i in range(0, len(kept), self.group_size)]


def _owns_for_all(stack: Stack, layer: int) -> bool:
    """True for T5's block 0, which keeps the position bias of the whole stack."""
    return any(name in stack.partial for name in stack.signatures[layer])

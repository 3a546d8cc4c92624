# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""FoldGPT: remove the layers that matter least, let groups of neighbours share one layer's weights, and give
each member a little of its own (arXiv 2407.00928).

From L layers, floor(rho L) of the least important are removed: by learnable gates (`gates`), by block
influence, or by an explicit list. The m that stay are cut, in order, into groups of g neighbours; every
member uses the weights of its group's parent, and keeps its own norms:

    stored = embeddings + head + ceil(m / g) linears + m norms         (latency falls with removal only)

    relax "scale":  W' = diag(s) W          + sum of out  for each visit of a shared weight, s = 1 at start
    relax "lora":   W' = W + B A            + r (in + out) for each visit,                   B = 0 at start

The paper has no public code and says little of its formulas. Gates, grouping and relaxation are our
reconstruction from its abstract; healing and distillation of the last layers are in `train`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from ..about import About
from ..adapter import group_names
from ..config import ShareConfig, method
from ..errors import ConfigError, unknown
from ..gates import layer_gates
from ..importance import block_influence, only_stack
from ..plan import SharePlan
from ..scale import Scale
from ..sites import Site, Stack, sites, stacks
from ..steps import Arrange, Generate
from ..targets import ADDABLE


PARENTS = ("first", "mean")
IMPORTANCES = ("bi", "gate")
RELAXATIONS = ("none", "scale", "lora")


@method
@dataclass
class FoldConfig(ShareConfig):
    """Config of FoldGPT, for `hf_share.share` or `get_peft_model`.

    Args:
        removal_rate: share of the layers to remove by `importance`, rounded down; needs calibration text. A
            rate that removes none is refused.
        remove: layers to remove, instead of a rate.
        group_size: how many neighbours among the layers that stay share one set of weights; 1 shares nothing.
        groups: explicit groups of source layers, in order, instead of `group_size`: `[[0], [1, 2], [3]]`.
        parent: weights of a group: `"first"` member's, or the `"mean"` of its members'.
        share_norms: share norms as well; by default every depth keeps its own.
        importance: `"bi"`, block influence, or `"gate"`, learnable gates; the plan keeps the scores.
        gate_steps, gate_lr: training steps and learning rate of the gates.
        epsilon_schedule: first and last eps of the gates.
        flops_weight: weight of the gates' FLOPs constraint.
        relax: what each member has of its own beside its norms: `"none"`, `"scale"` (a factor for each
            output) or `"lora"` (a low-rank delta of rank `relax_rank`); it starts without effect.
        stack: path of the stack, for models with several (T5: `"encoder.block"`, `"decoder.block"`).

    Example:
        >>> FoldConfig(remove=[5, 6], group_size=2).method
        'fold'
    """

    name: ClassVar[str] = "fold"
    arranges: ClassVar[dict[str, About]] = {
        "groups": About("foldgpt", "layers share the weights of others", "2407.00928"),
        "removal": About("layer-removal", "layers are left out"),
    }

    removal_rate: float = 0.0
    remove: list[int] | None = None
    group_size: int = 1
    groups: list[list[int]] | None = None
    parent: str = "first"
    share_norms: bool = False
    importance: str = "bi"
    gate_steps: int = 100
    gate_lr: float = 0.3
    epsilon_schedule: list[float] = field(default_factory=lambda: [0.1, 1e-4])
    flops_weight: float = 30.0
    relax: str = "none"
    relax_rank: int = 8
    stack: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.parent not in PARENTS:
            raise unknown("parent", self.parent, PARENTS, ConfigError)
        if self.importance not in IMPORTANCES:
            raise unknown("importance", self.importance, IMPORTANCES, ConfigError)
        if self.relax not in RELAXATIONS:
            raise unknown("relax", self.relax, RELAXATIONS, ConfigError)
        self._check_gates()
        self.require_count("relax_rank")
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

    def _check_gates(self) -> None:
        self.require_count("gate_steps")
        self._take_list("epsilon_schedule", (int, float))
        numbers = {"gate_lr": self.gate_lr, "flops_weight": self.flops_weight}
        schedule = self.epsilon_schedule or []
        numbers |= {f"epsilon_schedule[{i}]": eps for i, eps in enumerate(schedule)}
        for name, value in numbers.items():
            known = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not known or not 0.0 < value < 1e9:
                raise ConfigError(f"{name} is {value!r:.80}; a number above 0 fits")
        if len(schedule) != 2 or schedule[0] < schedule[1]:
            raise ConfigError(
                f"epsilon_schedule is {schedule!r:.80}; the first and the last eps fit, the last no larger"
            )

    @property
    def needs_calibration(self) -> bool:
        return bool(self.removal_rate)  # what was measured may come out another way: a given plan is taken

    @property
    def assumes(self) -> tuple[str, ...]:
        return ("the last layers are those that go",) if self.removal_rate and self._given is None else ()

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        stack = stacks(model)[only_stack(model, self.stack)]
        scores = self._scores(model, stack, calibration)
        groups = self.groups or self._groups(self._kept(stack, scores))
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
        arrange = Arrange(
            stack=stack.path,
            order=order,
            depth=stack.depth,
            sources=members if shares else None,
            private=stack.norms if shares and not self.share_norms else (),
            merge=self.parent if shares else "first",
            scores=scores,
            scored_by=self.importance if scores else None,
        )
        return SharePlan((arrange, *self._relaxed(model, arrange)))

    def _relaxed(self, model: nn.Module, arrange: Arrange) -> list[Generate]:
        """A step for each type of weight that is shared, over all its visits."""
        if self.relax == "none":
            return []
        shared = [d for d, source in enumerate(arrange.order) if arrange.order.count(source) > 1]
        if not shared:
            raise ConfigError(f"relax={self.relax!r} relaxes what is shared, and no layers share weights")
        types: dict[tuple, list[Site]] = {}
        for site in sites(model):
            if site.stack == arrange.stack and site.kind in ADDABLE:
                types.setdefault((site.role, site.shape), []).append(site)
        names = group_names(model, "fold", list(types.values()))
        rule, args = (Scale.name, {}) if self.relax == "scale" else ("low_rank", {"r": self.relax_rank})
        steps = []
        for name, found in zip(names, types.values(), strict=True):
            roles = {site.depth: site.role for site in found}
            visits = [f"{arrange.stack}.{d}.{roles[s]}" for d in shared if (s := arrange.order[d]) in roles]
            if visits:
                steps.append(Generate(rule=rule, sites=tuple(visits), group=name, args=args))
        return steps

    def _kept(self, stack: Stack, scores: Sequence[float] | None) -> list[int]:
        gone = self.remove or ()
        if self.removal_rate:
            free = [layer for layer in range(stack.depth) if layer not in stack.owners]
            worth = range(stack.depth, 0, -1) if scores is None else scores
            gone = sorted(free, key=lambda layer: (worth[layer], layer))[: self._count(stack)]
        for layer in gone:
            if not 0 <= layer < stack.depth:
                raise ConfigError(
                    f"remove names layer {layer!r}; this model has layers 0 to {stack.depth - 1}"
                )
        kept = [layer for layer in range(stack.depth) if layer not in gone]
        if not kept:
            raise ConfigError(f"all {stack.depth} layers would be removed; at least one must stay")
        return kept

    def _count(self, stack: Stack) -> int:
        return math.floor(self.removal_rate * stack.depth + 1e-9)

    def _scores(self, model: nn.Module, stack: Stack, calibration: Any) -> tuple[float, ...] | None:
        """What each layer is worth, to six digits; None if no layer is ranked."""
        if not self.removal_rate:
            return None
        if self._count(stack) == 0:
            raise ConfigError(
                f"removal_rate={self.removal_rate} of {stack.depth} layers is less than one, and would "
                f"remove none; from {math.ceil(1000 / stack.depth) / 1000:g} on, one is"
            )
        if self._outlined:
            return None
        if calibration is None:
            raise ConfigError(
                f"removal_rate={self.removal_rate} ranks layers by {self.importance!r}, which needs text: "
                "hf_share.share(model, config, calibration=...), for get_peft_model "
                "config.with_calibration(...); or name the layers with remove=[...]"
            )
        if self.importance == "gate":
            scores = layer_gates(
                model, calibration, self.removal_rate, stack.path, steps=self.gate_steps, lr=self.gate_lr,
                epsilon_schedule=self.epsilon_schedule, flops_weight=self.flops_weight,
            )  # fmt: skip
        else:
            scores = block_influence(model, calibration, stack.path)
        return tuple(float(f"{score:.6g}") for score in scores)

    def _groups(self, kept: list[int]) -> list[list[int]]:
        return [kept[i : i + self.group_size] for i in range(0, len(kept), self.group_size)]

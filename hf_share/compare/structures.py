# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Ways to make a language model smaller, each at the largest size it reaches within a budget.

An arm lists families of plans, each from the largest to the smallest; their sizes follow from the plan on the
meta device, so no weights are made to find the one that fits. LaCo, which is no plan, counts layers.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import attach
from ..errors import ConfigError, Refused, unknown
from ..importance import block_influence
from ..methods.fold import FoldConfig
from ..methods.masa import MasaConfig
from ..methods.recursive import RecursiveConfig
from ..methods.svd import SvdConfig
from ..plan import SharePlan
from ..rebuild import rebuild
from ..share import share
from ..sites import sites, stacks
from ..steps import Arrange
from .laco import collapse


Calibration = list[Tensor]


@dataclass(frozen=True)
class Case:
    """The dense model, text to measure it on, and the seed of what is drawn."""

    model: nn.Module
    calibration: Calibration
    seed: int

    @property
    def depth(self) -> int:
        return next(iter(stacks(self.model).values())).depth

    @property
    def path(self) -> str:
        return next(iter(stacks(self.model)))


def size(model: Any, plan: SharePlan) -> int:
    """Parameters stored by `model` under `plan`, each once."""
    twin: Any = rebuild(model, ())
    twin.tie_weights()
    return count(attach(twin, plan))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


Plans = Iterator[list[Callable[[], SharePlan]]]  # families, each from its largest plan to its smallest


def drop_last(case: Case) -> Plans:
    yield [partial(_fold, case, remove=list(range(n, case.depth))) for n in range(case.depth - 1, 0, -1)]


def shortgpt(case: Case) -> Plans:
    """Layers of least block influence go first."""
    order = _by_influence(case)
    yield [partial(_fold, case, remove=sorted(order[:gone])) for gone in range(1, case.depth)]


def random_tie(case: Case) -> Plans:
    """Layers share by a draw: U groups of any layers, each with the weights of one of its members."""
    yield [partial(_random_tie, case, unique) for unique in range(case.depth - 1, 0, -1)]


def fold(case: Case) -> Plans:
    """Neighbours share: the layers of least block influence take the weights of the layer before them."""
    order = _by_influence(case)
    yield [partial(_fold, case, groups=_groups(case, order, n)) for n in range(1, case.depth)]


def fold_lora(case: Case) -> Plans:
    """One set of weights fewer than `fold`, and a LoRA of its own for each visit of a shared one."""
    order = _by_influence(case)
    for n in range(2, case.depth):
        groups = _groups(case, order, n)
        yield [partial(_fold, case, groups=groups, relax="lora", relax_rank=r) for r in _ranks(case.model)]


def fold_remove(case: Case) -> Plans:
    """A quarter of the layers goes by learnable gates, pairs of the rest share."""
    gates = FoldConfig(removal_rate=0.25, importance="gate", group_size=2)
    plan = gates.resolve(case.model, case.calibration)
    yield [lambda: plan]


def strict(case: Case) -> Plans:
    yield [partial(RecursiveConfig(num_loops=n).resolve, case.model) for n in _loops(case.depth)]


def relaxed(case: Case, start: str = "svd") -> Plans:
    for n in _loops(case.depth):
        configs = (RecursiveConfig(num_loops=n, lora_rank=r, lora_init=start) for r in _ranks(case.model))
        yield [partial(config.resolve, case.model) for config in configs]


def relaxed_zero(case: Case) -> Plans:
    return relaxed(case, "zero")


def whitened(case: Case, ranks: str = "equal", letters: str = "") -> Plans:
    """Every linear weight, or the attention's, becomes a low-rank product, by the same share of its size."""
    found = [s for s in sites(case.model) if s.stack and (not letters or _letter(s.role) in letters)]
    given = {"ranks": ranks, "target_modules": list(dict.fromkeys(s.role for s in found))}
    least = sum(sum(s.shape) for s in found) / sum(s.in_features * s.out_features for s in found)  # rank 1
    plan_at = SvdConfig(**given).by_ratio(case.model, case.calibration)
    yield [partial(plan_at, percent / 100) for percent in range(99, int(100 * least), -1)]


def by_error(case: Case) -> Plans:
    """The same with ranks where they take most of the error."""
    return whitened(case, "error")


def _random_tie(case: Case, unique: int) -> SharePlan:
    draw = random.Random(f"{case.seed} {unique}")
    layers = draw.sample(range(case.depth), case.depth)
    parents = layers[:unique]
    order = tuple(d if d in parents else draw.choice(parents) for d in range(case.depth))
    stack = stacks(case.model)[case.path]
    members = tuple(range(case.depth))
    step = Arrange(stack=case.path, order=order, sources=members, private=stack.norms, depth=case.depth)
    return SharePlan((step,))


def _fold(case: Case, **args: Any) -> SharePlan:
    return FoldConfig(stack=case.path, **args).resolve(case.model)


def _by_influence(case: Case) -> list[int]:
    scores = block_influence(case.model, case.calibration, case.path)
    return sorted(range(case.depth), key=scores.__getitem__)


def _groups(case: Case, order: Sequence[int], shared: int) -> list[list[int]]:
    """Consecutive groups in which the `shared` layers of least influence (never the first) follow another."""
    joins = set([layer for layer in order if layer][:shared])
    groups: list[list[int]] = []
    for layer in range(case.depth):
        if layer in joins:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _loops(depth: int) -> list[int]:
    return [loops for loops in range(2, depth + 1) if depth % loops == 0]


def _ranks(model: Any) -> range:
    return range(model.config.hidden_size // 2, 0, -1)


def _letter(role: str) -> str:
    leaf = role.rpartition(".")[2]
    return leaf[0] if leaf in ("q_proj", "k_proj", "v_proj", "o_proj") else "-"


ARMS: dict[str, Callable[[Case], Plans]] = {
    "drop-last": drop_last,
    "ShortGPT": shortgpt,
    "random tie": random_tie,
    "fold": fold,
    "fold + LoRA": fold_lora,
    "fold, gates": fold_remove,
    "recursive": strict,
    "relaxed, SVD": relaxed,
    "relaxed, zero": relaxed_zero,
    "whitened SVD": whitened,
    "SVD, by error": by_error,
}
OTHERS = ("dense", "LaCo")
MASA = {"MASA, 1 atom": 1, "MASA, free": None}  # the second chooses how many atoms
ATTENTION = (*MASA, "whitened SVD, attention")  # ratios of these are of the attention weights


class OutOfReach(Refused):
    """An arm reaches no size as small as it was asked for; `smallest` is what it reaches, in parameters."""

    def __init__(self, smallest: int, budget: int):
        super().__init__(f"the smallest size is {smallest:,} parameters, {budget:,} were asked for")
        self.smallest = smallest


def build(arm: str, ratio: float, case: Case) -> nn.Module:
    """The dense model of `case`, shared in place as `arm` says with at most `ratio` of its parameters.

    Raises:
        OutOfReach: the arm has no size that small.
    """
    if arm == "dense":
        return case.model
    if arm == "LaCo":
        return _laco(ratio, case)
    if arm in ATTENTION:
        return _attention(arm, ratio, case)
    return _largest(case, ARMS[arm](case), int(ratio * count(case.model)))


def _largest(case: Case, families: Plans, budget: int) -> nn.Module:
    smallest = count(case.model)
    for plans in families:
        smallest = min(smallest, size(case.model, plans[-1]()))
        if smallest > budget:
            continue
        first = bisect_left(range(len(plans)), True, key=lambda i: size(case.model, plans[i]()) <= budget)
        torch.manual_seed(case.seed)
        return share(case.model, plans[first](), calibration=case.calibration)
    raise OutOfReach(smallest, budget)


def _laco(ratio: float, case: Case) -> nn.Module:
    whole, layer = count(case.model), count(stacks(case.model)[case.path].layers[0])
    budget = int(ratio * whole)
    gone = -(-(whole - budget) // layer)
    if gone >= case.depth:
        raise OutOfReach(whole - (case.depth - 1) * layer, budget)
    return collapse(case.model, case.calibration, gone)


def _attention(arm: str, ratio: float, case: Case) -> nn.Module:
    letters = [s for s in sites(case.model) if s.stack and _letter(s.role) != "-"]
    dense = sum(s.in_features * s.out_features for s in letters)
    if arm in MASA:
        config = MasaConfig(projections="qkvo", num_atoms=MASA[arm], ratio=ratio)
        plan = config.resolve(case.model, case.calibration)
        return share(case.model, plan, calibration=case.calibration)
    return _largest(case, whitened(case, letters="qkvo"), count(case.model) - dense + int(ratio * dense))


def check_arms(names: Sequence[str]) -> None:
    known = [*OTHERS, *ARMS, *ATTENTION]
    for name in names:
        if name not in known:
            raise unknown("arm", name, known, ConfigError)

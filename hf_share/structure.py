# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The steps of a plan that make a model's structure elastic: lanes that may be left out, layers that may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .adapter import group_names
from .errors import ConfigError, Refused
from .importance import block_influence
from .lanes import Heads, Lanes, Neurons
from .sites import stacks
from .steps import Arrange, Generate
from .sublayers import Sublayer, feed_forwards, head_groups


def ffn_steps(model: nn.Module, shares: Sequence[float], multiple_of: int, order: str) -> list[Generate]:
    """A step for each kind of feed-forward block, whose blocks may have these shares of their neurons."""
    sizes = tuple(sorted({*(float(x) for x in shares), 1.0}))
    if sizes[-1] > 1:
        raise ConfigError(f"ffn is {list(shares)}; shares of the neurons, up to 1, fit")
    found = feed_forwards(model)
    rules = [
        Neurons(
            lanes=s.lanes, sizes=sizes, role=s.role, feeds=s.feeds, order=order,
            multiple_of=min(multiple_of, s.lanes),
        )
        for s in found
    ]  # fmt: skip
    return _steps(model, "ffn", found, rules)


def head_steps(model: nn.Module, numbers: Sequence[int], order: str) -> list[Generate]:
    """A step for each kind of attention, whose attentions may have these numbers of key-value groups."""
    found = head_groups(model)
    for s in found:
        if max(numbers) > s.lanes:
            raise ConfigError(f"kv_groups is {list(numbers)}; this model has {s.lanes} key-value groups")
    rules = [
        Heads(
            lanes=s.lanes, sizes=tuple(sorted({*numbers, s.lanes})), role=s.role, feeds=s.feeds, order=order
        )
        for s in found
    ]  # fmt: skip
    return _steps(model, "kv_groups", found, rules)


def _steps(model: nn.Module, stem: str, found: list[Sublayer], rules: Sequence[Lanes]) -> list[Generate]:
    names = group_names(model, stem, [list(s.sites) for s in found])
    return [rule.step(s.sites, name) for s, rule, name in zip(found, rules, names, strict=True)]


def depth_step(model: nn.Module, numbers: Sequence[int], order: str, calibration: Any) -> Arrange:
    """The step of a model that may have these numbers of layers. Which go first is ranked by block influence
    (`order` "activation"); otherwise the last go first.

    Raises:
        Refused: for a model with several stacks of layers, or layers that cannot go.
    """
    found = stacks(model)
    if len(found) != 1:
        raise Refused(f"depth is of a model with one stack of layers; this one has {len(found)}")
    ((path, stack),) = found.items()
    if max(numbers) > stack.depth:
        raise ConfigError(f"depth is {list(numbers)}; this model has {stack.depth} layers")
    # the first layer stays: it is by its slot of the cache that models count what they have read
    free = [depth for depth in reversed(range(1, stack.depth)) if depth not in stack.owners]
    scores = None
    if order == "activation":
        scores = tuple(block_influence(model, calibration, path))
        free.sort(key=lambda depth: scores[depth])
    gone = stack.depth - min(numbers)
    if gone > len(free):
        raise Refused(f"stack {path!r}: {len(free)} of {stack.depth} layers can go, depth asks for {gone}")
    return Arrange(
        stack=path, order=tuple(range(stack.depth)), depth=stack.depth, drops=tuple(free[:gone]),
        depths=tuple(sorted({*numbers, stack.depth})), scores=scores,
        scored_by=None if scores is None else "bi",
    )  # fmt: skip

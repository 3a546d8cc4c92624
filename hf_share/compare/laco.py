# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""LaCo (arXiv 2402.11187), a baseline: a layer is removed by adding what it differs by to the one before.

    theta_l  <-  theta_l + (theta_{l+1} - theta_l)          and layer l + 1 is gone

The paper walks down from the last layer and merges while the final hidden states stay more similar than a
threshold; here, to reach a given number of layers, the pair whose merging keeps them most similar goes first.
A merge of m followers is theta_l + sum over k of (theta_{l+k} - theta_l), of the weights there were.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.fold import FoldConfig
from ..share import share
from ..sites import backbone, stacks


@torch.no_grad()
def collapse(model: nn.Module, calibration: Sequence[Tensor], gone: int) -> nn.Module:
    """A copy of `model` with `gone` layers merged into others."""
    groups = [[layer] for layer in range(next(iter(stacks(model).values())).depth)]
    target = _final(model, calibration)
    for _ in range(gone):
        tried = [_joined(groups, i) for i in range(len(groups) - 1)]
        alike = [_similarity(_merged(model, g), calibration, target) for g in tried]
        groups = tried[max(range(len(tried)), key=alike.__getitem__)]
    return _merged(model, groups)


def _joined(groups: list[list[int]], at: int) -> list[list[int]]:
    return [*groups[:at], groups[at] + groups[at + 1], *groups[at + 2 :]]


def _merged(model: nn.Module, groups: list[list[int]]) -> nn.Module:
    out: Any = copy.deepcopy(model)
    layers = next(iter(stacks(out).values())).layers
    source = next(iter(stacks(model).values())).layers
    for first, *others in groups:
        for name, value in layers[first].named_parameters():
            own = source[first].get_parameter(name)
            value.add_(sum(source[layer].get_parameter(name) - own for layer in others) if others else 0.0)
    return share(out, FoldConfig(groups=[[group[0]] for group in groups]))


def _final(model: nn.Module, calibration: Sequence[Tensor]) -> list[Tensor]:
    body = backbone(model)
    return [body(input_ids=ids)[0] for ids in calibration]


def _similarity(model: nn.Module, calibration: Sequence[Tensor], target: list[Tensor]) -> float:
    found = _final(model, calibration)
    return sum(float(F.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(found, target, strict=True))

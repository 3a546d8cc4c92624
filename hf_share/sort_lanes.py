# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Lanes in the order of their importance, the function of the model unchanged.

A lane counts for what it can add to the output: with W the weight that empties the lanes and x its inputs,

    importance = sqrt( sum over the lane's inputs j of |W[:, j]|^2 E[x_j^2] )     E[x_j^2] = 1 for order "l2"

(MatFormer's and OFA's sorting by norm; by activation as in Minitron, arXiv 2407.14679). Rows of the feeds and
columns of W are permuted once, in the plain weights, before any rule makes them. A model in which a lane is
more than its weights (a number for each head, a norm over all of them) would change its function, so the
model is run before and after, and put back where it does not agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .dense import dense
from .errors import Refused
from .importance import evaluating
from .lanes import Lanes
from .sites import Site, backbone, find_site, resolve, sites, weight_kind


Moments = dict[str, Tensor]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest number; of other types 0.05


@torch.no_grad()
def sort_lanes(model: nn.Module, rule: Lanes, found: list[Site], moments: Moments) -> None:
    """Sort the lanes of `found` in place, and the second moments of their inputs with them.

    Raises:
        Refused: if a weight is quantised, or the model does not compute the same afterwards. The weights are
            new tensors behind their Parameters, which `build` puts back.
    """
    if rule.order == "none" or any(p.is_meta for p in model.parameters()):
        return
    base, index = backbone(model), {s.name: s for s in sites(model, parts=True)}
    before = _probe(model)
    for visits in _by_weight(base, found):
        order = _order(base, rule, visits, moments)
        tensors: set[Any] = set()
        for site in visits:
            feeds = [find_site(index, name) for name in rule.fed_by(site.name)]
            _permute(base, site, feeds, order, tensors)
            moments.update(_permuted(moments, site, order))
    after = _probe(model)
    if before is not None and after is not None and not _agree(before, after):
        raise Refused(
            f"{type(model).__name__} computes something else once the lanes of {found[0].role!r} are sorted: "
            'it treats one lane unlike another. order="none" leaves them as they are'
        )


def _by_weight(base: nn.Module, found: list[Site]) -> list[list[Site]]:
    """The sites, those that are visits of one weight together."""
    visits: dict[int, list[Site]] = {}
    for site in found:
        visits.setdefault(dense(base, site).data_ptr(), []).append(site)
    return list(visits.values())


def _order(base: nn.Module, rule: Lanes, visits: list[Site], moments: Moments) -> Tensor:
    """The lanes, the most important first: (lanes,)."""
    energy = dense(base, visits[0]).float().square().sum(0)
    if rule.calibrated:
        energy = energy * torch.stack([moments[s.name].diagonal() for s in visits]).mean(0).to(energy.device)
    return energy.unflatten(0, (rule.lanes, -1)).sum(1).argsort(descending=True, stable=True)


def _permute(base: nn.Module, site: Site, feeds: list[Site], order: Tensor, seen: set[Any]) -> None:
    """`seen` are tensors that another visit of the same weight has brought into order."""
    module: Any = resolve(base, site.module)
    inputs = spread(order, site.in_features)
    _take(module, "weight", 0 if weight_kind(module) == "conv1d" else 1, inputs, seen)
    for feed in feeds:
        module = resolve(base, feed.module)
        dense(base, feed)  # raises for a quantised one
        total = module.weight.shape[1 if weight_kind(module) == "conv1d" else 0]
        rows = torch.arange(total, device=order.device)
        own = rows.clone() if feed.part is None else feed.part.rows(order.device)
        rows[own] = own[spread(order, feed.out_features)]
        key = f":{feed.part.name}" if feed.part else ""
        _take(module, "weight", 1 if weight_kind(module) == "conv1d" else 0, rows, seen, key)
        if module.bias is not None:
            _take(module, "bias", 0, rows, seen, key)


def _take(module: nn.Module, name: str, dim: int, index: Tensor, seen: set[Any], key: str = "") -> None:
    tensor = getattr(module, name)
    if (id(tensor), key) not in seen:
        seen.add((id(tensor), key))
        tensor.data = tensor.data.index_select(dim, index.to(tensor.device))


def spread(lanes: Tensor, features: int) -> Tensor:
    """The features of the lanes in this order, where `features` are split evenly over all lanes."""
    return torch.arange(features, device=lanes.device).unflatten(0, (len(lanes), -1))[lanes].flatten()


def _permuted(moments: Moments, site: Site, order: Tensor) -> Iterator[tuple[str, Tensor]]:
    if site.name in moments:
        M = moments[site.name]
        inputs = spread(order, site.in_features).to(M.device)
        yield site.name, M[inputs][:, inputs]


def _probe(model: nn.Module) -> Tensor | None:
    """What the model makes of a few tokens; None for one that says nothing of its inputs."""
    inputs = getattr(model, "dummy_inputs", None)
    if not isinstance(inputs, dict):
        return None
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            output = model(**{name: value.to(device) for name, value in inputs.items()})
    except Exception:  # noqa: BLE001 - of a class whose inputs are others, anything may come
        return None
    return output[0]


def _agree(before: Tensor, after: Tensor) -> bool:
    most = TOLERANCE.get(before.dtype, 0.05) * before.abs().max().clamp_min(1e-6)
    return bool((before - after).abs().max() <= most)

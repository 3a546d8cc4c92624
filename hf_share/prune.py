# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Zeros in the weights of a plain model: Wanda (arXiv 2306.11695) with text, by magnitude without it
(`masks.py`).

Inputs are measured once, on the model as it is, not layer after layer behind layers that are pruned already.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .dense import dense
from .errors import ConfigError, Refused
from .importance import second_moments
from .masks import keep_mask, require_share, require_width
from .modules import linear_weight
from .peft_type import PEFT_TYPE
from .sites import Site, backbone, resolve
from .targets import ADDABLE, ALL_LINEAR, select


@torch.no_grad()
def prune(
    model: nn.Module,
    sparsity: float = 0.5,
    calibration: Any = None,
    pattern: str | None = None,
    target_modules: list[str] | str = ALL_LINEAR,
) -> dict[str, float]:
    """Set the least of every output row's weights to zero, in place, before `share` or `get_peft_model`.

    With `calibration` a weight counts |W_ij| ||x_j|| (Wanda), without |W_ij|. Files are as large as before:
    zeros are stored like other numbers.

    Args:
        model: any transformers model (or module); it is left as it was if an error is raised.
        sparsity: share of each row's weights that become zero, to the nearest whole number of weights.
        calibration: texts, or batches of tokens (`hf_share.tokenize`).
        pattern: "2:4" keeps 2 of every 4 neighbours of a row; `sparsity` must be the pattern's.
        target_modules: as in an adapter's config; every linear weight but the head by default.

    Returns:
        The share of zeros by site, between 0 and 1.

    Raises:
        ConfigError: if the numbers do not fit, or the text does not reach a weight.
        Refused: for weights that are quantised, or that rules or adapters make or add to.

    Example:
        >>> hf_share.prune(model, 0.5, calibration=texts)["layers.0.mlp.up_proj"]  # doctest: +SKIP
        0.5
    """
    require_share(sparsity, pattern, ConfigError)
    if hasattr(model, "peft_config"):
        raise ConfigError("this model carries adapters; prune the base before they are added")
    found = select(model, _targets(target_modules))
    for site in found:
        _check(model, site, pattern)
    visits: dict[int, list[Site]] = {}  # of one weight, which meets the inputs of them all
    for site in found:
        visits.setdefault(id(resolve(backbone(model), site.module).weight), []).append(site)
    power = {} if calibration is None else _power(model, calibration, found)
    for several in visits.values():
        for part in {site.part: site for site in several}.values():
            same = [power[site.module] for site in several if site.part == part.part] if power else []
            _zero(model, part, sparsity, torch.stack(same).mean(0) if same else None, pattern)
    return {site.name: _zeros(model, site) for site in found}


def _targets(target_modules: Any) -> SimpleNamespace:
    nothing = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return SimpleNamespace(target_modules=target_modules, peft_type=PEFT_TYPE, **nothing)


def _check(model: nn.Module, site: Site, pattern: str | None) -> None:
    module = resolve(backbone(model), site.module)
    if site.kind not in ADDABLE or "share" in module._modules:
        why = "rules make or change it" if "share" in module._modules else "it is no linear layer's own"
        raise Refused(f"site {site.name!r}: its weight cannot be pruned, since {why}; prune the plain model")
    if dense(backbone(model), site).is_meta:
        raise Refused(f"site {site.name!r}: its weight is offloaded, or on the meta device; load it whole")
    require_width(site.name, site.in_features, pattern, ConfigError)


def _power(model: nn.Module, calibration: Any, found: list[Site]) -> dict[str, Tensor]:
    """E[x_j^2] (in,) by module."""
    modules = list(dict.fromkeys(site.module for site in found))
    power = second_moments(model, calibration, modules, diagonal=True)
    for name in modules:
        if name not in power:
            raise ConfigError(f"the calibration data never reaches {name!r}; leave it out of target_modules")
    return power


def _zero(model: nn.Module, site: Site, sparsity: float, power: Tensor | None, pattern: str | None) -> None:
    W = linear_weight(resolve(backbone(model), site.module))
    rows = slice(None) if site.part is None else site.part.rows(W.device)
    W[rows] = W[rows].masked_fill(~keep_mask(W[rows], sparsity, power, pattern), 0.0)


def _zeros(model: nn.Module, site: Site) -> float:
    W = dense(backbone(model), site)
    return float((W == 0).sum()) / W.numel()

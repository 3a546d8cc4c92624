# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Plain sub-layers of fewer lanes: a stock config says one size for all layers, so all get the largest size
that is active in any.

A lane that is active nowhere is gone; one that is active elsewhere has zeros here, which compute the same.
Where the config has no word for the smaller size (OPT's heads are as wide as the model over their number, a
fused weight is split by the config), all lanes stay, with zeros.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .cut import prefix_of
from .lanes import Heads, Lanes
from .plan import SharePlan
from .rules import site_rules, step_rule
from .sites import backbone, resolve, weight_kind
from .steps import Generate
from .sublayers import HEADS


BLOCK_KEYS = (
    "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "hidden_dim",
)  # fmt: skip


def make_lanes_plain(model: nn.Module, plan: SharePlan) -> dict[str, int]:
    """Give the sub-layers of a plain `model`, whose weights are zero beyond the active lanes of `plan`, one
    size that its config says. Returns the lanes of the sub-layers of each group.
    """
    steps = [step for step in plan.generates if isinstance(step_rule(step), Lanes)]
    return {step.group: _make_plain(model, step, plan) for step in steps}


def _make_plain(model: nn.Module, step: Generate, plan: SharePlan) -> int:
    rules: list[Any] = site_rules(step)
    whole = rules[0].lanes
    idle = tuple(
        f"{a.stack}.{d}." for a in plan.arranges for d in set(range(len(a.order))) - set(a.running)
    )
    pairs = list(zip(step.sites, rules, strict=True))
    running = [rule.active_lanes for site, rule in pairs if not site.startswith(idle)]
    most = max(running, default=whole)  # a group may be of layers that are all left out
    fused = any(":" in feed for feed in rules[0].feeds)
    config = None if most == whole or fused else _with_size(model, rules[0], most)
    size = whole if config is None else most
    shapes = {}
    for site, rule in pairs:
        now = rule.active_lanes if rule.cut else whole
        if not fused:
            shapes |= {site: ("in", now), **{feed: ("out", now) for feed in rule.fed_by(site)}}
    fresh = _build(model, config) if config is not None else None
    if fresh is not None and not _fits(model, fresh, shapes, size):
        fresh, size = None, whole
    for name, (side, now) in shapes.items():
        _resize(resolve(backbone(model), name), side, now, size)
    if fresh is not None:
        _adopt(model, fresh, config)
    return size


def _with_size(model: nn.Module, rule: Lanes, lanes: int) -> Any:
    """The model's config with sub-layers of so many lanes, or None if it has no word for it."""
    config: Any = copy.deepcopy(getattr(model, "config", None))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if text is None:
        return None
    if isinstance(rule, Heads):
        own = [name for name in HEADS if isinstance(getattr(text, name, None), int)]
        queries = getattr(text, own[-1]) if own else 0
        head = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // max(queries, 1)
        for name in own:
            setattr(text, name, getattr(text, name) // rule.lanes * lanes)
        text.head_dim = head
        return config if own else None
    own = [name for name in BLOCK_KEYS if getattr(text, name, None) == rule.lanes]
    if not own and "n_inner" in text.__dict__ and text.n_inner is None:
        own = ["n_inner"]
    for name in own:
        setattr(text, name, lanes)
    return config if own else None


def _build(model: Any, config: Any) -> nn.Module | None:
    """A fresh build on the meta device; None where the class refuses the config."""
    try:
        with torch.device("meta"):
            return type(model)(config)
    except (ValueError, RuntimeError, TypeError):
        return None


def _fits(model: nn.Module, fresh: nn.Module, shapes: dict[str, tuple[str, int]], size: int) -> bool:
    for name, (side, now) in shapes.items():
        mine: Any = resolve(backbone(model), name)
        shape = list(mine.weight.shape)
        dim = _dim(mine, side)
        shape[dim] = shape[dim] // now * size
        if list(resolve(backbone(fresh), name).weight.shape) != shape:
            return False
    return True


def _dim(module: nn.Module, side: str) -> int:
    return int((side == "in") != (weight_kind(module) == "conv1d"))


@torch.no_grad()
def _resize(module: Any, side: str, now: int, size: int) -> None:
    """Cut the lanes off, or put lanes of zeros on."""
    if now == size:
        return
    dim = _dim(module, side)
    fields = ("nx", "nf") if weight_kind(module) == "conv1d" else ("in_features", "out_features")
    setattr(module, fields[side == "out"], module.weight.shape[dim] // now * size)
    module.weight = _resized(module.weight, dim, now, size)
    if side == "out" and module.bias is not None:
        module.bias = _resized(module.bias, 0, now, size)


def _resized(value: nn.Parameter, dim: int, now: int, size: int) -> nn.Parameter:
    shape = list(value.shape)
    more = shape[dim] // now * size - shape[dim]
    shape[dim] += min(more, 0)
    out = prefix_of(value.detach(), shape)
    if more > 0:
        pads = [0, 0] * (value.dim() - 1 - dim) + [0, more]
        out = F.pad(out, pads)
    return nn.Parameter(out, requires_grad=value.requires_grad)


def _adopt(model: Any, fresh: nn.Module, config: Any) -> None:
    """The numbers that the modules keep of their config, and the config itself, from a fresh build."""
    mine = dict(model.named_modules())
    for path, module in fresh.named_modules():
        for name, value in vars(module).items() if path in mine else ():
            if type(value) is int and vars(mine[path]).get(name) != value:
                setattr(mine[path], name, value)
    model.config.__dict__.update(config.__dict__)  # the object that every module holds

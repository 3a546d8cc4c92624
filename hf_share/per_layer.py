# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Plain models whose layers differ in size, said by transformers' own `per_layer_config`.

    config.per_layer_config = {"3": {"intermediate_size": 1024, "num_key_value_heads": 2, ...}}

transformers (5.15 or newer) reads and writes such a config, but most of its classes build every layer from
the global sizes, and refuse the smaller weights. `per_layer_class` is the stock class with each layer built
from its own config; nothing else is changed, so it loads, saves and generates as the stock one does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from .cut import cut_at, narrow, narrow_module
from .depths import plain_name
from .errors import ConfigError, Refused
from .lanes import Heads, Lanes
from .plain_lanes import BLOCK_KEYS
from .plan import SharePlan
from .rules import site_rules, step_rule
from .sites import Site, backbone, find_site, resolve, sites, stacks
from .sublayers import HEADS


Sizes = dict[int, dict[str, int]]


@cache
def per_layer_class(cls: type) -> Any:
    """The model class `cls`, the one that `architectures` of the config names, with layers built from
    `config.per_layer_config`.

    Raises:
        ConfigError: for an Auto class, which builds models of other classes.

    Example:
        >>> import transformers
        >>> per_layer_class(transformers.LlamaForCausalLM).from_pretrained("uneven")  # doctest: +SKIP
    """
    if not issubclass(cls, nn.Module):
        raise ConfigError(
            f"{cls.__name__} is no model class; give the one that `architectures` in config.json names, such "
            "as LlamaForCausalLM"
        )

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        config.allow_global_per_layer_attribute_access = True  # the stock class builds with the global sizes
        cls.__init__(self, config, *args, **kwargs)
        if config.is_heterogeneous:
            _rebuild(self, config)
            self.post_init()

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})


def _rebuild(model: nn.Module, config: Any) -> None:
    for stack in stacks(model).values():
        for depth, layer in enumerate(list(stack.layers)):
            kind: Any = type(layer)
            if not {"config", "layer_idx"} <= set(inspect.signature(kind.__init__).parameters):
                raise Refused(f"{kind.__name__} is not built from a config and an index, as layers are")
            stack.layers[depth] = kind(config=config.per_layer_config[depth], layer_idx=depth)


def cut_by_layer(model: Any, plan: SharePlan, now: Mapping[str, int]) -> None:
    """Cut the lanes off that are not active in `plan`, of a plain model of the layers that run, and make it
    one of its `per_layer_class`, whose config says the size of each layer.

    Args:
        now: the lanes that the sub-layers of each group of `plan` have now.

    Raises:
        Refused: if the config has no word for a size.
    """
    index: dict[str, Site] = {s.name: s for s in sites(model, parts=True)}
    found: Sizes = {}
    for step in plan.generates:
        rules: list[Any] = site_rules(step) if isinstance(step_rule(step), Lanes) else []
        for name, rule in zip(step.sites, rules, strict=False):
            own = plain_name(plan, name)
            if own is None:
                continue
            depth = int(own.removesuffix(f".{rule.role}").rpartition(".")[2])
            if any(":" in feed for feed in rule.feeds):
                raise Refused(f"site {own!r} is fed by a fused weight, which the model splits by its config")
            for site, cut in cut_at(rule, own, rule.active_lanes, now[step.group]).items():
                index[site] = narrow(find_site(index, site), cut)
                narrow_module(resolve(backbone(model), site), index[site])
            found.setdefault(depth, {}).update(_said(model, rule, now[step.group]))
    _declare(model, found)


def _said(model: Any, rule: Any, now: int) -> dict[str, int]:
    """The keys that say the active size of a sub-layer, and their values."""
    text = model.config.get_text_config()
    keys = HEADS if isinstance(rule, Heads) else BLOCK_KEYS
    whole = {key: getattr(text, key, None) for key in keys}
    if isinstance(rule, Heads):
        found = {k: v // now * rule.active_lanes for k, v in whole.items() if isinstance(v, int)}
        if getattr(text, "head_dim", None) is None:
            raise Refused(f"the config of {type(model).__name__} has no head_dim, so heads have one number")
    else:
        found = {key: rule.active_lanes for key, value in whole.items() if value == now}
    if not found:
        raise Refused(f"the config of {type(model).__name__} has no word for the size of {rule.role!r}")
    return found


def _declare(model: Any, found: Sizes) -> None:
    text = model.config.get_text_config()
    own = {d: {k: v for k, v in said.items() if getattr(text, k) != v} for d, said in found.items()}
    text.allow_global_per_layer_attribute_access = True
    text.per_layer_config = {depth: said for depth, said in own.items() if said}
    model.__class__ = per_layer_class(type(model))

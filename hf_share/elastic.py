# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Nested choices: a rule may work at several sizes, and `choose` sets one in place.

The choice of a low-rank rule is its `rank`: the first k rows of A and columns of B. The active choice is an
argument in the plan, so it is saved and a reload has it. Switching copies and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .binding import Binding
from .errors import ConfigError, unknown
from .rules import with_choices
from .ties import attached


def choices(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What `choose` may set on `model`: name -> values that every rule with this choice offers, smallest
    first.
    """
    offered: dict[str, list[tuple[Any, ...]]] = {}
    for binding in bindings(model):
        for name, values in binding.rule.choices().items():
            offered.setdefault(name, []).append(values)
    return {
        name: tuple(v for v in lists[0] if all(v in values for values in lists))
        for name, lists in offered.items()
    }


def choose(model: nn.Module, **settings: Any) -> nn.Module:
    """Set a nested choice on every rule that offers it, in place: `choose(model, rank=4)`; None is the full
    size.

    Raises:
        ConfigError: if no rule of the model offers the choice, or not this value; nothing is changed then.
    """
    offered = choices(model)
    for name, value in settings.items():
        if name not in offered:
            raise unknown("choice", name, offered, ConfigError)
        if value is not None and value not in offered[name]:
            raise ConfigError(f"{name}={value!r} is not offered; this model has {_span(offered[name])}")
    for binding in bindings(model):
        own = {k: v for k, v in settings.items() if k in binding.rule.choices()}
        binding.rule = replace(binding.rule, **own) if own else binding.rule  # type: ignore[type-var]
    _record(model, settings)
    return model


@contextmanager
def chosen(model: nn.Module, **settings: Any) -> Iterator[nn.Module]:
    """`choose` for the time of a `with` block."""
    before = [(binding, binding.rule) for binding in bindings(model)]
    current = {
        name: getattr(b.rule, name) for b, _ in before for name in settings if name in b.rule.choices()
    }
    choose(model, **settings)
    try:
        yield model
    finally:
        for binding, rule in before:
            binding.rule = rule
        _record(model, current)


def bindings(model: nn.Module) -> Iterator[Binding]:
    """Every rule bound in `model`, in compressed weights and in adapters."""
    for module in model.modules():
        held = getattr(module, "bindings", ())
        for item in held.values() if isinstance(held, dict) else (held,):
            yield from (b for b in item if isinstance(b, Binding))


def _record(model: nn.Module, settings: dict[str, Any]) -> None:
    record = attached(model)
    if record is not None:
        record.plan = with_choices(record.plan, settings)
        config = getattr(getattr(model, "config", None), "quantization_config", None)
        if config is not None and hasattr(config, "plan"):
            config.plan = record.plan.to_dict()
    configs = getattr(model, "peft_config", {})
    for name, config in list(configs.items()):
        if getattr(config, "_plan", None) is not None:
            configs[name] = config.bound(with_choices(config._plan, settings))


def _span(values: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, values)) if len(values) <= 8 else f"{values[0]!r} to {values[-1]!r}"

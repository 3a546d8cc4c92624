# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Active depths: a stack whose layers come round several times may run fewer of its rounds, and one whose
layers are ranked may leave out the least.

The list of layers becomes a `Depths`. What runs a model sees the active depths in it; what saves, ties or
adapts a model goes by names, and finds them all. Every depth keeps its index, so its place in the KV cache is
the same whatever is active, and a cache that other depths have filled is refused before it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache

from .errors import Refused
from .plan import SharePlan
from .rebuild import find_stack
from .sites import backbone, depth_key, resolve
from .steps import Arrange


class Depths(nn.ModuleList):
    """The layers of a stack, of which iteration, length, index and slices show the `active` depths (all, if
    None). Modules, tensors and their names are those of all depths.
    """

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.active: tuple[int, ...] | None = None
        for depth, layer in enumerate(layers):
            self.add_module(str(depth), layer)

    @property
    def every(self) -> nn.ModuleList:
        """All layers, as a plain list."""
        return nn.ModuleList(self._modules.values())  # type: ignore[arg-type]

    def _shown(self) -> list[Any]:
        layers = list(self._modules.values())
        return layers if self.active is None else [layers[depth] for depth in self.active]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    def __getitem__(self, index: Any) -> Any:
        return self._shown()[index]

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise Refused("the layers of a shared stack follow its plan; materialize the model to change them")

    append = extend = insert = pop = __setitem__ = __delitem__ = __iadd__ = _refuse  # type: ignore[assignment]


def loops(plan: SharePlan) -> tuple[int, ...]:
    """How many rounds `choose` may set for the stacks of `plan` that have more than one."""
    most = [step.visits for step in plan.arranges if _comes_round(step)]
    return tuple(range(1, min(most) + 1)) if most else ()


def _comes_round(step: Arrange) -> bool:
    return step.roles == "all" and step.visits > 1


def counts(plan: SharePlan) -> tuple[int, ...]:
    """How many layers `choose` may set for the stacks of `plan` that may leave some out."""
    offered = [step.depths for step in plan.arranges if step.drops]
    return tuple(n for n in offered[0] if all(n in depths for depths in offered)) if offered else ()


def _varies(step: Arrange) -> bool:
    """Whether fewer of its depths may run."""
    return _comes_round(step) or bool(step.drops)


def activate(model: nn.Module, plan: SharePlan) -> None:
    """Make the active depths of a checkpoint-form plan those of `model`. `check_active` has passed."""
    for step in filter(_varies, plan.arranges):
        parent, leaf = _place(model, step)
        held: Any = parent._modules[leaf]
        if not isinstance(held, Depths):
            if step.is_whole:
                continue
            held = Depths(held).train(held.training)
            parent._modules[leaf] = held
            parent.register_forward_pre_hook(require_same_depths, with_kwargs=True)
        held.active = None if step.is_whole else step.running


def restore(model: nn.Module, plan: SharePlan) -> None:
    """Take back what `activate` put in: plain lists of all layers, no hooks."""
    for step in filter(_varies, plan.arranges):
        parent, leaf = _place(model, step)
        held = parent._modules[leaf]
        if isinstance(held, Depths):
            parent._modules[leaf] = held.every.train(held.training)
        hooks = parent._forward_pre_hooks
        for key in [k for k, hook in hooks.items() if hook is require_same_depths]:
            del hooks[key]
            parent._forward_pre_hooks_with_kwargs.pop(key, None)


def plain_name(plan: SharePlan, name: str) -> str | None:
    """What a module or site at `name` of a shared model is called in its plain form, which has the active
    depths only; None if its depth is not active.
    """
    for step in plan.arranges:
        if step.is_whole or not name.startswith(f"{step.stack}."):
            continue
        depth, dot, rest = name.removeprefix(f"{step.stack}.").partition(".")
        if int(depth) not in step.running:
            return None
        return f"{step.stack}.{step.running.index(int(depth))}{dot}{rest}"
    return name


def _place(model: nn.Module, step: Arrange) -> tuple[nn.Module, str]:
    path, _, leaf = step.stack.rpartition(".")
    return resolve(backbone(model), path), leaf


def check_active(model: nn.Module, step: Arrange) -> None:
    """Raise where the active depths would be taken for others: a model looks up some things about the n-th
    layer it runs by n.
    """
    if step.is_whole:
        return
    stack = find_stack(model, step)
    place = depth_key(model, stack)
    config: Any = getattr(model, "config", None)
    for name in place[0] if place is not None else ():
        config = getattr(config, name)
    kinds = getattr(config, "layer_types", None) or ()
    alike = len(kinds) == len(step.order)
    for position, depth in enumerate(step.running) if alike else ():
        if kinds[depth] != kinds[position]:
            raise Refused(
                f"stack {step.stack!r}: with {_told(step)} depth {depth} ({kinds[depth]}) would run as "
                f"layer {position}, and the model would give it the attention mask of {kinds[position]}; "
                "choose another number, or an order in which the kinds of layers stay in step"
            )
    firsts = {0} | {kinds.index(kinds[depth]) for depth in step.running if alike}
    lost = sorted(firsts - set(step.running))
    if lost:
        raise Refused(
            f"stack {step.stack!r}: with {_told(step)} depth {lost[0]} does not run, and it is by its slot "
            "that a cache counts what was read; take the first layer of each kind out of drops"
        )


def _told(step: Arrange) -> str:
    return f"loops={step.loops}" if step.loops is not None else f"depth={step.layers}"


def require_same_depths(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the module that holds a `Depths`: refuse a cache that other depths have filled."""
    if torch.compiler.is_compiling():
        return
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            for held in module.children():
                if isinstance(held, Depths):
                    _require_filled(held, value)


def _require_filled(depths: Depths, cache: Cache) -> None:
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    filled = {depth for depth, layer in enumerate(own.layers) if _holds(layer)}
    every = range(len(depths._modules))
    active = set(every if depths.active is None else depths.active)
    if filled and not filled <= active:
        _refuse_cache(filled, active)
    # a depth may keep nothing (its layer shares another's keys); one that will is known by what it holds
    missing = {d for d in active - filled if _fills(own, d)}
    if filled and missing:
        _refuse_cache(filled, active)


def _refuse_cache(filled: set[int], active: set[int]) -> None:
    raise Refused(
        f"this cache was filled by {len(filled)} depths, and {len(active)} are active now. Make a new cache, "
        "or choose the depths that were active when it was made"
    )


def _fills(cache: Cache, depth: int) -> bool:
    if depth >= len(cache.layers):
        return True
    return any(hasattr(cache.layers[depth], name) for name in ("get_seq_length", "has_previous_state"))


def _holds(layer: Any) -> bool:
    states = getattr(layer, "has_previous_state", None)
    if states is not None and any(states.values()):
        return True
    return getattr(layer, "keys", None) is not None and bool(layer.get_seq_length() > 0)

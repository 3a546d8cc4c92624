# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A change of a model that happens as a whole, or not at all.

Steps of a plan build modules and set tensors, and a later one may be refused by what an earlier one made.
Nothing that was there is written to in place (a new value is a new tensor behind the same Parameter), so
references to the old state are enough to go back: no weight is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


CONTAINERS = (dict, set, list)


@contextmanager
def untouched_on_error(model: nn.Module) -> Iterator[None]:
    """Put `model` back as it was if an error leaves the block: modules, tensors, hooks and configs."""
    modules = list(model.modules())
    configs = {id(m.__dict__["config"]): m.__dict__["config"] for m in modules if "config" in m.__dict__}
    states = [_state(holder) for holder in (*modules, *configs.values())]
    values = [(t, t.data) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        for held, attributes, containers in states:
            held.clear()
            held.update(attributes)
            for container, content in containers:
                _refill(container, content)
        for tensor, data in values:
            tensor.data = data
        raise


def _state(holder: Any) -> tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]:
    """The attributes of an object, those it has now, and what is now in each that contains others."""
    held = holder.__dict__
    return held, dict(held), [(v, v.copy()) for v in held.values() if isinstance(v, CONTAINERS)]


def _refill(container: Any, content: Any) -> None:
    container.clear()  # the same object as before: handles of hooks look their hook up in it
    (container.extend if isinstance(container, list) else container.update)(content)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model that `Arrange` steps will leave, for a later method to look at, while the model is as it was.

Where the steps only leave out layers and let others share, it is a fresh build around the model's own
tensors: no weight is copied, and it can be run. Else it has shapes alone, on the meta device: a mean of
layers is not there before the steps are done, and a quantised weight fits no fresh build.
"""

from __future__ import annotations

from torch import Tensor, nn

from .rebuild import find_stack, rebuild
from .sites import Stack, prefix
from .steps import Arrange


def view(model: nn.Module, steps: tuple[Arrange, ...]) -> nn.Module | None:
    """`model` as `steps` will arrange it; None for a custom module. It is to be read, never written to."""
    fresh = rebuild(model, steps)
    if fresh is None or any(step.merge != "first" or None in step.order for step in steps):
        return fresh
    parameters = _arranged(model, steps, dict(model.named_parameters(remove_duplicate=False)))
    buffers = _arranged(model, steps, dict(model.named_buffers(remove_duplicate=False)))
    devices = {tensor.device for tensor in (*parameters.values(), *buffers.values())}
    fits = _alike(parameters, dict(fresh.named_parameters(remove_duplicate=False)))
    if fits and _alike(buffers, dict(fresh.named_buffers(remove_duplicate=False))) and len(devices) == 1:
        for name, tensor in (*parameters.items(), *buffers.items()):
            path, _, leaf = name.rpartition(".")
            setattr(fresh.get_submodule(path), leaf, tensor)
    return fresh


def _arranged(model: nn.Module, steps: tuple[Arrange, ...], held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names they will have, from those by the names they have."""
    for step in steps:
        stack, head = find_stack(model, step), f"{prefix(model)}{step.stack}."
        before = held
        held = {name: tensor for name, tensor in before.items() if not name.startswith(head)}
        names = [name.removeprefix(head).split(".", 1) for name in before if name.startswith(head)]
        for depth in range(len(step.order)):
            for place, name in names:
                origin = _origin(step, stack, depth, name)
                if place == str(origin):
                    held[f"{head}{depth}.{name}"] = before[f"{head}{origin}.{name}"]
    return held


def _origin(step: Arrange, stack: Stack, depth: int, name: str) -> int | None:
    """The layer whose tensor `name` stands at `depth`."""
    if not step.owns(name) or name in stack.partial:
        return depth
    if name not in stack.signatures[0]:  # no weight: it goes with its module
        return step.members[depth] if step.roles == "all" else depth
    return step.members[depth] if step.keeps(name) else step.order[depth]


def _alike(mine: dict[str, Tensor], fresh: dict[str, Tensor]) -> bool:
    """Whether these are the tensors of a fresh build, of its shapes, and torch's own."""
    plain = all(type(tensor).__module__.partition(".")[0] == "torch" for tensor in mine.values())
    return plain and {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in fresh.items()}

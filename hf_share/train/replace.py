# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Progressive module replacement: shared layers take over from the layers they replace, a few more each step.

At step t each layer of the student runs with probability p(t) and is stood in for by the teacher's with
1 - p(t), one draw for all rows of the step:

    p(t) = min(1, p_0 + (1 - p_0) t / N)

A shared layer so learns to do the work of the one it replaces among layers that know their work (the idea
of BERT-of-Theseus, arXiv 2002.02925, with its linear schedule). Where the student has fewer layers, layer i
of n stands for the teacher's layers from i L/n to (i + 1) L/n. The draw depends on seed and step alone,
so that a resumed run draws what an unbroken one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, Refused
from ..rules import generator
from ..sites import stacks


class Replacement:
    """Which of the student's layers the teacher stands in for.

    Args:
        start: p_0, above 0 and at most 1.
        steps: N.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, start: float, steps: int, seed: int = 0):
        if not 0.0 < start <= 1.0 or steps < 1:
            raise ConfigError(f"replace_start={start} must lie in (0, 1] and replace_steps={steps} above 0")
        self.start, self.steps, self.seed = start, steps, seed
        self.pairs = list(_pairs(student, teacher))

    def probability(self, step: int) -> float:
        """p(step)."""
        return min(1.0, self.start + (1.0 - self.start) * step / self.steps)

    def drawn(self, step: int) -> list[int]:
        """The student's layers that the teacher stands in for."""
        draws = torch.rand(len(self.pairs), generator=generator(self.seed, "replace", str(step)))
        return torch.nonzero(draws >= self.probability(step)).flatten().tolist()

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Passes in this context run with the layers of step `step`."""
        handles = []
        for i in self.drawn(step):
            layer, block = self.pairs[i]
            # before the hooks that collect hidden states, which then see what the next layer gets
            hook = layer.register_forward_hook(_stand_in(block), with_kwargs=True, prepend=True)
            handles.append(hook)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _pairs(student: nn.Module, teacher: nn.Module) -> Iterator[tuple[nn.Module, Sequence[nn.Module]]]:
    theirs = stacks(teacher)
    for path, stack in stacks(student).items():
        if path not in theirs:
            raise Refused(f"the teacher has no stack {path!r}; its layers cannot stand in for the student's")
        layers, kinds = theirs[path].layers, _kinds(teacher)
        n, count = len(stack.layers), len(layers)
        for i, layer in enumerate(stack.layers):
            block = range(i * count // n, (i + 1) * count // n)
            if n != count and len(kinds) > 1:
                raise Refused(
                    f"stack {path!r}: the teacher's layers are of several kinds "
                    f"({', '.join(sorted(kinds))}), and {count} of them stand in for {n}; only a student of "
                    "the same depth can be paired"
                )
            if len(block):
                yield layer, [layers[j] for j in block]


def _kinds(model: Any) -> set[str]:
    return set(getattr(getattr(model, "config", None), "layer_types", None) or ())


def _stand_in(block: Sequence[nn.Module]) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        named = dict(kwargs)
        hidden = args[0] if args else named.pop("hidden_states")
        for layer in block:
            found = layer.forward(hidden, *args[1:], **named)  # no hooks: its states are not the student's
            hidden = found[0] if isinstance(found, tuple) else found
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook

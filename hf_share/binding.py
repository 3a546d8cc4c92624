# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One rule at one site: which stored tensors it takes, and what it forms of them.

A rule may *form* what it multiplies with from what is stored: a pool's shards become factors, atoms become a
weight. What was formed may be kept where no gradient is recorded, or where no stored tensor takes one (an
adapter that is loaded and not trained, whole numbers); it is formed anew as soon as a stored tensor is
another one or has been written to. What is formed of whole numbers alone is kept for every width that has
been active.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .rules import Rule
from .sites import Site


@dataclass(eq=False)
class Binding:
    """One rule at one site: the store it calls, the holder's attribute for each private tensor, and the
    rule's tables of whole numbers.

    `keep` says whether what the rule forms is kept while none of it trains.
    """

    rule: Rule
    site: Site
    group: str
    store: nn.Module | None
    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    keep: bool = False
    _kept: dict[Rule, Kept] = field(default_factory=dict, repr=False)

    @property
    def stem(self) -> str:
        """What the names of private tensors begin with: `q_` for a part of a fused weight."""
        return f"{self.site.part.name}_" if self.site.part else ""

    def place(self, y: Tensor) -> Tensor:
        """Output (..., site's out) -> output of the whole fused weight."""
        return y if self.site.part is None else self.site.part.place(y)

    def dense(self, formed: Mapping[str, Tensor], W: Tensor | None = None) -> Tensor:
        """The weight or delta (out, in) of the whole module this binding makes; zero outside its part. A map
        makes a delta too: what it changes of the module's own weight `W`.
        """
        part = self.site.part
        if self.rule.kind == "map":
            assert W is not None, "a map is over a weight"
            own = W if part is None else W[part.rows(W.device)]
            weight = self.rule.weight({**formed, "W": own}) - own
        else:
            weight = self.rule.weight(formed)
        return weight if part is None else part.place(weight.mT).mT

    def formed(self, stored: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """What the rule's `weight` and `apply` take, from the stored tensors by the rule's names."""
        if not self.keep or torch.compiler.is_compiling() or _trains(stored):
            if torch.is_grad_enabled():
                self._kept.clear()
            return self._form(stored)
        kept = self._kept.get(self.rule)
        if kept is None or not kept.holds([self.rule], stored.values()):
            if not self.rule.frozen:
                self._kept.clear()
            with torch.inference_mode(False), torch.no_grad():  # a later pass may train what comes before
                kept = self._kept[self.rule] = Kept([self.rule], stored.values(), self._form(stored))
        return kept.value

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()

    def _form(self, stored: dict[str, Tensor]) -> Mapping[str, Tensor]:
        if self.constants:
            device = next(iter(stored.values())).device
            for name, table in self.constants.items():
                if table.device != device and device.type != "meta":
                    self.constants[name] = table.to(device)
        return self.rule.form({**stored, **self.constants})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # copies and pickles form their own


class Kept:
    """Something formed of stored tensors by some rules, and whether it still is what they would form."""

    def __init__(self, rules: Sequence[Rule], stored: Iterable[Tensor], value: Any):
        self.rules, self.value = list(rules), value
        self.seen = [(weakref.ref(t), _state(t)) for t in stored]

    def holds(self, rules: Sequence[Rule], stored: Iterable[Tensor]) -> bool:
        """False once a rule or a tensor is another one, or a tensor has been written to."""
        now = list(stored)
        return (
            len(now) == len(self.seen)
            and all(a is b or a == b for a, b in zip(self.rules, rules, strict=True))
            and all(ref() is t and v == _state(t) for (ref, v), t in zip(self.seen, now, strict=True))
        )


def _state(tensor: Tensor) -> Any:
    """What of a tensor differs once it is written to, moved, or given other data (`.to`, `.data = ...`);
    never equal to itself for one made in inference mode, which does not count writes.
    """
    if tensor.is_inference():
        return object()
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # a tensor of parts, or of no memory
        place = 0
    return tensor._version, place, tensor.dtype, tensor.device


def _trains(stored: Mapping[str, Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in stored.values())


def trains_or_compiles() -> bool:
    """True where what is formed must become a part of the graph, so that nothing is kept."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled()


def private_names(rule: Rule, site: Site, taken: Iterable[str]) -> dict[str, str]:
    """Attribute names for a binding's private tensors: `B`, `q_B` for a part, `B_1` if `B` is taken."""
    stem = f"{site.part.name}_" if site.part else ""
    names, taken = {}, set(taken)
    for tensor in rule.private(site):
        name, n = stem + tensor, 0
        while name in taken:
            n += 1
            name = f"{stem}{tensor}_{n}"
        names[tensor] = name
    return names

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The few modules a shared model has beside its own.

A `Store` lives once at the backbone's root and holds what a group shares. A `Share` is a child, called
`share`, of each module whose weight a rule makes: it keeps the private tensors and *calls* the store.
Calling, not reading an attribute, is what lets DDP, FSDP, CPU offload and compile see the use of the shared
tensors. The handle to the store is not registered, so the tensors appear in `state_dict` once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .binding import Binding, Kept, private_names, trains_or_compiles
from .rules import Rule
from .sites import Site


class Store(nn.Module):
    """The tensors a group stores once. A leaf module: call it to get them by name."""

    of_model = True  # an adapter's store is another class, and does not take the group's name

    def __init__(self, shapes: dict[str, tuple[int, ...]], device=None, dtype=None):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))

    def forward(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._parameters.items() if value is not None}

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={tuple(p.shape)}" for n, p in self.named_parameters())


class Share(nn.Module):
    """Child of a module whose weight rules make: private tensors, and the bindings that use them.

    With `keep` the sum of all dense weights is kept while nothing trains, and multiplied with.
    """

    def __init__(self):
        super().__init__()
        self.bindings: list[Binding] = []
        self.keep = False
        self._kept: Kept | None = None

    def bind(
        self,
        rule: Rule,
        site: Site,
        group: str,
        store: Store | None,
        constants: dict[str, Tensor],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        names = private_names(rule, site, self._parameters)
        for tensor, shape in rule.private(site).items():
            self.register_parameter(
                names[tensor], nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            )
        self.bindings.append(Binding(rule, site, group, store, names, constants, keep=rule.light))

    def stored(self, binding: Binding) -> dict[str, Tensor]:
        """Shared and private tensors of one binding, by the rule's names."""
        out = {} if binding.store is None else dict(binding.store())
        for tensor, name in binding.names.items():
            out[tensor] = getattr(self, name)
        return out

    def tensors(self, binding: Binding) -> Mapping[str, Tensor]:
        """What the rule of one binding forms of its stored tensors."""
        return binding.formed(self.stored(binding))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """`y` plus every binding's output for x (..., in); without y the sum alone."""
        if self.keep and not self.training and not trains_or_compiles():
            whole = F.linear(x, self._whole())
            return whole if y is None else y + whole
        self._kept = None if torch.is_grad_enabled() else self._kept
        for binding in self.bindings:
            delta = binding.place(binding.rule.apply(x, self.tensors(binding), self.training))
            y = delta if y is None else y + delta
        assert y is not None, "a share has at least one binding"
        return y

    def _whole(self) -> Tensor:
        rules = [b.rule for b in self.bindings]
        stored = [t for b in self.bindings for t in self.stored(b).values()]
        if self._kept is None or not self._kept.holds(rules, stored):
            self._kept = Kept(rules, stored, self.weight())
        return self._kept.value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles form their own

    def weight(self) -> Tensor:
        """Sum of all bindings' dense weights or deltas, (out, in) of the whole module."""
        made = [b.dense(self.tensors(b)) for b in self.bindings]
        return made[0] if len(made) == 1 else torch.stack(made).sum(0)

    def extra_repr(self) -> str:
        return ", ".join(f"{b.rule.name}[{b.group}]" for b in self.bindings)


def add_share(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Forward hook of a module with `add` rules. A plain function, so that the model can be pickled and
    compiled.
    """
    return module.share(args[0], output)


class SharedLinear(nn.Module):
    """Stands for a linear layer whose weight a `replace` rule makes. Has a bias of its own, and no weight
    tensor. `stood` is the class that stood there, for the way back.
    """

    share_kind = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        stood: type[nn.Module] = nn.Linear,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.stood = stood
        self.register_parameter("bias", bias)
        self.share = Share()

    @property
    def weight(self) -> Tensor:
        """The dense weight (out, in), made anew at each access."""
        return self.share.weight()

    def forward(self, x: Tensor) -> Tensor:
        y = self.share(x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class ZeroSublayer(nn.Module):
    """Stands where a plan removed a sub-layer: adds nothing to the residual stream.

    `pair` is True for an attention, which returns its output and its attention weights.
    """

    stands_for = 2  # weights at least, when the layers of a stack are looked for

    def __init__(self, pair: bool):
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: Tensor | None = None, *args, **kwargs):
        zero = torch.zeros_like(kwargs["hidden_states"] if hidden_states is None else hidden_states)
        return (zero, None) if self.pair else zero


def linear_weight(module: Any) -> Tensor:
    """The dense weight (out, in) of a plain linear or Conv1D module."""
    weight = module.weight
    return weight.mT if type(module).__name__ == "Conv1D" else weight

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The few modules a shared model has beside its own.

A `Store` lives once at the backbone's root and holds what a group shares. A `Share` is a child, called
`share`, of each module whose weight a rule makes: it keeps the private tensors and *calls* the store.
Calling, not reading an attribute, is what lets DDP, FSDP, CPU offload and compile see the use of the shared
tensors. The handle to the store is not registered, so the tensors appear in `state_dict` once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .binding import Binding, Kept, private_names, trains_or_compiles
from .errors import Refused
from .rules import Rule
from .sites import Site, resolve
from .steps import Generate


class Store(nn.Module):
    """The tensors a group stores once. A leaf module: call it to get them by name."""

    of_model = True  # an adapter's store is another class, and does not take the group's name

    @classmethod
    def of(cls, rule: Rule, sites: Sequence[Site], device: Any = None, dtype: Any = None) -> Store:
        """A store with an empty tensor for each that `rule` shares over `sites`."""
        store = cls()
        for name, shape in rule.shared(sites).items():
            _register(store, name, shape, rule.whole(name), device, dtype)
        return store

    def forward(self) -> dict[str, Tensor]:
        held = (*self._parameters.items(), *self._buffers.items())
        return {name: value for name, value in held if value is not None}

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={tuple(t.shape)}" for n, t in self.forward().items())


def _register(
    module: nn.Module, name: str, shape: tuple[int, ...], whole: torch.dtype | None, device: Any, dtype: Any
) -> None:
    """An empty tensor of `module`: a Parameter, or a buffer if it is of whole numbers."""
    value = torch.empty(shape, device=device, dtype=whole or dtype)
    if whole is None:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


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
        names = private_names(rule, site, (*self._parameters, *self._buffers))
        for tensor, shape in rule.private(site).items():
            _register(self, names[tensor], shape, rule.whole(tensor), device, dtype)
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

    def forward(self, x: Tensor, y: Tensor | None = None, own: Own | None = None) -> Tensor:
        """The output for x (..., in) with what every binding adds or changes; y is the output of the
        module's `own` weight, where it has one.
        """
        if self.keep and y is None and not self.training and not trains_or_compiles():
            return F.linear(x, self._whole())
        self._kept = None if torch.is_grad_enabled() else self._kept
        for binding in self.bindings:
            if binding.rule.kind == "limit":
                continue  # x is limited already
            tensors = self.tensors(binding)
            if binding.rule.kind == "map":
                assert y is not None, "a map is over a weight"
                over = own or Own(partial(self.weight, until=binding))
                y = over.mapped(y, binding, x, tensors, self.training)
                continue
            part = binding.place(binding.rule.apply(x, tensors, self.training))
            y = part if y is None else y + part
        assert y is not None, "a share has at least one binding"
        return y

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept = None

    def _whole(self) -> Tensor:
        rules = [b.rule for b in self.bindings]
        stored = [t for b in self.bindings for t in self.stored(b).values()]
        if self._kept is None or not self._kept.holds(rules, stored):
            self._kept = Kept(rules, stored, self.weight())
        return self._kept.value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles form their own

    @property
    def has_maps(self) -> bool:
        return any(binding.rule.kind == "map" for binding in self.bindings)

    def limited(self, x: Tensor) -> Tensor:
        """What of the inputs x (..., in) the weight sees."""
        for binding in self.bindings:
            x = binding.rule.limit(x) if binding.rule.kind == "limit" else x
        return x

    def weight(self, W: Tensor | None = None, until: Binding | None = None) -> Tensor:
        """The weight the bindings (`until` one) make, or their delta on the module's own weight `W`: (out,
        in) of the whole module.
        """
        total = None
        for binding in self.bindings:
            if binding is until:
                break
            if binding.rule.kind == "limit":
                continue
            part = binding.dense(self.tensors(binding), total if W is None else W)
            total = part if total is None else total + part
        if W is None:
            assert total is not None, "a share makes a weight, or has one"
            return self.limited(total)
        return self.limited(W if total is None else W + total) - W

    def extra_repr(self) -> str:
        return ", ".join(f"{b.rule.name}[{b.group}]" for b in self.bindings)


def rule_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the rules of `model` store that can learn."""
    held = (module for module in model.modules() if isinstance(module, (Share, Store)))
    return [p for module in held for p in module.parameters()]


def bound(base: nn.Module, step: Generate) -> list[tuple[Share, Binding]]:
    """Of each site of an attached step the share and the binding that hold its rule, in the step's order."""
    found = []
    for name in step.sites:
        share = resolve(base, name.partition(":")[0])._modules["share"]
        assert isinstance(share, Share), "the step is attached"
        here = (b for b in share.bindings if b.group == step.group and b.site.name == name)
        found.append((share, next(here)))
    return found


def add_share(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Forward hook of a module with `add` or `map` rules. A plain function, so that the model can be pickled
    and compiled.
    """
    share = module.share
    return share(args[0], output, own_of(module, args[0], output) if share.has_maps else None)


def limit_inputs(module: Any, args: tuple) -> tuple:
    """Forward pre-hook of a module with `limit` rules."""
    return (module.share.limited(args[0]), *args[1:])


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
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.stood = stood
        self.compute_dtype = dtype  # what was stored there, where a rule stores whole numbers
        self.register_parameter("bias", bias)
        self.share = Share()

    @property
    def weight(self) -> Tensor:
        """The dense weight (out, in), made anew at each access, in the type that was stored there."""
        W = self.share.weight()
        return W if self.compute_dtype is None else W.to(self.compute_dtype)

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


@dataclass(frozen=True)
class Own:
    """What a map is over: a module's own weight, made when it is asked for, and the bias in its output."""

    weight: Callable[[], Tensor]
    bias: Tensor | None = None

    def mapped(
        self, y: Tensor, binding: Binding, x: Tensor, formed: Mapping[str, Tensor], training: bool
    ) -> Tensor:
        """The output y with the map's product in place of the own one at its site: y itself, bit for bit,
        where the two are equal.
        """
        rule, part = binding.rule, binding.site.part
        own = y if self.bias is None else y - self.bias.to(y.dtype)
        own = own if part is None else own[..., part.rows(y.device)]
        given = {"y": own} if "y" in rule.over else {}
        if "W" in rule.over:
            given["W"] = self._dense(binding.site, y)
        new = rule.apply(x, {**formed, **given}, training)
        if self.bias is None and part is None:
            return new.to(y.dtype)
        return (y + binding.place(new - own)).to(y.dtype)

    def _dense(self, site: Site, y: Tensor) -> Tensor:
        weight = self.weight()
        if (weight.is_meta and not y.is_meta) or not weight.dtype.is_floating_point:
            raise Refused(
                f"site {site.name!r}: its rule is a function of the weight, which is quantised or offloaded. "
                "Load it dense and on the device"
            )
        return weight if site.part is None else weight[site.part.rows(weight.device)]


def own_of(module: Any, x: Tensor, y: Tensor) -> Own:
    """What a map is over at a module whose output for x was y."""
    bias = getattr(module, "bias", None)
    if bias is not None and bias.is_meta and not y.is_meta:
        bias = module.forward(x.new_zeros(1, x.shape[-1]))[0]  # offloaded again by now; a call brings it
    return Own(partial(linear_weight, module), bias)

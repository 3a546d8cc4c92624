# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The peft shell of a rule: one layer class and one store class serve every rule.

Private tensors are `<site>.hf_share_<tensor>.<adapter>`, shared ones
`shared_stores.<group>.hf_share_<tensor>.<adapter>`. The store is a tuner layer itself, so peft finds it,
moves it, casts it and saves it once; layers keep an unregistered handle and call it. Rules know nothing of
adapters; this file knows nothing of methods.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..binding import Binding, private_names
from ..errors import Refused
from ..modules import Share, SharedLinear, own_of
from ..peft_type import PREFIX
from ..rules import Rule
from ..sites import Site


class ShareTunerLayer(BaseTunerLayer):
    """What both classes have in common: tensors in ParameterDicts by adapter, named after the rule's
    tensors.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def add_tensor(self, name: str, adapter: str, value: Tensor) -> None:
        attribute = PREFIX + name
        if attribute not in self.adapter_layer_names:
            setattr(self, attribute, nn.ParameterDict())
            self.adapter_layer_names = (*self.adapter_layer_names, attribute)
        getattr(self, attribute)[adapter] = nn.Parameter(value)

    def get_tensor(self, name: str, adapter: str) -> Tensor:
        return getattr(self, PREFIX + name)[adapter]

    def held(self) -> Iterator[tuple[str, Any]]:
        """Every kind of tensor by its attribute's name: a dict by adapter."""
        for name in self.adapter_layer_names:
            yield name, getattr(self, name)


class AdapterStore(nn.Module, ShareTunerLayer):
    """What a group shares, once for each adapter. A leaf that is called with the adapter's name."""

    in_features = out_features = None
    bias: Any = None  # type: ignore[assignment]

    def __init__(self, device: torch.device):
        super().__init__()
        self.merged_adapters: list[str] = []
        self.home = device

    def forward(self, adapter: str) -> dict[str, Tensor]:
        return {name[len(PREFIX) :]: held[adapter] for name, held in self.held() if adapter in held}

    def __contains__(self, adapter: str) -> bool:
        return any(adapter in held for _, held in self.held())

    def get_base_layer(self) -> nn.Module:
        return self

    @property
    def weight(self) -> Tensor:
        raise AttributeError("a store has no base weight")

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        for _, held in self.held():
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name] = held[adapter_name].to(device or self.home)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        self.merged_adapters += [n for n in names if n in self and n not in self.merged_adapters]

    def unmerge(self) -> None:
        self.merged_adapters.clear()


class ShareLayer(nn.Module, ShareTunerLayer):
    """Wraps one linear or Conv1D module, quantised or not, and adds the deltas of its active adapters."""

    other_param_names = ("bindings",)

    def __init__(self, base_layer: nn.Module, quantization_backend: Any = None):
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = quantization_backend
        self.bindings: dict[str, list[Binding]] = {}
        self.merged_adapters: list[str] = []
        self._original: dict[str, Any] | None = None
        base = self.get_base_layer()
        self.in_features = getattr(base, "in_features", None) or base.nx
        self.out_features = getattr(base, "out_features", None) or base.nf

    def bind(
        self,
        adapter: str,
        rule: Rule,
        site: Site,
        group: str,
        store: AdapterStore | None,
        constants: dict[str, Tensor],
        values: dict[str, Tensor],
    ) -> None:
        """Add one rule for `adapter`, whose private tensors start with `values`."""
        device, _ = self._placement()
        taken = [n for b in self.bindings.get(adapter, ()) for n in b.names.values()]
        names = private_names(rule, site, taken)
        for tensor, value in values.items():
            self.add_tensor(names[tensor], adapter, value.to(device))
        binding = Binding(rule, site, group, store, names, constants, keep=rule.light)
        self.bindings.setdefault(adapter, []).append(binding)

    def _placement(self) -> tuple[torch.device | None, torch.dtype]:
        device, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return device, dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def stored(self, binding: Binding, adapter: str) -> dict[str, Tensor]:
        """Shared and private tensors of one binding, by the rule's names."""
        out = {} if binding.store is None else dict(binding.store(adapter))
        for tensor, name in binding.names.items():
            out[tensor] = self.get_tensor(name, adapter)
        return out

    def tensors(self, binding: Binding, adapter: str) -> Mapping[str, Tensor]:
        """What the rule of one binding forms of its stored tensors."""
        return binding.formed(self.stored(binding, adapter))

    def delta(self, adapter: str, x: Tensor) -> Tensor | None:
        """What `adapter` adds to the output for x (..., in); None if it adds nothing here."""
        total = None
        for binding in self.bindings.get(adapter, ()):
            if binding.rule.kind == "add":
                y = binding.place(self._product(binding, adapter, x))
                total = y if total is None else total + y
        return total

    def _product(self, binding: Binding, adapter: str, x: Tensor) -> Tensor:
        x, formed = self._at(binding, adapter, x)
        return binding.rule.apply(x, formed, self.training)

    def _at(self, binding: Binding, adapter: str, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """x in the type of the adapter's tensors, and what the rule forms of them where x is."""
        stored = self.stored(binding, adapter)
        own = next(iter(stored.values()), x)
        if own.device != x.device:  # a model spread over devices: the store lives with its first user
            stored = {name: value.to(x.device) for name, value in stored.items()}
        return self._cast_input_dtype(x, own.dtype), binding.formed(stored)

    def _maps(self, adapters: Sequence[str]) -> list[tuple[str, Binding]]:
        """The maps over the weight here, of one of `adapters`."""
        found = [(a, b) for a in adapters for b in self.bindings.get(a, ()) if b.rule.kind == "map"]
        if len({adapter for adapter, _ in found}) > 1:
            raise Refused(
                f"adapters {found[0][0]!r} and {found[-1][0]!r} are both functions of the weight of "
                f"{found[0][1].site.name!r}; activate one of them"
            )
        return found

    def _owner(self, adapters: Sequence[str]) -> tuple[str, Binding] | None:
        """The one of `adapters` that makes the weight here, with its binding."""
        found = [(a, b) for a in adapters for b in self.bindings.get(a, ()) if b.rule.kind == "replace"]
        if len(found) > 1:
            raise Refused(
                f"adapters {found[0][0]!r} and {found[1][0]!r} both make the weight of "
                f"{found[0][1].site.name!r}; activate one of them"
            )
        return found[0] if found else None

    def _whole(self, x: Tensor, adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """The output before anything is added: the base's, or that of the adapter that makes the weight or
        is a function of it.
        """
        owner, base = self._owner(adapters), self.get_base_layer()
        if owner is None:
            y = self.base_layer(x, *args, **kwargs)
        else:
            y, bias = self._product(owner[1], owner[0], x), getattr(base, "bias", None)
            y = (y if bias is None else y + bias).to(x.dtype)
        for adapter, binding in self._maps(adapters):
            own, (at, formed) = own_of(base, x, y), self._at(binding, adapter, x)
            own = own if owner is None else replace(own, weight=partial(self._dense, *owner))
            y = own.mapped(y, binding, at, formed, self.training)
        return y

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or (self.merged and adapter_names is None):
            return self.base_layer(x, *args, **kwargs)
        share = self.get_base_layer()._modules.get("share")
        x = share.limited(x) if isinstance(share, Share) else x  # a delta sees what the weight sees
        if adapter_names is not None:
            return self._mixed(x, self.base_layer(x, *args, **kwargs), adapter_names)
        result = self._whole(x, self.active_adapters, *args, **kwargs)
        for adapter in self.active_adapters:
            delta = self.delta(adapter, x)
            if delta is not None:
                result = (result + delta).to(result.dtype)
        return result

    def _mixed(self, x: Tensor, result: Tensor, adapter_names: list[str]) -> Tensor:
        """A batch in which each row names its adapter, `"__base__"` for none."""
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, "
                "please call `unmerge_adapter` first."
            )
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        result = result.clone()
        for adapter in dict.fromkeys(adapter_names):
            rows = [i for i, name in enumerate(adapter_names) if name == adapter]
            if self._owner([adapter]) is not None or self._maps([adapter]):
                result[rows] = self._whole(x[rows], [adapter])
            delta = self.delta(adapter, x[rows])
            if delta is not None:
                result[rows] += delta.to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense change of `adapter`, in the layout of the base weight (Conv1D's is transposed)."""
        owner = self._owner([adapter])
        if owner is None:
            return self._added(adapter, self.get_base_weight() if self._maps([adapter]) else None)
        made = self._made(owner)
        return self._added(adapter, made) + made - self.get_base_weight()

    def _added(self, adapter: str, whole: Tensor | None) -> Any:
        """The dense change of `adapter` to the weight `whole`, which is read if it has maps."""
        W = None if whole is None else self._in_layout(whole)
        bindings = [b for b in self.bindings[adapter] if b.rule.kind != "replace"]
        deltas = [b.dense(self.tensors(b, adapter), W) for b in bindings]
        if not deltas:
            return 0.0
        return self._in_layout(deltas[0] if len(deltas) == 1 else torch.stack(deltas).sum(0))

    def _made(self, owner: tuple[str, Binding]) -> Tensor:
        return self._in_layout(self._dense(*owner))

    def _dense(self, adapter: str, binding: Binding) -> Tensor:
        return binding.dense(self.tensors(binding, adapter))

    def _in_layout(self, weight: Tensor) -> Tensor:
        return weight.mT if type(self.get_base_layer()).__name__ == "Conv1D" else weight

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the merged weight in place of the base's, as a new tensor: other visits of a tied weight
        keep theirs.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) or () if n in self.bindings]
        if not names:
            return
        merged = [*self.merged_adapters, *names]
        self._require_own_weight()
        self._restore()
        self.merged_adapters = []  # until the new weight is there: it may be refused below
        base = self.get_base_weight()
        weight = base.float() if not base.dtype.is_floating_point or base.element_size() < 4 else base.clone()
        owner = self._owner(merged)
        if owner is not None:
            weight = self._made(owner).to(weight.device, weight.dtype)
        self._maps(merged)
        whole = weight
        for name in merged:
            weight = weight + torch.as_tensor(self._added(name, whole)).to(weight.device, weight.dtype)
        weight = weight.to(base.dtype if base.dtype.is_floating_point else torch.float32)
        if safe_merge and not torch.isfinite(weight).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {names[-1]} seems to be broken"
            )
        self._original = _snapshot(self.get_base_layer())
        if self.quantization_backend is not None:
            self.set_base_weight(weight.contiguous())
        else:
            base_layer = self.get_base_layer()
            base_layer.weight = nn.Parameter(weight, requires_grad=base_layer.weight.requires_grad)
        self.merged_adapters = merged

    def _require_own_weight(self) -> None:
        """A map of the compressed base is a function of the base's weight, not of a merged one."""
        share = self.get_base_layer()._modules.get("share")
        if isinstance(self.get_base_layer(), SharedLinear):
            raise Refused(
                "merge: the base stores no weight here that one could be merged into, but makes it from what "
                "it shares. Use hf_share.compressed(model), or materialize the base before adapters are added"
            )
        for binding in getattr(share, "bindings", ()):
            if binding.rule.kind == "map":
                raise Refused(
                    f"merge: rule {binding.rule.name!r} of the base is a function of the weight of "
                    f"{binding.site.name!r}, and would change what is merged into it. Use "
                    "hf_share.compressed(model), or materialize the base before adapters are added"
                )

    def unmerge(self) -> None:
        """Put the original weight back: the same tensor, bit for bit, tied as before."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._restore()
        self.merged_adapters = []

    def _restore(self) -> None:
        if self._original is not None:
            base = self._original["module"]
            base.__dict__.update(self._original["state"])
            for parameter, state in self._original["parameters"]:
                parameter.__dict__.clear()
                parameter.__dict__.update(state)
            self.base_layer = base if self.base_layer is self._original["home"] else self.base_layer
            self._original = None

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "hf_share." + super().__repr__()


def _snapshot(module: nn.Module) -> dict[str, Any]:
    """References to everything a merge may replace in `module`; quantisers also change attributes of the
    old weight.
    """
    state = dict(module.__dict__)
    state["_parameters"] = dict(module._parameters)
    if "state" in state:  # of an 8-bit layer, and of every layer tied to it: those keep it as it is
        module.state = copy.copy(module.state)
    parameters = [(p, dict(p.__dict__)) for p in module._parameters.values() if p is not None]
    return {"module": module, "home": module, "state": state, "parameters": parameters}


def is_layer(module: Any) -> bool:
    return isinstance(module, ShareTunerLayer)


def names_of(layers: Sequence[nn.Module]) -> set[str]:
    """All adapter names that occur on `layers`."""
    return {name for layer in layers if isinstance(layer, ShareLayer) for name in layer.bindings}

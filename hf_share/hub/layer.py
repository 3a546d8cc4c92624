# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The peft shell of a rule: one layer class and one store class serve every rule of kind `add`.

Private tensors are `<site>.hf_share_<tensor>.<adapter>`, shared ones
`shared_stores.<group>.hf_share_<tensor>.<adapter>`. The store is a tuner layer itself, so peft finds it,
moves it, casts it and saves it once; layers keep an unregistered handle and call it. Rules know nothing of
adapters; this file knows nothing of methods.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..modules import Binding, private_names
from ..peft_type import PREFIX
from ..rules import Rule, generator
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


class AdapterStore(nn.Module, ShareTunerLayer):
    """What a group shares, once for each adapter. A leaf that is called with the adapter's name."""

    in_features = out_features = None
    bias: Any = None  # type: ignore[assignment]

    def __init__(self, device: torch.device):
        super().__init__()
        self.merged_adapters: list[str] = []
        self.home = device

    def forward(self, adapter: str) -> dict[str, Tensor]:
        return {name[len(PREFIX) :]: held[adapter] for name, held in self._held() if adapter in held}

    def _held(self) -> Iterator[tuple[str, Any]]:
        for name in self.adapter_layer_names:
            yield name, self._modules[name]

    def __contains__(self, adapter: str) -> bool:
        return any(adapter in held for _, held in self._held())

    def get_base_layer(self) -> nn.Module:
        return self

    @property
    def weight(self) -> Tensor:
        raise AttributeError("a store has no base weight")

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        for _, held in self._held():
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
        self, adapter: str, rule: Rule, site: Site, group: str, store: AdapterStore | None, seed: int
    ) -> None:
        """Add one rule for `adapter`, with fresh private tensors."""
        device, dtype = self._placement()
        taken = [n for b in self.bindings.get(adapter, ()) for n in b.names.values()]
        binding = Binding(rule, site, group, store, private_names(rule, site, taken))
        for tensor, shape in rule.private(site).items():
            value = torch.empty(shape, dtype=dtype)
            rule.reset(tensor, value, [site], generator(seed, group, site.name, tensor))
            self.add_tensor(binding.names[tensor], adapter, value.to(device))
        self.bindings.setdefault(adapter, []).append(binding)

    def _placement(self) -> tuple[torch.device | None, torch.dtype]:
        device, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return device, dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def tensors(self, binding: Binding, adapter: str) -> dict[str, Tensor]:
        """Shared and private tensors of one binding, by the rule's names."""
        out = {} if binding.store is None else dict(binding.store(adapter))
        for tensor, name in binding.names.items():
            out[tensor] = self.get_tensor(name, adapter)
        return out

    def delta(self, adapter: str, x: Tensor) -> Tensor | None:
        """What `adapter` adds to the output for x (..., in); None if it has no rule here."""
        total = None
        for binding in self.bindings.get(adapter, ()):
            tensors = self.tensors(binding, adapter)
            own = next(iter(tensors.values()))
            if own.device != x.device:  # a model spread over devices: the store lives with its first user
                tensors = {name: value.to(x.device) for name, value in tensors.items()}
            y = binding.rule.apply(self._cast_input_dtype(x, own.dtype), tensors, self.training)
            y = binding.place(y)
            total = y if total is None else total + y
        return total

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        if adapter_names is not None:
            return self._mixed(x, result, adapter_names)
        if self.merged:
            return result
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
            delta = self.delta(adapter, x[rows])
            if delta is not None:
                result[rows] += delta.to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense delta of `adapter`, in the layout of the base weight (Conv1D's is transposed)."""
        deltas = [b.dense(self.tensors(b, adapter)) for b in self.bindings[adapter]]
        delta = deltas[0] if len(deltas) == 1 else torch.stack(deltas).sum(0)
        return delta.mT if type(self.get_base_layer()).__name__ == "Conv1D" else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the merged weight in place of the base's, as a new tensor: other visits of a tied weight
        keep theirs.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) or () if n in self.bindings]
        if not names:
            return
        merged = [*self.merged_adapters, *names]
        self._restore()
        base = self.get_base_weight()
        weight = base.float() if not base.dtype.is_floating_point or base.element_size() < 4 else base.clone()
        for name in merged:
            weight = weight + self.get_delta_weight(name).to(weight.device, weight.dtype)
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

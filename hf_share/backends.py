# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A model in the formats of transformers' own quantisers: bitsandbytes' NF4 and int8, and torchao's int8.

Each makes codes of its own from a dense weight W (out, in). So one starts from the merged weight, at whatever
width is chosen, and what it loses comes on top:

| backend    | codes                                        | beside them                     | activations |
| ---------- | -------------------------------------------- | ------------------------------- | ----------- |
| "bnb-nf4"  | 16 quantiles of a normal, 4 bits             | max |W| of each 64 weights      | as they are |
| "bnb-int8" | round(127 W / max |W|), LLM.int8() 2208.07339 | max |W| of each output          | int8, too   |
| "torchao"  | round(W / s), int8                           | s of each output, and a zero    | as they are |

torchao stores a weight of 2, 3 or 4 bits in a byte, too, so int8 is the width that is worth its file there.

What has codes is quantised, or, in a model without codes, every linear weight but the head. bitsandbytes
repacks NF4 at the first forward pass on a CPU with AVX512-BF16, and asserts there that outputs come in 32s
and inputs in whole blocks. Other shapes are left as they are, so that the file works on every machine.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from .elastic import coded
from .errors import ConfigError, Refused
from .filesize import Shaped, file_bytes, tensors_of
from .materialize import materialize
from .sites import Site, backbone, prefix, resolve, sites


NF4_BLOCK, NF4_ROWS = 64, 32
EXTRA = 'torchao is not installed: pip install "hf_share[quant]"'


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A quantiser of transformers: its config for a model in which modules of some names stay as they are,
    the linear modules it takes, and the bytes of its file, from shapes and from the names it quantises.
    """

    config: Callable[[list[str]], Any]
    takes: Callable[[nn.Module], bool]
    size: Callable[[Any, Sequence[str]], int]


@dataclass(frozen=True, kw_only=True)
class Requantised:
    """The quantised model, the names of weights that its backend leaves as they are, and the bytes that its
    file should have.
    """

    model: Any
    left: tuple[str, ...]
    bytes: int


@torch.no_grad()
def requantised(model: nn.Module, backend: Backend) -> Requantised:
    """The active size of `model` with its merged weights quantised anew, on the device it is on.

    Raises:
        ConfigError: if the backend is not installed.
        Refused: if it takes none of the weights.
    """
    here = set(coded(model))
    plain: Any = model.merge_and_unload() if hasattr(model, "peft_config") else materialize(model)
    dot, base, wanted = prefix(plain), backbone(plain), _wanted(plain, here)
    fit = [dot + s.module for s in wanted if s.kind == "linear" and backend.takes(resolve(base, s.module))]
    if not fit:
        kinds = ", ".join(sorted({s.kind for s in wanted})) or "none"
        raise Refused(f"this format takes none of the {len(wanted)} weights ({kinds})")
    linear = [n for n, m in plain.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    found = type(plain).from_pretrained(
        None, config=copy.deepcopy(plain.config), state_dict=plain.state_dict(), dtype=plain.dtype,
        quantization_config=backend.config([name for name in linear if name not in fit]),
        device_map={"": plain.device},
    )  # fmt: skip
    if getattr(plain, "generation_config", None) is not None:
        found.generation_config = plain.generation_config
    # transformers leaves out more, such as what an architecture keeps in fp32
    taken = [name for name in fit if type(found.get_submodule(name).weight) is not nn.Parameter]
    left = tuple(dot + s.name for s in wanted if dot + s.name not in taken)
    return Requantised(model=found.eval(), left=left, bytes=backend.size(plain, taken))


def _wanted(plain: Any, here: set[str]) -> list[Site]:
    """The weights to quantise, whether or not a backend takes them: those that had codes, or all."""
    head = plain.get_output_embeddings() if hasattr(plain, "get_output_embeddings") else None
    if here:
        return [s for s in sites(plain) if s.module in here]
    return [s for s in sites(plain) if resolve(backbone(plain), s.module) is not head]


def _bits(**settings: Any) -> Callable[[list[str]], Any]:
    return lambda left: transformers.BitsAndBytesConfig(llm_int8_skip_modules=left, **settings)


def _is_linear(module: nn.Module) -> bool:
    """What bitsandbytes has a layer for; a subclass of Linear it leaves alone."""
    return type(module) is nn.Linear


def _fits_nf4(module: Any) -> bool:
    shape = (module.out_features % NF4_ROWS, module.in_features % NF4_BLOCK) if _is_linear(module) else (1,)
    return not any(shape)


def _replaced(plain: Any, names: Sequence[str], stored: Callable[[str, Shaped], dict[str, Shaped]]) -> int:
    """Bytes of the file in which `stored` says what stands in place of each weight."""
    tensors = tensors_of(plain)
    for name in names:
        tensors |= stored(name, tensors.pop(f"{name}.weight"))
    return file_bytes(tensors)


def _nf4(name: str, weight: Shaped) -> dict[str, Shaped]:
    dtype, (rows, columns) = weight
    count = rows * columns
    state = {
        "quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": str(dtype).removeprefix("torch."),
        "shape": (rows, columns),
    }  # fmt: skip
    return {
        f"{name}.weight": (torch.uint8, (count // 2, 1)),
        f"{name}.weight.absmax": (torch.float32, (count // NF4_BLOCK,)),
        f"{name}.weight.quant_map": (torch.float32, (16,)),
        f"{name}.weight.quant_state.bitsandbytes__nf4": (torch.uint8, (len(json.dumps(state)),)),
    }


def _int8(name: str, weight: Shaped) -> dict[str, Shaped]:
    return {
        f"{name}.weight": (torch.int8, weight[1]),
        f"{name}.SCB": (torch.float32, weight[1][:1]),
        f"{name}.weight_format": (torch.uint8, ()),
    }


def _torchao() -> tuple[Any, Any, Any]:
    try:
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ConfigError(EXTRA) from None
    return Int8WeightOnlyConfig(version=2), quantize_, flatten_tensor_state_dict


def _torchao_config(left: list[str]) -> Any:
    return transformers.TorchAoConfig(_torchao()[0], modules_to_not_convert=left)


def _torchao_size(plain: Any, names: Sequence[str]) -> int:
    """torchao describes every tensor in the header, so it is asked for that, without values."""
    config, quantize, flatten = _torchao()
    plain_state: Mapping[str, Any] = plain.state_dict()
    state = {name: torch.empty_like(value, device="meta") for name, value in plain_state.items()}
    aliases = state.keys() - tensors_of(plain).keys()
    for name in names:
        weight = state[f"{name}.weight"]
        linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta", dtype=weight.dtype)
        quantize(linear, config)
        state[f"{name}.weight"] = linear.state_dict()["weight"]
    flat, metadata = flatten(state)
    tensors = {name: (value.dtype, tuple(value.shape)) for name, value in flat.items() if name not in aliases}
    return file_bytes(tensors, metadata)


BACKENDS = {
    "bnb-nf4": Backend(
        config=_bits(load_in_4bit=True, bnb_4bit_quant_type="nf4"), takes=_fits_nf4,
        size=lambda plain, names: _replaced(plain, names, _nf4),
    ),
    "bnb-int8": Backend(
        config=_bits(load_in_8bit=True), takes=_is_linear,
        size=lambda plain, names: _replaced(plain, names, _int8),
    ),
    "torchao": Backend(
        config=_torchao_config, takes=lambda module: isinstance(module, nn.Linear), size=_torchao_size
    ),
}  # fmt: skip

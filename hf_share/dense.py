# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The dense weight of a site, or a refusal that says why there is none."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .errors import Refused
from .modules import linear_weight
from .sites import Site, resolve


def dense(base: nn.Module, site: Site) -> Tensor:
    """The dense weight (out, in) of a site; a view where the module has one."""
    module = resolve(base, site.module)
    weight = linear_weight(module)
    packed = not weight.dtype.is_floating_point or tuple(weight.shape) != _whole_shape(site, weight)
    if packed or not is_torchs_own(weight):
        kinds = f"{type(module).__name__}, {type(weight).__name__}"
        raise Refused(
            f"site {site.name!r}: its weight is quantised ({kinds}), and "
            "values are fitted to dense weights. Share the dense model first, then quantise what you load"
        )
    return weight if site.part is None else weight[site.part.rows()]


def is_torchs_own(tensor: Tensor) -> bool:
    """False for a tensor of another library's class: torchao's quantised ones say that they are floats."""
    return type(tensor).__module__.partition(".")[0] == "torch"


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor, or those that one of torchao's holds, by the names transformers writes them under."""
    if is_torchs_own(tensor) or not is_traceable_wrapper_subclass(tensor):  # DTensor is torch's: one tensor
        yield name, tensor
        return
    module, _, attribute = name.rpartition(".")
    for part in tensor.__tensor_flatten__()[0]:
        yield from plain_parts(f"{module}._{attribute}_{part}", getattr(tensor, part))


def _whole_shape(site: Site, weight: Tensor) -> tuple[int, int]:
    rows = site.out_features if site.part is None else weight.shape[0]
    return (rows, site.in_features)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The dense weight of a site, or a refusal that says why there is none."""

from __future__ import annotations

from torch import Tensor, nn

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


def _whole_shape(site: Site, weight: Tensor) -> tuple[int, int]:
    rows = site.out_features if site.part is None else weight.shape[0]
    return (rows, site.in_features)

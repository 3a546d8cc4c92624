# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes of a file once lanes are cut off, without cutting anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .cut import narrow
from .filesize import Shaped
from .sites import Site, backbone, prefix, resolve, sites, weight_kind


def shapes_after(model: nn.Module, gone: Mapping[str, Mapping[str, int]]) -> dict[str, Shaped]:
    """Types and shapes of the tensors that are others once the lanes of `gone` (`cut.cuts`) are gone, by the
    names of a file. Parts of fused weights, which cannot be cut, are passed over.
    """
    index = {s.name: s for s in sites(model, parts=True)}
    found: dict[str, Shaped] = {}
    for name, cut in gone.items():
        if index[name].part is None:
            found |= _shapes(model, index[name], cut)
    return found


def _shapes(model: nn.Module, site: Site, cut: Mapping[str, int]) -> dict[str, Shaped]:
    module: Any = resolve(backbone(model), site.module)
    small, path = narrow(site, cut), f"{prefix(model)}{site.module}"
    out: dict[str, Shaped] = {}
    if isinstance(module._parameters.get("weight"), nn.Parameter):
        shape = small.shape[::-1] if weight_kind(module) == "conv1d" else small.shape
        out[f"{path}.weight"] = (module.weight.dtype, shape)
    if getattr(module, "bias", None) is not None:
        out[f"{path}.bias"] = (module.bias.dtype, (small.out_features,))
    share = module._modules.get("share")
    for binding in share.bindings if share is not None else ():
        for tensor, shape in binding.rule.private(small).items():
            attribute = binding.names[tensor]
            out[f"{path}.share.{attribute}"] = (getattr(share, attribute).dtype, tuple(shape))
    return out

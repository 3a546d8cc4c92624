# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Which of the weights that rules make are kept between forward passes: memory for time.

A weight made of atoms is formed whenever its layer runs. While nothing trains it may be kept:

| mode           | held beside what is stored        | formed                                              |
| -------------- | --------------------------------- | --------------------------------------------------- |
| "streamed"     | the weights of the first n layers | others once a pass, so once a token when generating |
| "materialised" | every weight: no memory is saved  | once                                                |

A kept weight is formed anew as soon as a tensor it came from is written to. Where a gradient is wanted, and
inside `torch.compile`, weights are formed in the graph, but for those of codes, which nothing trains: these
are kept in training, too, once for every width in use. `hf_share.materialize` is the way to a plain model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .elastic import bindings
from .errors import ConfigError, unknown
from .modules import Share


MODES = ("streamed", "materialised")


def form_weights(model: nn.Module, mode: str = "streamed", layers: int = 0) -> nn.Module:
    """Say which formed weights a shared model keeps while nothing trains. Nothing of it is saved.

    Args:
        mode: "streamed", as every model starts, or "materialised".
        layers: in mode "streamed", how many layers of each stack keep theirs, from the first on.

    Example:
        >>> hf_share.form_weights(model, "materialised")  # doctest: +SKIP
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES, ConfigError)
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
        raise ConfigError(f"layers is {layers!r}; a whole number of at least 0 fits")
    if layers and mode == "materialised":
        raise ConfigError("mode 'materialised' keeps the weights of all layers; leave out layers")
    makers = [binding for binding in bindings(model) if binding.rule.kind == "replace"]
    if not makers:
        raise ConfigError("no rule of this model makes a weight, so there is none to keep")
    # a share keeps the sum of what its rules make, an adapter's layer the weight alone
    shares = {id(b): m for m in model.modules() if isinstance(m, Share) for b in m.bindings}
    for binding in makers:
        depth = binding.site.depth
        holder = binding if binding.rule.frozen else shares.get(id(binding), binding)
        holder.keep = mode == "materialised" or (depth is not None and depth < layers)
        holder.forget()
    return model


@contextmanager
def formed_once(model: nn.Module, most: int) -> Iterator[None]:
    """Form the weights of codes once for all passes of a `with` block, where they come to at most `most`
    bytes in fp32.
    """
    codes = [binding for binding in bindings(model) if binding.rule.frozen and not binding.keep]
    size = sum(4 * b.site.in_features * b.site.out_features for b in codes)
    codes = codes if size <= most else []
    for binding in codes:
        binding.keep = True
    try:
        yield
    finally:
        for binding in codes:
            binding.keep = False
            binding.forget()

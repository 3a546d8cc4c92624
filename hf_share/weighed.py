# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Weights and what meets them, for methods that spend a budget where errors are largest.

The error a change of W makes in its output is E |(W - W') x|^2 = |(W - W') R|^2 with R R^T = E[x x^T]: the
squared singular values of W R are what a rank is worth there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .dense import dense
from .errors import Refused
from .importance import second_moments
from .linalg import root
from .sites import Site, backbone


def weighed(
    model: nn.Module, found: Sequence[Site], calibration: Any, instead: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weight (out, in) of each of `found` by its name, and the root R (in, in) of the second moments of
    its inputs by its module; none without calibration. `instead` is what to give where neither can be had.

    Raises:
        Refused: if the model has no values, a weight is quantised, or one of them stands for several.
    """
    base = backbone(model)
    if any(p.is_meta for p in model.parameters()):
        raise Refused(
            "ratio weighs the errors of weights, and this model has no values. Load them, or, if a method "
            f"before this one merges layers, {instead}"
        )
    held = {site.name: dense(base, site) for site in found}
    if len({W.data_ptr() for W in held.values()}) < len(found):
        raise Refused(
            f"ratio counts every weight once, and some of these are tied, by a fold or a loop; {instead}"
        )
    moments = second_moments(model, calibration, list(dict.fromkeys(site.module for site in found)))
    return held, {name: root(moment) for name, moment in moments.items()}

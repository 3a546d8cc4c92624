# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""After training: leave out what a rule only needed to train, and keep the weights it made.

Some rules hold their numbers in a roundabout way because it trains better (MASA's net of coefficients).
`settle` evaluates them once and puts the simpler rule in their place, in the model, its plan and its config.
"""

from __future__ import annotations

from torch import nn

from .errors import Refused
from .swap import swap_rules
from .ties import attached


def settle(model: nn.Module) -> nn.Module:
    """Replace every rule of a shared model that has a simpler form by it, in place, and return the model.

    The weights stay what they are, to rounding. Call it after training: the optimizer of a run still holds
    the tensors that are left out. A model with nothing to settle is returned as it is.

    Example:
        >>> hf_share.settle(model).save_pretrained(path)  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise Refused("this model carries adapters; settle what hf_share.compressed(model) returns")
    if attached(model) is not None:
        swap_rules(model, lambda rule, stored: rule.settled(stored))
    return model

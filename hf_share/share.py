# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs: `share` a model, take the `compressed` model out of a peft model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .config import ShareConfig
from .errors import ConfigError
from .fit import build
from .hub.record import record_plan
from .plan import SharePlan


def share(model: nn.Module, config: ShareConfig | SharePlan, calibration: Any = None) -> nn.Module:
    """Store `model`'s weights once and use them many times, as `config` says. Changes the model in place and
    returns it.

    Args:
        model: any transformers model (or module); it is left as it was if an error is raised.
        config: a method's config, a `ShareConfig`, or a `SharePlan` in source form.
        calibration: batches of tokens for methods that measure the model, see `hf_share.tokenize`.

    Returns:
        The same model. `save_pretrained` writes each shared tensor once, `from_pretrained` loads it exactly.

    Raises:
        ShareError: if the config does not fit the model; nothing has been changed then.

    Example:
        >>> model = hf_share.share(model, hf_share.FoldConfig(remove=[3], group_size=2))  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "this model carries adapters; merge them first, or use hf_share.compressed(peft_model)"
        )
    if isinstance(config, SharePlan):
        plan = config
    elif isinstance(config, ShareConfig):
        plan = config.resolve(model, calibration)
    else:
        raise ConfigError(f"config must be a ShareConfig or a SharePlan, not {type(config).__name__}")
    build(model, plan)
    record_plan(model)
    return model

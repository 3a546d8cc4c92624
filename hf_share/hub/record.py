# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The plan in `config.json`, where `save_pretrained` keeps it and `from_pretrained` finds it."""

from __future__ import annotations

from torch import nn

from ..ties import attached
from .quantizer import SharedConfig


def record_plan(model: nn.Module) -> None:
    """Write the model's plan into its config; nothing for a model stock code can run as it is."""
    record, config = attached(model), getattr(model, "config", None)
    if record is None or config is None or not hasattr(config, "to_dict"):
        return
    if not record.plan.is_plain:
        inner = getattr(getattr(config, "quantization_config", None), "inner", None)
        config.quantization_config = SharedConfig(plan=record.plan, inner=inner)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Where a model is measured and trained."""

from __future__ import annotations

from typing import Any

import torch


def on_device(model: Any) -> Any:
    """The model where it is fast: on this process's accelerator, if there is one and it is not spread over
    several or quantised already.
    """
    from accelerate import PartialState

    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    if torch.accelerator.is_available() and not placed:
        model.to(PartialState().device)
    return model

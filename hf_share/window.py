# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How many tokens a model reads at once."""

from __future__ import annotations

from typing import Any


MEASURED = 256  # tokens of a window of calibration text
READ = 2048  # of one that is scored or trained, where no one says


def context(config: Any) -> int | None:
    """Tokens the model was made for; None where its config names no end."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def window_of(config: Any, most: int) -> int:
    """`most` tokens, or the model's context where that is shorter."""
    return min(most, context(config) or most)

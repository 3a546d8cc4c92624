# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a model decodes: greedy tokens a second after a short prompt, the best of a few runs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from .causal import require_causal


@torch.no_grad()
def decode_speed(
    model: Any, prompt: Tensor | None = None, *, new: int = 64, runs: int = 3
) -> float:
    """Tokens a second of one row.

    Args:
        prompt: token ids of shape (1, length); the model's first token if None.
        new: tokens that are decoded; fewer where the model's context ends before.
    """
    require_causal(model.config, type(model).__name__)
    if prompt is None:
        first = getattr(model.config, "bos_token_id", None)
        prompt = torch.tensor([[first if isinstance(first, int) else 0]])
    prompt = prompt.to(model.device)
    most = getattr(model.config, "max_position_embeddings", None) or new + prompt.shape[1]
    new = max(min(new, most - prompt.shape[1]), 1)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    best = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
        best = max(best, new / max(time.perf_counter() - start, 1e-9))
    return round(best, 1)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Perplexity on disjoint windows.

    nll = - 1/N sum_w sum_{t=2..T} log p(x_{w,t} | x_{w,1..t-1})        N = n (T - 1) predicted tokens

in nats, weighted by token and not by batch, so that neither the batch size nor a short last batch changes
the number. perplexity = exp(nll). Models with different tokenizers compare only by bits per byte, nll N /
(ln 2 * bytes). Disjoint windows give their first tokens little context: numbers are comparable at equal
`context` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What a causal language model pays for a text."""

    nll: float  # nats per predicted token
    tokens: int  # predicted tokens
    bits_per_byte: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700.0))  # beyond 709 exp overflows; a broken model still has a report

    def __str__(self) -> str:
        rate = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits/byte"
        return f"perplexity {self.perplexity:.2f} (nll {self.nll:.4f} nats over {self.tokens} tokens{rate})"


def perplexity(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    batch: int = 8,
    text_bytes: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """Measures `model` on `windows`, int64 of shape (n, context).

    Args:
        batch: windows per forward pass; changes memory and speed, not the result.
        text_bytes: UTF-8 bytes of the predicted tokens, for bits per byte (`train.text.target_bytes`).
    """
    _check(windows, batch)
    nats, tokens = 0.0, windows.shape[0] * (windows.shape[1] - 1)
    was_training = model.training
    model.eval()
    try:
        parts = tqdm(windows.split(batch), desc="perplexity", unit="batch", leave=False, disable=not progress)
        for part in parts:
            nats += _nats(model, part.to(model.device))
    finally:
        model.train(was_training)
    rate = nats / (math.log(2) * text_bytes) if text_bytes else None
    return Perplexity(nll=nats / tokens, tokens=tokens, bits_per_byte=rate)


@torch.inference_mode()
def _nats(model: PreTrainedModel, ids: Tensor) -> float:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (b, T - 1, vocab)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()


def _check(windows: Tensor, batch: int) -> None:
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2 or windows.is_floating_point():
        raise ValueError(
            "windows must be integer token ids of shape (n >= 1, context >= 2), not "
            f"{windows.dtype} of shape {tuple(windows.shape)}"
        )
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one window per forward pass")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Perplexity: on disjoint windows of tokens, and of a text by the usual protocol.

    nll = - 1/N sum_w sum_{t=2..T} log p(x_{w,t} | x_{w,1..t-1})        N = n (T - 1) predicted tokens

in nats, weighted by token and not by batch, so that neither the batch size nor a short last batch changes
the number. perplexity = exp(nll). Models with different tokenizers compare only by bits per byte, nll N /
(ln 2 * bytes). Disjoint windows give their first tokens little context: numbers are comparable at equal
`context` only.

The usual protocol for WikiText-2 (`text_perplexity`, `wikitext`): the lines of the test split are joined by a
blank line and tokenised as one text, with the special tokens the tokenizer puts round a text. A window of T
tokens moves on by a *stride* of S <= T; each token is predicted in the first window that holds it, so that
for S < T it sees at least T - S tokens. With S = T, the default, windows are disjoint and each one's first
token is not predicted. The last window may be shorter; nothing is left out. T is the model's context, but at
most 2048.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..window import READ, context, window_of
from .causal import require_causal, require_length


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What a causal language model pays for a text."""

    nll: float  # nats per predicted token
    tokens: int  # predicted tokens
    bits_per_byte: float | None = None
    window: int | None = None  # of a text: tokens a window holds, and by how many it moves on
    stride: int | None = None

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


def text_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Perplexity:
    """What `model` pays for one text, by the usual protocol.

    Args:
        text: the whole of it; `wikitext(lines)` makes one of WikiText's lines.
        window: tokens of a window; the model's context, at most 2048, if None.
        stride: tokens by which a window moves on; `window`, so that windows are disjoint, if None.

    Example:
        >>> print(text_perplexity(model, tokenizer, wikitext(lines)))  # doctest: +SKIP
    """
    require_causal(model.config, type(model).__name__)
    if window is not None:
        require_length(model, window, "window")
        _warn_beyond(model, window)
    window = window_of(model.config, READ) if window is None else window
    stride = window if stride is None else stride
    if not 1 <= stride <= window or window < 2:
        raise ValueError(f"stride={stride}, window={window}: 1 <= stride <= window and window >= 2 fit")
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens has none to predict")
    nats, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        parts = list(_spans(len(ids), window, stride, batch))
        for part in tqdm(parts, desc="perplexity", unit="batch", leave=False, disable=not progress):
            rows = torch.stack([ids[begin:end] for begin, end, _ in part]).to(model.device)
            fresh = part[0][2]
            nats += _nats(model, rows, fresh)
            tokens += len(part) * fresh
    finally:
        model.train(was_training)
    rate = nats / tokens * len(ids) / (math.log(2) * len(text.encode()))
    return Perplexity(nll=nats / tokens, tokens=tokens, bits_per_byte=rate, window=window, stride=stride)


def _warn_beyond(model: PreTrainedModel, window: int) -> None:
    most = context(model.config)
    if most is not None and window > most:
        warnings.warn(
            f"window={window}: the model was made for {most} tokens, and numbers beyond say little",
            stacklevel=3,
        )


def wikitext(lines: Iterable[str]) -> str:
    """The text the protocol scores: the data set's rows joined by a blank line, where a row without words is
    empty and every other keeps its line end.

    Example:
        >>> wikitext([" = Title = \n", " \n", " Words . \n"])
        ' = Title = \n\n\n\n\n Words . \n'
    """
    return "\n\n".join(line if line.strip() else "" for line in lines)


def _spans(count: int, window: int, stride: int, batch: int) -> Iterator[list[tuple[int, int, int]]]:
    """Batches of (first token, end, how many of the last are predicted) of equal lengths."""
    spans, done = [], 1  # the first token of a text has no context
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        fresh = end - max(done, begin + 1)
        if fresh > 0:
            spans.append((begin, end, fresh))
        done = end
        if end == count:
            break
    for _, alike in groupby(spans, key=lambda span: (span[1] - span[0], span[2])):
        rows = list(alike)
        yield from (rows[i : i + batch] for i in range(0, len(rows), batch))


@torch.inference_mode()
def _nats(model: PreTrainedModel, ids: Tensor, fresh: int | None = None) -> float:
    """Nats of the last `fresh` tokens of each row; of all but the first if None."""
    fresh = ids.shape[1] - 1 if fresh is None else fresh
    logits = model(input_ids=ids, use_cache=False).logits[:, -fresh - 1 : -1]  # (b, fresh, vocab)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, -fresh:].flatten(), reduction="sum").item()


def _check(windows: Tensor, batch: int) -> None:
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2 or windows.is_floating_point():
        raise ValueError(
            "windows must be integer token ids of shape (n >= 1, context >= 2), not "
            f"{windows.dtype} of shape {tuple(windows.shape)}"
        )
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one window per forward pass")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The split that a subnet is chosen on and the split it is reported on have no text in common.

A number from the text a search chose on is not a result. No run of w tokens of the search split may stand in
the report split, wherever it begins in either, w the largest power of two up to half a window. Fewer tokens
in a row may be common phrases. Runs are compared by a 64-bit hash that doubles its length in log2(w) steps
over all offsets at once,

    h_2n(i) = mix(h_n(i) * C + h_n(i + n))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..importance import batches


LEAST = 8  # tokens of a run: fewer are ordinary phrases
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def windows_of(model: nn.Module, data: Sequence[Any], name: str) -> Tensor:
    """Token windows (n, length) on the model's device, from such windows or from texts."""
    if data is None or not len(data):
        raise ConfigError(f"the {name} split is empty; give texts, or token windows of shape (n, length)")
    found = [batch["input_ids"] for batch in batches(model, data)]
    lengths = {ids.shape[-1] for ids in found}
    if len(lengths) > 1:
        raise ConfigError(
            f"the {name} split has windows of {min(lengths)} to {max(lengths)} tokens; one length is needed, "
            "as hf_share.tokenize(tokenizer, texts, length=256) gives"
        )
    windows = torch.cat(found)
    if not windows.numel() or windows.shape[1] < 2:
        raise ConfigError(
            f"the {name} split is empty: windows of shape {tuple(windows.shape)} predict nothing; a window "
            "needs 2 tokens or more"
        )
    return windows


def require_disjoint(search: Tensor, report: Tensor) -> None:
    """Raise if a run of `run_length` tokens of the search windows stands in the report windows, too."""
    length = run_length(search, report)
    a, b = (w.cpu().numpy().astype(np.uint64).ravel() for w in (search, report))
    found = np.flatnonzero(_stand_in(_hashes(a, length), np.sort(_hashes(b, length))))
    if len(found):
        shared = int(np.minimum(np.diff(found, append=a.size), length).sum())
        raise ConfigError(
            f"the search and the report split overlap: {shared} of {a.size} tokens of the search split stand "
            f"in the report split in runs of {length} tokens or more, the first in window "
            f"{found[0] // search.shape[1]}; a subnet is reported on text that it was not chosen on. Leave "
            "such documents out of one of them; wider windows let longer phrases recur"
        )


def run_length(search: Tensor, report: Tensor) -> int:
    """Tokens of the runs that are compared."""
    shortest = min(search.shape[1], report.shape[1])
    most = min(max(shortest // 2, LEAST), shortest)
    return 1 << (most.bit_length() - 1)


def _stand_in(values: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Which of the values are among those that rise; quicker than `np.isin`, which sorts both."""
    return rising[np.minimum(np.searchsorted(rising, values), len(rising) - 1)] == values


def _hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """A hash of the run of `length` tokens, a power of two, at every offset."""
    found, done = _mix(tokens), 1
    while done < length:
        found, done = _mix(found[:-done] * _FACTOR + found[done:]), 2 * done
    return found


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(29))

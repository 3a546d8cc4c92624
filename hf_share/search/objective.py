# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How far a subnet is from the full model: the mean over tokens of KL(p || q_c), in nats.

    f(c) = 1/N sum_t sum_v p_t(v) (log p_t(v) - log q_c,t(v))

p is a teacher's prediction or that of the largest subnet, q_c the candidate's. It needs no labels, and it
moves less between texts than the loss does: what the full model finds hard cancels out. The predictions p are
kept while they are small and made again for each batch otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formed import formed_once
from ..hashes import add, new
from ..importance import evaluating
from .space import Candidate


KEPT_BYTES = 2**31


class Divergence:
    """`divergence(candidate, share)`: KL to the target on the first `share` of the windows.

    Args:
        apply: sets a candidate on `model`.
        full: the candidate that stands for the target where there is no teacher.
        windows: token ids (n, length).
    """

    def __init__(
        self,
        model: nn.Module,
        apply: Callable[[Candidate], object],
        full: Candidate,
        windows: Tensor,
        *,
        teacher: nn.Module | None = None,
        batch: int = 8,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.model, self.apply, self.full, self.teacher = model, apply, full, teacher
        self.windows, self.batch, self.kept_bytes = windows, batch, kept_bytes
        self._kept: dict[int, Tensor] = {}
        self._active: Candidate | None = None  # within one call: between two anyone may set another

    @torch.no_grad()
    def __call__(self, candidate: Candidate, share: float = 1.0) -> float:
        windows = self.windows[: max(math.ceil(share * len(self.windows) - 1e-9), 1)]
        self._active, total = None, 0.0
        with formed_once(self.model, self.kept_bytes):
            for start in range(0, len(windows), self.batch):
                ids = windows[start : start + self.batch]
                target = self._target(start, len(ids))
                self._set(candidate)
                found = _log_probabilities(self.model, ids)
                target = target.to(found.device)
                total += float(F.kl_div(found, target, reduction="sum", log_target=True))
        return max(total / windows.numel(), 0.0)

    def _set(self, candidate: Candidate) -> None:
        if candidate != self._active:
            self.apply(candidate)
            self._active = candidate

    def _target(self, start: int, count: int) -> Tensor:
        kept = self._kept.get(start)
        if kept is not None and len(kept) >= count:
            return kept[:count]
        ids = self.windows[start : start + self.batch]
        if self.teacher is None:
            self._set(self.full)
        made = _log_probabilities(self.model if self.teacher is None else self.teacher, ids)
        if made.numel() * made.element_size() * math.ceil(len(self.windows) / self.batch) <= self.kept_bytes:
            self._kept[start] = made
        return made[:count]


def _log_probabilities(model: Any, ids: Tensor) -> Tensor:
    with evaluating(model):
        logits = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return F.log_softmax(logits.float(), dim=-1)


def fingerprint(windows: Tensor, *models: nn.Module | None) -> str:
    """A short hash of the windows and of every value of the models, whatever subnet is active in them."""
    digest = new()
    add(digest, "windows", windows)
    for model in models:
        digest.update(type(model).__name__.encode())
        if model is None:
            continue
        digest.update(repr(sorted(_settings(model).items(), key=lambda pair: pair[0])).encode())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            add(digest, name, tensor)
    return digest.hexdigest()


def text_hash(windows: Tensor) -> str:
    """A short hash of token windows, by which a split is known again."""
    digest = new()
    add(digest, "windows", windows.long())
    return digest.hexdigest()


def _settings(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    found = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}  # type: ignore[union-attr]
    return {k: v for k, v in found.items() if k != "quantization_config" and not k.startswith("_")}

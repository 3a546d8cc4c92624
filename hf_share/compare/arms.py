# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters that comparisons set beside each other: the scale of a LoRA-like update is 2, dropout is 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import LoraConfig, PeftConfig, VBLoRAConfig, VeraConfig

from ..methods.mos import MosConfig
from ..methods.share_lora import ShareLoraConfig


@dataclass(frozen=True)
class Arm:
    """One way to adapt: its budget, its config, and the learning rate its paper or library trains with."""

    budget: str
    rate: float
    config: PeftConfig | None  # None trains the whole model


class Makers:
    """Arms of one model; `every` is what their configs have in common: which weights, which task."""

    def __init__(self, **every: Any):
        self._lora = partial(LoraConfig, **every)
        self._share = partial(ShareLoraConfig, share="A", **every)
        self._mos = partial(MosConfig, **every)
        self._vera = partial(VeraConfig, projection_prng_key=0, **every)
        vectors = {"num_vectors": 256, "vector_length": 16, "save_only_topk_weights": True}
        self._vblora = partial(VBLoRAConfig, **vectors, **every)

    def lora(self, budget: str, r: int) -> Arm:
        return Arm(budget, 2e-4, self._lora(r=r, lora_alpha=2 * r))

    def share(self, budget: str, r: int) -> Arm:
        return Arm(budget, 2e-4, self._share(r=r, lora_alpha=2 * r))

    def mos(self, budget: str, equivalent: int, private: int, r: int) -> Arm:
        ranks = {"equivalent_rank": equivalent, "private_rank": private}
        return Arm(budget, 2e-4, self._mos(r=r, lora_alpha=2 * r, **ranks))

    def vera(self, budget: str, r: int) -> Arm:
        return Arm(budget, 4e-3, self._vera(r=r))

    def vblora(self, budget: str, r: int) -> Arm:
        return Arm(budget, 1e-3, self._vblora(r=r))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation: a shared model learns from the model it was made of.

    L = (1 - w) CE(labels, student) + w T^2 KL(teacher || student) + b sum over last n layers of MSE(h, h')

with both distributions at temperature T, all averaged over predicted tokens; h and h' are the hidden states
of student and teacher, and the MSE is also averaged over their width. The teacher is frozen and runs once for
each batch. This is forward KL, which the recursive-transformers work found best of four; w = b = 0 is plain
training and needs no teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from ..errors import ConfigError
from .cards import OwnCard


def distillation_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    weight: float,
    temperature: float,
    count: Any = None,
) -> Tensor:
    """The loss above from logits.

    Args:
        student, teacher: logits (batch, length, vocabulary); position t predicts token t + 1.
        labels: token ids (batch, length), -100 where nothing is to be learnt.
        count: number of tokens to average over, if not those of this batch (gradient accumulation).
    """
    targets = labels[:, 1:]
    kept = targets != -100
    count = kept.sum() if count is None else count
    own = student[:, :-1].float()[kept]  # (tokens, vocabulary)
    loss = own.new_zeros(())
    if weight < 1.0:
        loss = (1.0 - weight) * F.cross_entropy(own, targets[kept], reduction="sum")
    if teacher is not None and weight > 0.0:
        theirs = F.log_softmax(teacher[:, :-1].float()[kept] / temperature, dim=-1)
        ours = F.log_softmax(own / temperature, dim=-1)
        loss = loss + weight * temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="sum")
    return loss / count


def tail_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor, layers: int, count: Any = None
) -> Tensor:
    """Sum over the last `layers` hidden states of the mean squared difference, over predicted tokens and
    width.

    Args:
        student, teacher: what `output_hidden_states=True` gives, of one width; depths may differ, since
            layers are counted from the end. The last entry is what the head reads, after the final norm;
            those before it are what enters each layer.
        labels, count: as in `distillation_loss`; the state at position t predicts token t + 1.
    """
    depth = min(len(student), len(teacher)) - 1
    if not 1 <= layers <= depth:
        raise ConfigError(f"tail_layers={layers}; student and teacher have 1 to {depth} layers in common")
    if student[-1].shape != teacher[-1].shape:
        raise ConfigError(
            f"hidden states of the student {tuple(student[-1].shape)} and of the teacher "
            f"{tuple(teacher[-1].shape)} differ in width; only layers of one width can be compared"
        )
    kept = labels[:, 1:] != -100
    count = kept.sum() if count is None else count
    total = student[-1].new_zeros((), dtype=torch.float32)
    for own, theirs in zip(student[-layers:], teacher[-layers:], strict=True):
        error = own[:, :-1][kept].float() - theirs[:, :-1][kept].float().to(own.device)  # (tokens, width)
        total = total + error.square().sum() / error.shape[-1]
    return total / count


class DistillTrainer(OwnCard, Trainer):
    """`transformers.Trainer` with a teacher. Without one it trains on cross-entropy alone.

    Args:
        teacher: a frozen model with the same vocabulary; it is put on the student's device.
        kd_weight: w of the loss, 0 to 1.
        temperature: T of the loss.
        tail_weight: b of the loss, 0 or more.
        tail_layers: n of the loss.
    """

    def __init__(
        self, *args: Any, teacher: nn.Module | None = None, kd_weight: float = 0.5, temperature: float = 1.0,
        tail_weight: float = 0.0, tail_layers: int = 1, **kwargs: Any,
    ):  # fmt: skip
        if not 0.0 <= kd_weight <= 1.0 or temperature <= 0.0:
            raise ConfigError(
                f"kd_weight={kd_weight} must lie in [0, 1] and temperature={temperature} above 0"
            )
        if not 0.0 <= tail_weight < math.inf or tail_layers < 1:
            raise ConfigError(
                f"tail_weight={tail_weight} must be finite and not below 0, tail_layers={tail_layers} above 0"
            )
        if tail_weight and teacher is None:
            raise ConfigError(f"tail_weight={tail_weight} compares hidden states with a teacher's; give one")
        super().__init__(*args, **kwargs)
        self.kd_weight = kd_weight if teacher is not None else 0.0
        self.temperature = temperature
        self.tail_weight, self.tail_layers = tail_weight, tail_layers
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.model_accepts_loss_kwargs = True  # we average over the tokens of the whole step ourselves

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        features = {k: v for k, v in inputs.items() if k != "labels"}
        loss_of = self.loss_of if model.training else self.evaluated
        loss, outputs = loss_of(model, features, inputs["labels"], num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def evaluated(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        """What the best step is chosen by: cross-entropy alone, which does not depend on the teacher."""
        outputs = model(**features)
        return distillation_loss(outputs.logits, None, labels, 0.0, self.temperature, count), outputs

    def loss_of(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        """The loss of one batch, averaged over `count` tokens, and the outputs it is of."""
        if self.tail_weight:
            features["output_hidden_states"] = True
        outputs = model(**features)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(**features)
        logits = None if teacher is None else teacher.logits
        loss = distillation_loss(
            outputs.logits, logits, labels, self.kd_weight, self.temperature, count
        )
        if self.tail_weight and teacher is not None:
            states = (outputs.hidden_states, teacher.hidden_states)
            loss = loss + self.tail_weight * tail_loss(*states, labels, self.tail_layers, count)
        return loss, outputs

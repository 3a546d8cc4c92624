# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation: a shared model learns from the model it was made of.

    L = (1 - w) CE(labels, student) + w T^2 KL(teacher || student)        averaged over predicted tokens

with both distributions at temperature T. The teacher is frozen and runs once for each batch. This is forward
KL, which the recursive-transformers work found best of four; w = 0 is plain training and needs no teacher.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..errors import ConfigError


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


class DistillTrainer(Trainer):
    """`transformers.Trainer` with a teacher. Without one it trains on cross-entropy alone.

    Args:
        teacher: a frozen model with the same vocabulary; it is put on the student's device.
        kd_weight: w of the loss, 0 to 1.
        temperature: T of the loss.
    """

    def __init__(
        self, *args: Any, teacher: nn.Module | None = None, kd_weight: float = 0.5, temperature: float = 1.0,
        **kwargs: Any,
    ):  # fmt: skip
        if not 0.0 <= kd_weight <= 1.0 or temperature <= 0.0:
            raise ConfigError(
                f"kd_weight={kd_weight} must lie in [0, 1] and temperature={temperature} above 0"
            )
        super().__init__(*args, **kwargs)
        self.kd_weight = kd_weight if teacher is not None else 0.0
        self.temperature = temperature
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.model_accepts_loss_kwargs = True  # we average over the tokens of the whole step ourselves

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]
        features = {k: v for k, v in inputs.items() if k != "labels"}
        outputs = model(**features)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(**features).logits
        loss = distillation_loss(
            outputs.logits, teacher, labels, self.kd_weight, self.temperature, num_items_in_batch
        )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class StopAfter(TrainerCallback):
    """Ends training after a number of minutes on the clock. What was learnt until then is kept."""

    def __init__(self, minutes: float):
        self.seconds = 60.0 * minutes
        self.start = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.start > self.seconds:
            control.should_training_stop = True

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation: a shared model learns from the model it was made of.

    L = (1 - w) CE(labels, student) + w T^2 D(teacher || student)
        + b sum over last n layers of MSE(h, h') + g mean over all layers of MSE(h, h')

with both distributions at temperature T, all averaged over predicted tokens; h and h' are hidden states of
student and teacher, and the MSE is also averaged over their width. The last layers are counted from the
end; all layers are paired by depth, layer i of n with the teacher's at i L / n. The teacher is frozen and
runs once for each batch, or is read from a cache (`teacher_cache.py`). D is forward KL, which the
recursive-transformers work found best of four, or another divergence (`divergences.py`); w = b = g = 0 is
plain training and needs no teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from ..errors import ConfigError
from ..guards import ready_to_train
from .cards import OwnCard
from .divergences import KL, Divergence
from .replace import Replacement
from .teacher_cache import TeacherCache, TopLogits


def distillation_loss(
    student: Tensor,
    teacher: Tensor | TopLogits | None,
    labels: Tensor,
    weight: float,
    temperature: float,
    count: Any = None,
    divergence: Divergence = KL,
) -> Tensor:
    """The loss above from logits.

    Args:
        student, teacher: logits (batch, length, vocabulary); position t predicts token t + 1. Of the teacher
            they may be the largest ones, made at this temperature.
        labels: token ids (batch, length), -100 where nothing is to be learnt.
        count: number of tokens to average over, if not those of this batch (gradient accumulation).
        divergence: D, summed over tokens.
    """
    targets = labels[:, 1:]
    kept = targets != -100
    count = kept.sum() if count is None else count
    own = student[:, :-1].float()[kept]  # (tokens, vocabulary)
    loss = own.new_zeros(())
    if weight < 1.0:
        loss = (1.0 - weight) * F.cross_entropy(own, targets[kept], reduction="sum")
    if teacher is not None and weight > 0.0:
        ours = F.log_softmax(own / temperature, dim=-1)
        if isinstance(teacher, TopLogits):
            far = teacher.divergence(ours, kept)  # forward KL, of which it holds a part
        else:
            theirs = teacher[:, :-1].float()[kept].to(ours.device)
            far = divergence(ours, F.log_softmax(theirs / temperature, dim=-1))
        loss = loss + weight * temperature**2 * far
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
    return _squares(list(zip(student[-layers:], teacher[-layers:], strict=True)), labels, count)


def hidden_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor, count: Any = None
) -> Tensor:
    """Mean over the student's layers of the mean squared difference to the teacher's state at the same part
    of its depth.

    Args:
        student, teacher, labels, count: as in `tail_loss`.
    """
    n, depth = len(student) - 1, len(teacher) - 1
    places = [*(min(round(i * depth / n), depth - 1) for i in range(1, n)), depth]
    pairs = [(own, teacher[place]) for own, place in zip(student[1:], places, strict=True)]
    return _squares(pairs, labels, count) / n


def _squares(pairs: Sequence[tuple[Tensor, Tensor]], labels: Tensor, count: Any) -> Tensor:
    """Sum over pairs of states of the mean squared difference, over predicted tokens and width."""
    one, other = pairs[-1]
    if one.shape != other.shape:
        raise ConfigError(
            f"hidden states of the student {tuple(one.shape)} and of the teacher {tuple(other.shape)} differ "
            "in width; only layers of one width can be compared"
        )
    kept = labels[:, 1:] != -100
    count = kept.sum() if count is None else count
    total = one.new_zeros((), dtype=torch.float32)
    for own, theirs in pairs:
        error = own[:, :-1][kept].float() - theirs[:, :-1][kept].float().to(own.device)  # (tokens, width)
        total = total + error.square().sum() / error.shape[-1]
    return total / count


def _require_one_vocabulary(student: Any, teacher: Any) -> None:
    sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ConfigError(
            f"the teacher has a vocabulary of {sizes[1]} tokens and the student one of {sizes[0]}; what a "
            "teacher says of tokens is for a student with the same ones"
        )


def require_weights(
    kd_weight: float, temperature: float, tail_weight: float = 0.0, tail_layers: int = 1,
    hidden_weight: float = 0.0,
) -> None:  # fmt: skip
    """Raise `ConfigError` unless these are numbers of the loss above."""
    if not 0.0 <= kd_weight <= 1.0 or temperature <= 0.0:
        raise ConfigError(
            f"kd_weight={kd_weight} must lie in [0, 1] and temperature={temperature} above 0"
        )
    if not 0.0 <= tail_weight < math.inf or tail_layers < 1:
        raise ConfigError(
            f"tail_weight={tail_weight} must be finite and not below 0, tail_layers={tail_layers} above 0"
        )
    if not 0.0 <= hidden_weight < math.inf:
        raise ConfigError(f"hidden_weight={hidden_weight} must be finite and not below 0")


class DistillTrainer(OwnCard, Trainer):
    """`transformers.Trainer` with a teacher. Without one it trains on cross-entropy alone.

    Args:
        teacher: a frozen model with the same vocabulary; it is put on the student's device.
        kd_weight: w of the loss, 0 to 1.
        temperature: T of the loss.
        tail_weight: b of the loss, 0 or more.
        tail_layers: n of the loss.
        divergence: D of the loss.
        hidden_weight: g of the loss, 0 or more.
        replacement: layers of the student that the teacher's stand in for, step by step.
        cache: where the teacher's logits are kept; rows of the training set then name their `index`.
    """

    def __init__(
        self, *args: Any, teacher: nn.Module | None = None, kd_weight: float = 0.5, temperature: float = 1.0,
        tail_weight: float = 0.0, tail_layers: int = 1, hidden_weight: float = 0.0,
        replacement: Replacement | None = None, cache: TeacherCache | None = None,
        divergence: Divergence = KL, **kwargs: Any,
    ):  # fmt: skip
        require_weights(kd_weight, temperature, tail_weight, tail_layers, hidden_weight)
        for name, value in (("tail_weight", tail_weight), ("hidden_weight", hidden_weight)):
            if value and teacher is None:
                raise ConfigError(f"{name}={value} compares hidden states with a teacher's; give one")
            if value and cache is not None:
                raise ConfigError(f"{name}={value} needs the teacher's hidden states; a cache has its logits")
        _require_one_vocabulary(kwargs.get("model", args[0] if args else None), teacher)
        if cache is not None and divergence != KL:
            raise ConfigError("a cache of the teacher's logits goes with forward KL; leave out divergence")
        super().__init__(*args, **kwargs)
        ready_to_train(self.model)
        self.kd_weight = kd_weight if teacher is not None else 0.0
        self.temperature, self.divergence = temperature, divergence
        self.tail_weight, self.tail_layers, self.hidden_weight = tail_weight, tail_layers, hidden_weight
        self.replacement, self.cache = replacement, cache
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.model_accepts_loss_kwargs = True  # we average over the tokens of the whole step ourselves

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Layers that stand in do so through the backward pass, which may run layers and hooks again."""
        layers = nullcontext() if self.replacement is None else self.replacement.at(self.state.global_step)
        with layers:
            return super().training_step(*args, **kwargs)

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
        index = features.pop("index", None)
        if self.tail_weight or self.hidden_weight:
            features["output_hidden_states"] = True
        if self.replacement is not None:
            features["use_cache"] = False  # two layers would write to one place in it
        outputs = model(**features)
        logits, states = self._taught(features, index)
        loss = distillation_loss(
            outputs.logits, logits, labels, self.kd_weight, self.temperature, count, self.divergence
        )
        if self.tail_weight:
            tail = tail_loss(outputs.hidden_states, states, labels, self.tail_layers, count)
            loss = loss + self.tail_weight * tail
        if self.hidden_weight:
            hidden = hidden_loss(outputs.hidden_states, states, labels, count)
            loss = loss + self.hidden_weight * hidden
        return loss, outputs

    @torch.no_grad()
    def _taught(self, features: dict[str, Any], index: Tensor | None) -> tuple[Any, Any]:
        """The teacher's logits and hidden states."""
        if self.teacher is None:
            return None, None
        if self.cache is not None and index is not None:
            teacher = self.teacher
            return self.cache.get(index.tolist(), lambda: teacher(**features).logits), None
        found = self.teacher(**features)
        return found.logits, found.hidden_states

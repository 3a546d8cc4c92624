# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Healing: a little training that gives a shared model back most of what sharing cost.

The shared weights stay as they are; a ShareLoRA adapter, private for each visit, learns what the visits had
in their own weights, from text and from the source model (see `distill`), and with `norms` their norms learn
too. The result is one compressed
checkpoint: `compressed` puts the adapter's rules into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments, set_seed

from ..methods.share_lora import ShareLoraConfig
from ..share import compressed
from ..sites import resolve, stacks
from .distill import DistillTrainer, StopAfter
from .settings import Settings
from .text import Windows


@dataclass(frozen=True, kw_only=True)
class HealConfig(Settings):
    """Numbers of a healing run. Lengths are in tokens, times in minutes."""

    model: str = ""  # a shared checkpoint
    teacher: str = ""  # the model it was made of; empty: text alone
    text: str = "stdlib"  # what `load_text` takes
    column: str = "text"
    output: str = "runs/heal"

    r: int = 16
    share: str = "A"
    kd_weight: float = 0.5
    temperature: float = 1.0
    tail_weight: float = 0.0  # of the last layers' hidden states against the teacher's
    tail_layers: int = 1
    norms: bool = False  # train the layers' norms too

    context: int = 256
    steps: int = 300
    batch: int = 8
    learning_rate: float = 3e-3
    warmup_steps: int = 15
    minutes: float = 0.0  # stop after so long; 0: never
    seed: int = 0

    MAY_BE_ZERO = ("seed", "warmup_steps")


def heal(
    model: PreTrainedModel,
    windows: Tensor,
    teacher: nn.Module | None = None,
    config: HealConfig | None = None,
) -> nn.Module:
    """Heal a shared model with a ShareLoRA adapter on every linear weight, and return it compressed.

    Args:
        model: a model `share` or `from_pretrained` gave; it is taken over, use what this returns.
        windows: token ids to train on, int64 of shape (n, context).
        teacher: the source model, for distillation; the text alone teaches if None.

    Example:
        >>> healed = heal(shared, windows(tokenizer, text.train, 256), teacher=source)  # doctest: +SKIP
    """
    config = config or HealConfig()
    set_seed(config.seed)
    adapter = ShareLoraConfig(
        r=config.r,
        lora_alpha=config.r,
        share=config.share,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    student = get_peft_model(model, adapter)
    if config.norms:
        train_norms(model)
    trainer = DistillTrainer(
        model=student,
        args=training_arguments(config),
        train_dataset=Windows(windows),
        teacher=teacher,
        kd_weight=config.kd_weight,
        temperature=config.temperature,
        tail_weight=config.tail_weight,
        tail_layers=config.tail_layers,
        callbacks=[StopAfter(config.minutes)] if config.minutes else None,
    )
    trainer.train()
    return compressed(trainer.accelerator.unwrap_model(trainer.model)).eval()


def train_norms(model: nn.Module) -> None:
    """Let the norms of every layer learn. They are the base's, so `compressed` keeps what they learnt."""
    for stack in stacks(model).values():
        for layer in stack.layers:
            for role in stack.norms:
                for parameter in resolve(layer, role).parameters():
                    parameter.requires_grad_(True)


def training_arguments(config: HealConfig) -> Any:
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=0.0,
        seed=config.seed,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the short trainings of this folder have in common: their numbers, and what they ask of
`transformers.Trainer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """Numbers of a short training on text. Lengths are in tokens, times in minutes."""

    model: str = ""
    text: str = "stdlib"  # what `load_text` takes
    column: str = "text"
    output: str = "runs/run"

    context: int = 256
    steps: int = 300
    batch: int = 8
    schedule: str = "linear"
    learning_rate: float = 3e-3
    warmup_steps: int = 15
    minutes: float = 0.0  # stop after so long; 0: never
    seed: int = 0

    MAY_BE_ZERO = ("seed", "warmup_steps")


def training_arguments(config: RunConfig) -> TrainingArguments:
    """What a run's numbers are for Trainer; nothing is saved on the way."""
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=0.0,
        seed=config.seed,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),  # or several processes would not find each other
    )

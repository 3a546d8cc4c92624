# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the short trainings of this folder ask of `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments


def training_arguments(config: Any) -> TrainingArguments:
    """Arguments from settings with `output`, `steps`, `batch`, `learning_rate`, `warmup_steps` and `seed`."""
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type=getattr(config, "schedule", "linear"),
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

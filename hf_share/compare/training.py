# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One short training run, the same for every arm: AdamW without decay, warm-up over 5 % of the steps, then
linearly to zero.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..hub.outline import file_bytes


def train(model: nn.Module, rows: Dataset, s: Mapping[str, Any], collator: Any = None) -> float:
    """Train in place with `steps`, `batch`, `rate` and `seed` of `s`; the processor seconds a step took.

    A worker has one thread, so these are what the step takes on an idle machine, whatever runs beside it.
    """
    arguments = TrainingArguments(
        output_dir=str(Path(tempfile.gettempdir()) / "hf_share-compare"),
        max_steps=s["steps"],
        per_device_train_batch_size=s["batch"],
        learning_rate=s["rate"],
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(0.05 * s["steps"]),
        seed=s["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
    )
    optimizer = torch.optim.AdamW(_groups(model, s["rate"]), weight_decay=0.0)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, optimizers=(optimizer, None)
    )
    trainer.remove_callback(PrinterCallback)
    start = time.process_time()
    trainer.train()
    return (time.process_time() - start) / s["steps"]


def _groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """VB-LoRA's logits learn ten times as fast as its vectors, as its authors train it; the rest alike."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    logits = [p for n, p in named if "vblora_logits" in n]
    rest = [p for n, p in named if "vblora_logits" not in n]
    return [{"params": rest, "lr": rate}] + ([{"params": logits, "lr": 10.0 * rate}] if logits else [])


def saved_bytes(model: Any) -> int:
    """Bytes of the tensors that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return file_bytes(Path(folder))

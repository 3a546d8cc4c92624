# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with an adapter of any method: the base stays as it is, the adapter learns from text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, Trainer, set_seed

from ..config import ShareConfig
from ..errors import ConfigError
from .arguments import RunConfig, training_arguments
from .distill import StopAfter
from .text import Windows


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Numbers of a fine-tuning run. `model` is the base."""

    adapter: dict = field(default_factory=lambda: {"method": "share_lora"})  # a method's config
    output: str = "runs/finetune"
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapter_config()

    def adapter_config(self) -> ShareConfig:
        """The config that `adapter` spells out, checked."""
        if "method" not in self.adapter:
            raise ConfigError("adapter names a method and its numbers: {method: mos, r: 8}")
        return ShareConfig(**{"task_type": "CAUSAL_LM", **self.adapter})


def finetune(
    model: PreTrainedModel, windows: Tensor, config: FinetuneConfig | None = None, **trainer: Any
) -> PeftModel:
    """Train an adapter on a causal language model and return the peft model.

    Args:
        model: the base; it is wrapped, use what this returns.
        windows: token ids to train on, int64 of shape (n, context).
        trainer: more for `transformers.Trainer` (callbacks, an evaluation set).

    Example:
        >>> adapted = finetune(model, windows(tokenizer, text.train, 256))  # doctest: +SKIP
    """
    config = config or FinetuneConfig()
    set_seed(config.seed)
    cached = getattr(model.config, "use_cache", True)
    adapted = get_peft_model(model, config.adapter_config())
    stop = [StopAfter(config.minutes)] if config.minutes else []
    callbacks = [*stop, *trainer.pop("callbacks", ())]
    Trainer(
        model=adapted,
        args=training_arguments(config),
        train_dataset=Windows(windows),
        callbacks=callbacks,
        **trainer,
    ).train()
    adapted.config.use_cache = cached  # Trainer turned it off
    return adapted.eval()

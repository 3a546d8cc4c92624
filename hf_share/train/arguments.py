# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of this folder have in common: their numbers, and what they ask of
`transformers.Trainer`.

The best step is the one with the lowest loss on validation text, which is cut off the training text: it is
neither trained on nor the text that results are measured on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType

from ..errors import ConfigError, unknown
from ..files import CONFIGS
from .settings import Settings


SCHEDULES = [kind.value for kind in SchedulerType]
# transformers has called it both, and warns of the older name
CHECKPOINTING = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
SETTINGS = "settings.json"  # in the folder of checkpoints: what the run was


@dataclass(frozen=True, kw_only=True)
class TextRun(Settings):
    """Numbers of a training on text. Lengths are in tokens, times in minutes."""

    text: str = "stdlib"  # what `load_text` takes
    column: str = "text"
    separator: str = "<|endoftext|>"
    max_bytes: int = 64_000_000
    streaming: bool = False
    validation_text: str = ""  # empty: the end of the training text
    output: str = "runs/run"
    resume: bool = True

    context: int = 256
    steps: int = 300
    batch: int = 8
    accumulation: int = 1
    checkpointing: bool = False
    schedule: str = "linear"
    learning_rate: float = 3e-3
    warmup_steps: int = 15
    minutes: float = 0.0  # stop after so long; 0: never
    save_steps: int = 0  # 0: no checkpoints
    eval_steps: int = 0  # 0: no evaluation, and the last step is kept
    eval_windows: int = 64
    log_steps: int = 10
    report_to: str = "none"
    seed: int = 0

    MAY_BE_ZERO = ("seed", "warmup_steps", "save_steps", "eval_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate={self.learning_rate} must be finite and not below 0")
        known = {"all", "none", *INTEGRATION_TO_CALLBACK}
        for name in self.reporters():
            if name not in known:
                raise unknown("report_to", name, known, ConfigError)
        if self.eval_steps and not self.save_steps:
            raise ConfigError(
                f"eval_steps={self.eval_steps} keeps the best step, which takes checkpoints; give save_steps "
                "or eval_steps=0"
            )
        if self.eval_steps and self.save_steps % self.eval_steps:
            raise ConfigError(
                f"save_steps={self.save_steps} must be a multiple of eval_steps={self.eval_steps}: what is "
                "saved is measured"
            )

    def need_output(self) -> None:
        """Refuse to write over a model that is no earlier result of such a run, or to report to what is not
        installed.
        """
        self._need_reporters()
        given = [getattr(self, name, "") for name in ("model", "teacher")]
        if any(name and Path(name).resolve() == Path(self.output).resolve() for name in given):
            raise ConfigError(f"output={self.output} is what the run starts from; name another folder")
        holds = any((Path(self.output) / name).is_file() for name in CONFIGS)
        if holds and self.resume and not (self.checkpoints / SETTINGS).is_file():
            raise ConfigError(
                f"output={self.output} holds a model that no such run made; name another folder, or say "
                "--resume false to write over it"
            )

    def _need_reporters(self) -> None:
        """Raise what Trainer would raise, before text is read and models are measured."""
        for name in self.reporters():
            if name not in ("all", "none"):
                try:
                    INTEGRATION_TO_CALLBACK[name]()
                except (RuntimeError, ImportError, ValueError) as error:
                    raise ConfigError(
                        f"report_to={name} needs a package that is not here, such as pip install {name}, or "
                        f"report_to=none: {error}"
                    ) from error

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints and the settings of the run lie."""
        return Path(self.output) / "checkpoints"

    @property
    def peak(self) -> float:
        """The learning rate's peak."""
        return self.learning_rate

    def reporters(self) -> list[str]:
        return [name.strip() for name in self.report_to.split(",")]


@dataclass(frozen=True, kw_only=True)
class RunConfig(TextRun):
    """Numbers of a training that starts from a model."""

    model: str = ""
    bf16: bool = False  # compute type; what trains is fp32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES, ConfigError)

    def need_model(self, what: str) -> None:
        """Refuse to run without a model, which a recipe's file may leave to the command line, or over one."""
        if not self.model:
            raise ConfigError(f"--model names {what}")
        self.need_output()


def common_arguments(config: TextRun, evaluates: bool) -> dict[str, Any]:
    """What every run asks of Trainer; older checkpoints are deleted by `Checkpoints`."""
    best = evaluates and config.eval_steps > 0
    return {
        "output_dir": str(config.checkpoints),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch,
        "per_device_eval_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulation,
        f"{CHECKPOINTING}_checkpointing": config.checkpointing,
        # the other kind fails for tied layers under DDP and for hooks on layers
        f"{CHECKPOINTING}_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": config.peak,
        "warmup_steps": config.warmup_steps,
        "seed": config.seed,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "eval_strategy": "steps" if best else "no",
        "eval_steps": config.eval_steps if best else None,
        "load_best_model_at_end": best and config.save_steps > 0,
        "metric_for_best_model": "eval_loss" if best else None,
        "greater_is_better": False if best else None,
        "prediction_loss_only": True,
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "include_num_input_tokens_seen": "all",
        "disable_tqdm": False,  # `Progress` sees for itself whether there is a terminal
        "report_to": config.reporters(),
        "dataloader_drop_last": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # or several processes would not find each other
    }


def training_arguments(config: RunConfig, evaluates: bool = False, **more: Any) -> TrainingArguments:
    """What a run's numbers are for Trainer.

    Args:
        evaluates: whether the trainer has a validation set.
    """
    own = {"remove_unused_columns": False, **more}
    return TrainingArguments(**common_arguments(config, evaluates), **plain_arguments(config), **own)


def plain_arguments(config: RunConfig) -> dict[str, Any]:
    """Of a run that starts from a model: its schedule without decay of weights, and what it computes in."""
    return {"lr_scheduler_type": config.schedule, "weight_decay": 0.0, "bf16": config.bf16}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a training run shows: loss, tokens a second, and how long it still takes.

On a terminal a bar counts steps; elsewhere (a file, a pipe) there are the lines alone. Evaluations and saves
are in the time that is left, since they are in the time that went by.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from transformers import ProgressCallback


class Progress(ProgressCallback):
    """Trainer's bar, with lines for people instead of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.bars = sys.stderr.isatty()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        self.tokens = state.num_input_tokens_seen
        if self.bars:
            super().on_train_begin(args, state, control, **kwargs)
            self.current_step = state.global_step
            if self.training_bar is not None:
                self.training_bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        line = self.line(state, logs or {})
        if state.is_world_process_zero and line:
            self._write(line)

    def line(self, state: Any, logs: dict[str, Any]) -> str:
        """One log as a line: ``step 20/300  loss 2.3456  10,240 tokens/s  0:01:10 left``; nothing of what is
        no loss.
        """
        since = f" since step {self.first}" if self.first else ""  # what a run before it had is not known
        names = {"loss": "loss", "eval_loss": "validation loss", "train_loss": f"mean loss{since}"}
        parts = [f"step {state.global_step}/{state.max_steps}"]
        parts += [f"{names[key]} {logs[key]:.4f}" for key in names if key in logs]
        seconds, steps = time.monotonic() - self.began, state.global_step - self.first
        if "loss" in logs and steps and seconds:
            parts.append(f"{(state.num_input_tokens_seen - self.tokens) / seconds:,.0f} tokens/s")
            parts.append(f"{_clock(seconds / steps * (state.max_steps - state.global_step))} left")
        if "train_loss" in logs:
            parts.append(f"done in {_clock(seconds)}")
        return "  ".join(parts) if len(parts) > 1 else ""

    def _write(self, line: str) -> None:
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bars:
            super().on_train_end(args, state, control, **kwargs)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a killed run goes on from.

`transformers.Trainer` writes a checkpoint file by file, so that a kill or a full disk leaves a folder that
looks like one. Here a checkpoint counts when `complete.json` lies in it: the names and sizes of its files,
written last, after the files are on the disk, and moved into place. What is older is deleted after that and
not before, unmarked first; the newest two and the best stay.

Trainer restores weights, optimizer, schedule, random numbers and the place in the data. What it leaves out is
added: trained tensors that an adapter's file does not hold (norms of the base), and the averages it logs are
cut where it saves, so that a resumed run logs the numbers of an unbroken one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..errors import CheckpointError
from ..files import flush, write_text
from .fsdp import fill, full


MARK = "complete.json"
TRAINED = "trained_base.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)$")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, complete or not, by their step."""
    found = [(int(m[1]), path) for path in folder.glob("checkpoint-*") if (m := _NAME.search(path.name))]
    return [path for _, path in sorted(found)]


def mark_of(checkpoint: Path) -> dict[str, Any] | None:
    """What the mark of a complete checkpoint says; None if files are missing or cut short."""
    try:
        mark = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        whole = all((checkpoint / name).stat().st_size == size for name, size in mark["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return mark if whole else None


def last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    return next((path for path in reversed(checkpoints(folder)) if mark_of(path) is not None), None)


def drop(checkpoint: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves none that counts."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def drop_incomplete(folder: Path) -> list[Path]:
    """Delete what a kill left half written, and say what it was."""
    found = [path for path in checkpoints(folder) if mark_of(path) is None]
    for path in found:
        drop(path)
    return found


class Checkpoints(TrainerCallback):
    """Marks what Trainer saved as complete, then deletes what is older.

    Args:
        notes: more for the mark; `finished` says that training ended there.
    """

    def __init__(self, folder: Path, notes: Mapping[str, Any]):
        self.folder, self.notes = folder, notes
        self.seconds: Any = lambda: 0.0  # of training so far, see `StopAfter`

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saves = args.save_strategy != "no"
        control.should_save |= control.should_training_stop and saves
        if control.should_save:
            control.should_evaluate |= args.eval_strategy != "no"
        # the last step's too: what is not logged is not averaged over processes either
        control.should_log |= control.should_save or control.should_evaluate or control.should_training_stop

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        best = math.inf if state.best_metric is None else state.best_metric
        if args.load_best_model_at_end and metrics.get("eval_loss", math.inf) < best:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        save_trained(model, checkpoint, state.is_world_process_zero)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes its random state
        if not state.is_world_process_zero:
            return
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK)
        for path in files:
            flush(path)
        mark = {
            "step": state.global_step,
            "finished": control.should_training_stop,
            "seconds": self.seconds(),
            **self.notes,
            "files": {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files},
        }
        write_text(checkpoint / MARK, json.dumps(mark, indent=1))
        flush(checkpoint)
        best = Path(state.best_model_checkpoint or "").name
        for path in checkpoints(self.folder)[:-2]:
            if path.name != best:
                drop(path)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint:
            load_trained(model, Path(state.best_model_checkpoint))


class Restore(TrainerCallback):
    """Brings back, when a run goes on, what Trainer does not load."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        load_trained(model, self.checkpoint)


def _outside_adapter(model: nn.Module) -> dict[str, Tensor]:
    """Trained tensors of a peft model's base, which the file of an adapter does not hold."""
    if not isinstance(model, PeftModel):
        return {}
    kinds = [config.peft_type for config in model.peft_config.values()]
    prefixes = {f"{kind.value.lower()}_" for kind in kinds if kind is not None}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(prefix in name for prefix in prefixes)
    }


def save_trained(model: Any, checkpoint: Path, writes: bool = True) -> None:
    """All processes call it, since each may hold a part; the one that `writes` does."""
    found = {name: full(parameter).contiguous() for name, parameter in _outside_adapter(model).items()}
    if found and writes:
        save_file(found, checkpoint / TRAINED)


def load_trained(model: Any, checkpoint: Path) -> None:
    if not (checkpoint / TRAINED).exists():
        return
    saved, own = load_file(checkpoint / TRAINED), _outside_adapter(model)
    if saved.keys() != own.keys():
        raise CheckpointError(f"{checkpoint / TRAINED} holds other tensors than this run trains")
    for name, parameter in own.items():
        fill(parameter, saved[name])


def load_finished(trainer: Trainer, checkpoint: Path) -> None:
    """The weights a finished run ended with: those of its best step, or of its last. `Trainer.train` would
    train one step too many.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    best = checkpoint.parent / Path(state["best_model_checkpoint"] or checkpoint).name
    chosen = best if trainer.args.load_best_model_at_end and mark_of(best) is not None else checkpoint
    trainer._load_from_checkpoint(str(chosen))
    load_trained(trainer.model, chosen)
    trainer.state.global_step = state["global_step"]

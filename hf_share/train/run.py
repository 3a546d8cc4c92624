# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One training run: it goes on where a killed one stopped, shows its progress, and says when it is done."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..errors import ConfigError
from ..files import write_text
from ..registry import forget
from .arguments import CHECKPOINTING, SETTINGS, TextRun
from .checkpoints import (
    Checkpoints,
    Restore,
    checkpoints,
    drop,
    drop_incomplete,
    last_complete,
    load_finished,
    mark_of,
)
from .fsdp import blueprint, shard_tied, whole
from .progress import Progress
from .stream import KeepPlace, StreamedWindows, read_place
from .teacher_cache import weights_name


# they change how long a run is, what it holds and what it shows, not what a step of it computes
FREE = {
    "checkpointing", "dtype", "eval_steps", "minutes", "output", "report_to", "resume", "save_steps", "steps"
}  # fmt: skip


class StopAfter(TrainerCallback):
    """Ends training after a number of minutes on the clock. What was learnt until then is kept.

    Args:
        used: seconds that the run had before it was interrupted.
    """

    def __init__(self, minutes: float, used: float = 0.0):
        self.limit, self.used = 60.0 * minutes, used
        self.start = time.monotonic()

    def seconds(self) -> float:
        return self.used + time.monotonic() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.limit and self._is_over(args):
            control.should_training_stop = True

    def _is_over(self, args: Any) -> bool:
        """By the clock of the first process: one that stops alone leaves the others waiting."""
        over = torch.tensor(self.seconds() > self.limit, device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(over, src=0)
        return bool(over)


def run(trainer: Trainer, config: TextRun, data: Any = None) -> Any:
    """`trainer.train()`, from the last complete checkpoint in `config.output` if there is one.

    Args:
        data: what the run is trained on, if not the trainer's own set; a checkpoint of other data is refused.

    Returns:
        The trained model, whole in each process, of however many it was trained by.
    """
    _require_a_batch(trainer)
    _measure_all_rows(trainer)
    trainer._loss_shifts_labels = True  # what Trainer counts is what the loss is of, for GPT-2 as for Llama
    twin = blueprint(trainer)
    _run(trainer, config, data)
    trained = _unwrapped(whole(trainer, twin))
    if trainer.args.gradient_checkpointing:
        getattr(trained, f"{CHECKPOINTING}_checkpointing_disable")()
    if not hasattr(trained, "peft_config"):  # its base is as it was
        forget(trained)
    return trained


def _unwrapped(trained: Any) -> Any:
    """The model with its own `forward`, in which accelerate leaves its autocast."""
    forward = vars(trained).pop("_original_forward", None)
    if forward is not None:
        vars(trained).pop("forward")
        if getattr(forward, "__func__", None) is not type(trained).forward:
            trained.forward = forward
    return trained


def _run(trainer: Trainer, config: TextRun, data: Any) -> None:
    folder = Path(trainer.args.output_dir)
    settings = _settings(config, trainer.train_dataset if data is None else data) | _weights(trainer)
    found = _found(trainer, config, folder, settings)
    mark = (mark_of(found) or {}) if found else {}
    length = {"steps": config.steps, "minutes": config.minutes}
    if found and (mark["step"] >= config.steps or mark["finished"] and length.items() <= mark.items()):
        _say(trainer, f"finished at step {mark['step']} already: {found}")
        return load_finished(trainer, found)
    clock = StopAfter(config.minutes, mark.get("seconds", 0.0))
    keep = Checkpoints(folder, length)
    keep.seconds = clock.seconds
    stream = trainer.train_dataset
    places = [KeepPlace(stream)] if isinstance(stream, StreamedWindows) else []
    for callback in (clock, *places, keep, *([Restore(found)] if found else [])):
        trainer.add_callback(callback)
    if found and isinstance(stream, StreamedWindows):
        read_place(stream, found)
    _show_progress(trainer)
    if found:
        _say(trainer, f"going on from step {mark['step']}: {found}")
    _train(trainer, found)


def _require_a_batch(trainer: Trainer) -> None:
    """Trainer makes no step, and no error, where the rows fill no batch."""
    rows: Any = trainer.train_dataset
    batch, processes = trainer.args.train_batch_size, trainer.args.world_size
    if hasattr(rows, "__len__") and len(rows) < batch * processes:
        each = f" on each of {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"batch={batch}{each}: the training text has {len(rows)} rows, which fill no batch; take a "
            "smaller batch, a shorter context or more text"
        )


def _measure_all_rows(trainer: Trainer) -> None:
    """Let evaluations see the rows that fill no batch, too. Training leaves them out, so that all its steps
    are of one size, and Trainer has one setting for both.
    """
    stock: Any = trainer.get_eval_dataloader
    asked = trainer.args.dataloader_drop_last

    def whole_set(*args: Any, **kwargs: Any) -> Any:
        trainer.args.dataloader_drop_last = False
        try:
            return stock(*args, **kwargs)
        finally:
            trainer.args.dataloader_drop_last = asked

    trainer.get_eval_dataloader = whole_set


def _train(trainer: Trainer, found: Path | None) -> None:
    shard_tied(trainer.model, trainer.accelerator)
    try:
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    except (RuntimeError, SafetensorError) as error:  # how torch and safetensors report a failed write
        words = ("inline_container", "failed writing file", "No space left", "File too large", "I/O error")
        if not any(word in str(error) for word in words):
            raise
        kept = last_complete(Path(trainer.args.output_dir))
        message = f"a checkpoint could not be written; is the disk full? The last complete one is {kept}"
        raise OSError(errno.EIO, message) from error


def _found(trainer: Trainer, config: TextRun, folder: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from. The first process clears away what does not count."""
    file = folder / SETTINGS
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            for path in checkpoints(folder):
                drop(path)
        for path in drop_incomplete(folder):
            _say(trainer, f"left out, not written to its end: {path}")
        if last_complete(folder) is None:
            write_text(file, json.dumps(settings, indent=1))
    trainer.accelerator.wait_for_everyone()
    found = last_complete(folder) if config.save_steps else None
    if found is not None and file.exists():
        _agree({**_at_default(config), **json.loads(file.read_text(encoding="utf-8"))}, settings, folder)
    return found


def _agree(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    other = [key for key in new if old.get(key) != new[key]]
    if other:
        told = ", ".join(f"{key} was {old.get(key)!r} and is {new[key]!r}" for key in other[:4])
        raise ConfigError(
            f"{folder} holds checkpoints of another run: {told}. Give the old settings to go on, another "
            "--output, or --resume false to drop them and begin anew"
        )


def _at_default(config: TextRun) -> dict[str, Any]:
    """What a run had of settings that came after it."""
    fields = dataclasses.fields(config)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _settings(config: TextRun, data: Any) -> dict[str, Any]:
    found = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    return json.loads(json.dumps({**found, "data": fingerprint(data)}))


def _weights(trainer: Trainer) -> dict[str, str]:
    """Names of the weights a run starts from and is taught by, those of the first process."""
    held = {"weights": trainer.model, "teacher_weights": getattr(trainer, "teacher", None)}
    names = [{key: weights_name(model) for key, model in held.items() if model is not None}]
    return broadcast_object_list(names)[0]


def fingerprint(data: Any) -> str:
    """A few letters that differ where the data do; of a stream, what is known of it before it is read."""
    rows = getattr(data, "windows", None)
    if isinstance(rows, Tensor):
        return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
    return str(getattr(data, "name", "") or getattr(data, "_fingerprint", ""))


def _show_progress(trainer: Trainer) -> None:
    for kind in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(Progress())


def _say(trainer: Trainer, text: str) -> None:
    if trainer.is_world_process_zero():
        print(text)

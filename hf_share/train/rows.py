# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on instructions and chats, by TRL's SFTTrainer.

    {"prompt": "...", "completion": "..."}                       the loss is of the completion
    {"messages": [{"role": "user", "content": "..."}, ...]}      the loss is of the assistant's turns

Other names of the former are in `formats.py`.
TRL applies the chat template, masks what is not to be learnt and packs rows; adapters, checkpoints and the
choice of the best step are as for plain text. TRL is an extra: pip install 'hf_share[train]'.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..errors import ConfigError, ShareError, unknown
from .arguments import common_arguments, plain_arguments
from .documents import LOADERS
from .formats import CHAT, FORMATS, INSTRUCTION, listed
from .run import run


TEST, VALIDATION = 0.1, 0.05
BLOCK = 1000  # rows of a stream that are shuffled together


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one kind in three parts that share none; `datasets.Dataset` or `IterableDataset`."""

    kind: str
    train: Any
    validation: Any
    test: Any


def read_rows(config: Any) -> Rows | None:
    """The rows of `config.text`, or None where it holds plain text.

    Raises:
        ConfigError: if it holds rows that are neither, by their columns.
    """
    if config.data_format == "text" or not _may_hold_rows(config):
        return None
    with _named(config.text):
        data = _load(config)
        first = next(iter(data), None)
    if first is None:
        raise ValueError(f"{config.text!r} holds no rows")
    name = _format(config, first)
    if name is None:
        return None
    data = FORMATS[name].converted(data)
    test, validation, train = _split_stream(data, config) if config.streaming else _split(data)
    held = validation if config.eval_steps else None
    return Rows(kind=FORMATS[name].kind, train=train, validation=held, test=test)


def _may_hold_rows(config: Any) -> bool:
    path = Path(config.text)
    return config.text != "stdlib" and (not path.is_file() or path.suffix in LOADERS)


@contextmanager
def _named(text: str) -> Iterator[None]:
    """Let errors of `datasets`, pyarrow and pandas name the text; that of an empty file has no words."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ShareError:
        raise
    except (DatasetsError, ValueError, StopIteration) as error:
        cause = str(error.__cause__ or error) or "it is empty"
        raise ConfigError(f"{text!r} cannot be read as rows: {cause}") from error


def _load(config: Any) -> Any:
    from datasets import load_dataset

    path = Path(config.text)
    options = {"split": "train", "streaming": config.streaming}
    files = sorted(p for p in path.rglob("*") if p.suffix in LOADERS) if path.is_dir() else [path]
    if path.exists() and not files:
        return iter(())
    if path.exists():
        return load_dataset(LOADERS[files[0].suffix], data_files=[str(p) for p in files], **options)
    name, _, configuration = config.text.partition(":")
    try:
        return load_dataset(name, configuration or None, **options)
    except (FileNotFoundError, ConnectionError) as error:
        message = f"{config.text!r} is neither a local file nor a data set that can be reached: {error}"
        raise ConfigError(message) from error


def _format(config: Any, row: dict[str, Any]) -> str | None:
    found = [name for name, form in FORMATS.items() if all(column in row for column in form.columns)]
    if config.data_format == "auto":
        if not found and config.column not in row:
            raise ConfigError(
                f"{config.text!r} holds rows of the columns {', '.join(sorted(row))}, which are none of: "
                f"{listed()}; --column names the one that holds plain text"
            )
        return found[0] if found else None
    if config.data_format not in found:
        wanted = " and ".join(FORMATS[config.data_format].columns)
        raise ConfigError(
            f"data_format={config.data_format} needs the columns {wanted}; rows have {sorted(row)}"
        )
    return config.data_format


def _split(data: Any) -> tuple[Any, Any, Any]:
    count = len(data)
    test = max(round(count * TEST), 1)
    validation = max(round((count - test) * VALIDATION), 1)
    if count < test + validation + 1:
        raise ConfigError(f"{count} rows cannot be split into training, validation and test")
    places = (range(count - test, count), range(count - test - validation, count - test))
    return data.select(places[0]), data.select(places[1]), data.select(range(count - test - validation))


def _split_stream(data: Any, config: Any) -> tuple[Any, Any, Any]:
    from datasets import Dataset

    size = config.eval_windows
    held = list(itertools.islice(iter(data), 2 * size))
    if len(held) < 2 * size:
        raise ConfigError(f"a stream of {len(held)} rows has none beyond eval_windows={size} twice")
    train = _endless(data.skip(2 * size), config.seed)
    return Dataset.from_list(held[:size]), Dataset.from_list(held[size:]), train


def _endless(data: Any, seed: int) -> Any:
    """A stream of rows round and round, shuffled in blocks: where a pass over them ended, batches would be
    short, and a resumed run would be at another place.
    """
    return data.shuffle(seed=seed, buffer_size=BLOCK).repeat(None)


def trl() -> Any:
    """The package, or what to install."""
    try:
        import trl as package  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"instructions and chats are trained by TRL, which is not installed ({error}): "
            "pip install 'hf_share[train]'"
        ) from error
    return package


def _name(text: str) -> str:
    """Of a file, its name and what is in it, so that a run does not go on with other rows."""
    if not Path(text).is_file():
        return text
    digest = hashlib.sha256()
    with Path(text).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return f"{text} {digest.hexdigest()[:16]}"


class Named:
    """What a set of rows is called, for the check that checkpoints are of the same data."""

    def __init__(self, name: str):
        self.name = name


def finetune_rows(
    model: PeftModel, tokenizer: Any, rows: Rows, config: Any, callbacks: list[TrainerCallback] | None = None
) -> tuple[PeftModel, float, float]:
    """Train an adapter; it is taken over, use what this returns, with the loss on the test rows before and
    after.
    """
    package = trl()
    _need_template(tokenizer, rows, config)
    forward = vars(model.get_base_model()).get("forward")
    held = {"validation": rows.validation, "test": rows.test}
    with _as_given(model):
        trainer = package.SFTTrainer(
            model=model,
            args=package.SFTConfig(**sft_arguments(config, rows)),
            train_dataset=rows.train,
            eval_dataset={name: part for name, part in held.items() if part is not None},
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    prepared = trainer.eval_dataset
    trainer.eval_dataset = prepared.get("validation")
    test = DataLoader(prepared["test"], config.batch, collate_fn=trainer.data_collator)
    before = learnt_loss(model, test)
    trained = run(trainer, config, Named(_name(config.text)))
    _give_back(trained.get_base_model(), forward)
    return trained, before, learnt_loss(trained, test)


@contextmanager
def _as_given(model: nn.Module) -> Iterator[None]:
    """What trains keeps its numbers: over a base of few bits TRL rounds it to bfloat16, which a small step
    does not change.
    """
    given = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in given:
        parameter.data = data.to(parameter.device)


def _give_back(base: Any, forward: Any) -> None:
    """The base's own `forward`, in place of the one that TRL put there, which holds on to what it trained,
    and inputs without the gradients that TRL wants for checkpointing.
    """
    base.disable_input_require_grads()
    vars(base).pop("forward", None)
    if forward is not None:
        vars(base)["forward"] = forward


@torch.no_grad()
def learnt_loss(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Nats per token that is learnt (labels other than -100), each token counted once.

    Trainer's own `evaluate` is no help here: before training it leaves a model that DDP does not wrap any
    more and FSDP2 refuses, and it weighs batches, not tokens.
    """
    device = next(model.parameters()).device
    training, total, count = model.training, 0.0, 0
    model.eval()
    for batch in batches:
        known = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
        logits, labels = model(**known).logits[:, :-1], batch["labels"][:, 1:].to(device)
        total += float(F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"))
        count += int((labels != -100).sum())
    model.train(training)
    return total / max(count, 1)


def sft_arguments(config: Any, rows: Rows) -> dict[str, Any]:
    """What a run's numbers are for SFTConfig."""
    only = config.completion_only
    return {
        **common_arguments(config, evaluates=rows.validation is not None),
        **plain_arguments(config),
        "max_length": config.context,
        "packing": config.packing,
        "packing_strategy": "wrapped",  # the others need kernels that keep packed rows apart
        "eval_packing": False,
        "completion_only_loss": only if rows.kind == INSTRUCTION else None,
        "assistant_only_loss": only and rows.kind == CHAT,
        "chat_template_path": config.chat_template or None,
        "loss_type": "nll",
    }


def _need_template(tokenizer: Any, rows: Rows, config: Any) -> None:
    if rows.kind != CHAT:
        return
    if not tokenizer.chat_template and not config.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template; give one by --chat_template FILE.jinja, with the turns of "
            "the assistant between {% generation %} and {% endgeneration %}"
        )


def check_format(name: str) -> None:
    known = ("auto", "text", *FORMATS)
    if name not in known:
        raise unknown("data_format", name, known, ConfigError)

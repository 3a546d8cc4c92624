# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One call that measures models: what they store, what they pay for a text, how they score, how fast they
are.

A path, a Hub id and a model in memory take the same way, so that the same model gives the same numbers.
"""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from ..describe import describe
from ..errors import ConfigError
from ..filesize import file_size
from ..hub.load import find_model, load_model, load_tokenizer, split_choice
from .device import on_device
from .harness import TaskResult, task_results
from .perplexity import Perplexity, text_perplexity
from .report import Report
from .speed import decode_speed


PACKAGES = ("torch", "transformers", "peft", "lm_eval")
Models = str | nn.Module | Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is measured. `text` is scored by the WikiText-2 protocol, see `eval.perplexity`."""

    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    batch: int | str = "auto"
    limit: int | None = None
    num_fewshot: int | None = None
    text: str | None = field(default=None, repr=False)
    text_name: str | None = None
    window: int | None = None
    stride: int | None = None
    speed: bool = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.batch != "auto" and (not isinstance(self.batch, int) or self.batch < 1):
            raise ConfigError(f"batch is {self.batch!r}; auto, or a whole number of at least 1, fits")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit!r}; at least 1 item fits")

    def to_dict(self) -> dict[str, Any]:
        """What the numbers depend on, as plain JSON values; not where files lie."""
        return {
            "tasks": list(self.tasks), "batch": self.batch, "limit": self.limit,
            "num_fewshot": self.num_fewshot, "text": self.text_name, "dtype": self.dtype,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one model measures."""

    name: str
    model: str
    stored: int
    used: int
    bytes: int
    plan: dict[str, Any] | None
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    perplexity: Perplexity | None = None
    tokens_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the items behind the scores."""
        out: dict[str, Any] = {
            key: getattr(self, key) for key in ("name", "model", "stored", "used", "bytes", "plan")
        }
        if self.perplexity is not None:
            p = self.perplexity
            out["perplexity"] = {
                "perplexity": p.perplexity, "nll": p.nll, "bits_per_byte": p.bits_per_byte,
                "tokens": p.tokens, "window": p.window, "stride": p.stride,
            }  # fmt: skip
        if self.tokens_per_second is not None:
            out["tokens_per_second"] = self.tokens_per_second
        out["tasks"] = {name: _told(row) for name, row in self.tasks.items()}
        return out


def _told(row: TaskResult) -> dict[str, Any]:
    scores = {name: score.to_dict() for name, score in row.scores.items()}
    read = {"items": row.items, "total": row.total, "num_fewshot": row.num_fewshot}
    return {**read, "metric": row.primary, "scores": scores}


def evaluate(
    models: Models, tokenizer: Any = None, *, progress: Callable[[str], Any] | None = None, **ask: Any
) -> Report:
    """Measure one model or several, one after the other, and compare them.

    Args:
        models: a path or Hub id (`small@loops=1` is an elastic model at one of its choices), a model in
            memory, a list of the former, or a dict from names to either. Differences are to the first.
        tokenizer: for models in memory; the one beside their base if None.
        progress: called with a line as each model begins.
        ask: the fields of `Ask`: `tasks`, `include_path`, `batch`, `limit`, `num_fewshot`, `text`, `window`,
            `stride`, `speed`, `dtype`.

    Returns:
        A `Report`: `to_dict()`, `markdown()`, `plot(path)`.

    Example:
        >>> report = evaluate(["dense", "small"], tasks=["hellaswag"], speed=True)  # doctest: +SKIP
        >>> print(report.markdown())  # doctest: +SKIP
    """
    if isinstance(ask.get("tasks"), str):
        ask["tasks"] = ask["tasks"].split(",")
    asked = Ask(**{**ask, "tasks": tuple(ask.get("tasks", ()))})
    found, named = [], _named(models)
    for place in named.values():
        if isinstance(place, str):
            find_model(place)  # a wrong name is told before any model is measured
    for name, model in named.items():
        if progress is not None:
            progress(name)
        found.append(_measure(name, model, tokenizer, asked))
        gc.collect()
    return Report(settings=asked.to_dict(), versions=_versions(), date=_now(), models=tuple(found))


def _named(models: Models) -> dict[str, Any]:
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, nn.Module):
        named = {type(models).__name__: models}
    else:
        places = [models] if isinstance(models, str) else list(models)
        named = dict(zip(_short(places), places, strict=True))
    if not named:
        raise ConfigError("there is no model to measure")
    return named


def _short(places: list[str]) -> list[str]:
    """The last part of each place, or the whole where two are alike."""
    last = [_last(place) for place in places]
    names = [name if last.count(name) == 1 else place for name, place in zip(last, places, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} is given twice; each model is measured once")
    return names


def _last(place: str) -> str:
    path, settings = split_choice(place)
    mark = "@" + place.rpartition("@")[2] if settings else ""
    return (Path(path).resolve().name if Path(path).exists() else path.rpartition("/")[2]) + mark


def _measure(name: str, given: Any, tokenizer: Any, ask: Ask) -> Measured:
    model, own = given, tokenizer
    if isinstance(given, str):
        model, own = on_device(load_model(given, ask.dtype)), tokenizer or load_tokenizer(given)
    elif own is None and (ask.tasks or ask.text):
        own = load_tokenizer(getattr(model.config, "_name_or_path", "") or "")
    training = model.training
    with ExitStack() as after:
        after.callback(model.train, training)
        return _numbers(name, model.eval(), own, ask)


def _numbers(name: str, model: Any, tokenizer: Any, ask: Ask) -> Measured:
    told: Any = describe(model)
    scored, price, rate = {}, None, None
    if ask.text is not None:
        _require(tokenizer, name)
        rows = 8 if ask.batch == "auto" else int(ask.batch)
        options = {"window": ask.window, "stride": ask.stride, "batch": rows}
        price = text_perplexity(model, tokenizer, ask.text, **options)
    if ask.tasks:
        _require(tokenizer, name)
        options = {"include_path": ask.include_path, "batch": ask.batch, "limit": ask.limit}
        scored = task_results(model, tokenizer, ask.tasks, num_fewshot=ask.num_fewshot, **options)
    if ask.speed:
        rate = decode_speed(model)
    return Measured(
        name=name, model=told.model, stored=told.stored, used=told.used, bytes=file_size(model),
        plan=None if told.plan is None else told.plan.to_dict(),
        tasks=scored, perplexity=price, tokens_per_second=rate,
    )  # fmt: skip


def _require(tokenizer: Any, name: str) -> None:
    if tokenizer is None:
        raise ConfigError(f"{name}: there is no tokenizer beside the model, and text has to be tokenised")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of tasks by lm-eval (EleutherAI's harness, extra `eval`), on a model in memory.

For every metric that is a mean over items the items are kept, so that two models compare on the same items.
Chance is what guessing scores: the mean of 1 / choices for multiple choice, and 0 where an answer is made up.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError


SEED = 1234  # of the examples a few-shot prompt shows, lm-eval's own default
BOOTSTRAP = 1000  # draws for the error of a metric that is no mean, such as perplexity
ON_CPU = 16  # rows of a batch where running out of memory cannot be tried, since it ends the process
PRIMARY = ("acc", "exact_match", "acc_norm", "f1", "mcc")  # the first that a task has stands for it


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of a task: value, standard error, and what guessing gives (None for an unbounded metric)."""

    value: float
    stderr: float | None
    chance: float | None = None
    higher_is_better: bool = True
    items: tuple[float, ...] = field(default=(), repr=False)

    @property
    def at_chance(self) -> bool:
        """Within two standard errors of guessing; so is a score whose error is not known."""
        if self.chance is None:
            return False
        return self.stderr is None or abs(self.value - self.chance) <= 2 * self.stderr

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the items."""
        out = {"value": self.value, "stderr": self.stderr, "higher_is_better": self.higher_is_better}
        return out if self.chance is None else {**out, "chance": self.chance, "at_chance": self.at_chance}


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """All metrics of a task, by `metric` or `metric,filter`, and the log-likelihoods behind them."""

    items: int
    scores: dict[str, Score]
    total: int | None = None  # items that the task has, of which a limit takes the first
    num_fewshot: int | None = None  # examples before each item
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def primary(self) -> str:
        """The metric that stands for the task."""
        names = {name.partition(",")[0]: name for name in reversed(self.scores)}
        return next((names[name] for name in PRIMARY if name in names), next(iter(self.scores)))

    @property
    def score(self) -> Score:
        return self.scores[self.primary]


def task_results(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    batch: int | str = "auto",
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, TaskResult]:
    """Score `model` on each of `tasks`.

    Args:
        model: a language model in memory, shared or not, or a peft model.
        tasks: names that lm-eval knows, or that YAML files below `include_path` define. Data files they
            name are looked for where one stands, in `include_path`, and in the folder above it.
        batch: rows of a forward pass; "auto" finds the largest that fits on an accelerator, and is 16 on a
            CPU.
        limit: the first so many items of each task; all if None.

    Raises:
        ConfigError: if lm-eval is not installed, or does not know a task.
    """
    harness = _harness()
    batch = ON_CPU if batch == "auto" and model.device.type == "cpu" else batch
    with _quiet(), ExitStack() as inside:
        lm = _language_model(model, tokenizer, batch)
        loaded = _load(harness, list(tasks), include_path, inside)
        for task in loaded["tasks"].values():
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        found = harness.evaluate(
            lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=True
        )
    return {name: _read(found, name) for name in loaded["tasks"]}


def task_scores(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, dict[str, float]]:
    """Accuracy and its standard error on each task; data files are relative to `folder`."""
    with _inside(folder):
        here = None if folder is None else "."
        found = task_results(model, tokenizer, tasks, include_path=here, limit=limit, batch=batch)
    return {
        task: {"acc": row.scores["acc"].value, "stderr": row.scores["acc"].stderr or 0.0}
        for task, row in found.items()
    }


def task_items(tasks: Sequence[str], *, folder: str | Path | None = None) -> dict[str, list[dict]]:
    """The items of each task, for who has to know before a long run that they are there, and which."""
    with _quiet(), ExitStack() as inside:
        inside.enter_context(_inside(folder))
        loaded = _load(_harness(), list(tasks), None if folder is None else ".", inside)
        return {name: [dict(item) for item in task.eval_docs] for name, task in loaded["tasks"].items()}


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError:
        raise ConfigError("tasks are scored by lm-eval: pip install 'hf_share[eval]'") from None
    return lm_eval


def _language_model(model: Any, tokenizer: Any, batch: int | str) -> Any:
    from lm_eval.models.huggingface import HFLM

    if tokenizer is None:
        raise ConfigError("tasks are text, and there is no tokenizer beside the model")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)


def _load(harness: Any, tasks: list[str], include_path: str | Path | None, inside: ExitStack) -> Any:
    """The tasks, and the working directory where their data files are, until `inside` closes."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"--include_path {include_path} is no folder of task files")
    path = None if include_path is None else Path(include_path).resolve()
    manager = None
    if path is not None:  # reading lm-eval's own thousands of task files takes seconds
        manager = TaskManager(include_path=str(path), include_defaults=False)
    if manager is None or not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=None if path is None else str(path))
        _require_known(tasks, manager)
    missing: Exception | None = None
    for folder in [Path.cwd()] if path is None else [Path.cwd(), path, path.parent]:
        inside.enter_context(_inside(folder))
        try:
            return manager.load(tasks)
        except FileNotFoundError as error:
            missing = missing or error
    raise ConfigError(f"data of the tasks {', '.join(tasks)} is not there: {missing}") from None


def _require_known(tasks: list[str], manager: Any) -> None:
    from ..errors import unknown

    known = [*manager.all_tasks]
    for name in tasks:
        if name not in known:
            close = unknown("task", name, known, ConfigError)
            if not name or "did you mean" in str(close):
                raise close
            raise ConfigError(f"unknown task {name!r}; --include_path names a folder with task files")


def _read(found: Any, task: str) -> TaskResult:
    row, samples = found["results"][task], found["samples"][task]
    better = found["higher_is_better"].get(task, {})
    choices = found["configs"][task].get("output_type") == "multiple_choice"
    bounded = {m["metric"] for m in found["configs"][task]["metric_list"] if _is_mean(m)}
    scores = {}
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str):
            continue
        own = [s for s in samples if s["filter"] == kind and metric in s]
        mean = metric in bounded and _are_numbers(own, metric)
        items = tuple(float(s[metric]) for s in own) if mean else ()
        chance = None if not items else (_chance(own) if choices else 0.0)
        error = row.get(f"{metric}_stderr,{kind}")
        scores[metric if kind == "none" else key] = Score(
            value=float(value), stderr=float(error) if isinstance(error, (int, float)) else None,
            chance=chance, higher_is_better=bool(better.get(metric, True)), items=items,
        )  # fmt: skip
    if not scores:
        raise ConfigError(f"task {task!r} has no metric that is a number")
    return TaskResult(
        items=len({s["doc_id"] for s in samples}), scores=scores, samples=samples,
        total=found["n-samples"][task]["original"], num_fewshot=found["n-shot"][task],
    )  # fmt: skip


def _is_mean(metric: dict[str, Any]) -> bool:
    """Whether a metric is a mean over items of numbers between 0 and 1."""
    mean = metric.get("aggregation", "mean") in ("mean", "nanmean")
    return mean and metric["metric"] not in ("perplexity", "brier_score", "likelihood")


def _are_numbers(samples: list[dict[str, Any]], metric: str) -> bool:
    return bool(samples) and all(isinstance(s[metric], (int, float)) for s in samples)


def _chance(samples: list[dict[str, Any]]) -> float:
    return sum(1 / len(s["filtered_resps"]) for s in samples) / len(samples)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval without its notes, nothing of it on the standard output, and its bootstrap in this process: a
    fork beside torch's threads may hang.
    """
    log, key = logging.getLogger("lm_eval"), "DISABLE_MULTIPROC"
    level, before = log.level, os.environ.get(key)
    log.setLevel(logging.ERROR)
    os.environ[key] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _inside(folder: str | Path | None) -> Iterator[None]:
    """Work in `folder` for a while: tasks name their data files relative to where one stands."""
    before = os.getcwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)

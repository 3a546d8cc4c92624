# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of tasks by lm-eval (EleutherAI's harness, extra `eval`), on a model in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def task_scores(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, dict[str, float]]:
    """Accuracy and its standard error on each task.

    Args:
        model: a causal language model, shared or not.
        tasks: names that lm-eval knows, or that YAML files below `folder` define; their data files are
            relative to `folder`.
        limit: the first so many items of each task; all if None.

    Raises:
        ConfigError: if lm-eval is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError("tasks are scored by lm-eval: pip install 'hf_share[eval]'") from None
    with _inside(folder):
        found: Any = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=None if folder is None else "."),
            limit=limit,
            log_samples=False,
        )
    return {
        task: {"acc": float(row["acc,none"]), "stderr": float(row["acc_stderr,none"])}
        for task, row in found["results"].items()
    }


@contextmanager
def _inside(folder: str | Path | None) -> Iterator[None]:
    """Work in `folder` for a while: tasks name their data files relative to where one stands."""
    before = os.getcwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)

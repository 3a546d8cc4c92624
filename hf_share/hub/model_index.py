# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Scores in a card's `model-index`, and back.

The value stays a number, by which the Hub can sort. What else is known stands in `args`: of the data set what
holds for all its metrics (items, examples in the prompt, windows), of the metric the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult

from .scores import Scored, Scores, known, plain


OF_DATA = ("items", "total", "limit", "num_fewshot", "tokens", "window", "stride")


def eval_results(scores: Scores, task: str) -> list[EvalResult]:
    """The scores as huggingface_hub takes them.

    Args:
        task: the Hub's name of what the model does.
    """
    return [row for dataset, metrics in scores.items() for row in _rows(dataset, metrics, task)]


def results_of(data: Any) -> dict[str, dict[str, Any]]:
    """The scores in a card's metadata, as `read_scores` takes them; what is no number is left out."""
    found: dict[str, dict[str, Any]] = {}
    for row in data.eval_results or ():
        if isinstance(row.metric_value, (int, float)) and not isinstance(row.metric_value, bool):
            facts = {**_args(row.dataset_args), **_args(row.metric_args)}
            found.setdefault(row.dataset_name, {})[row.metric_type] = plain(row.metric_value, facts)
    return found


def _rows(dataset: str, metrics: Mapping[str, Scored], task: str) -> Iterable[EvalResult]:
    shared = _shared(metrics.values())
    for metric, score in metrics.items():
        own = {name: value for name, value in score.facts.items() if name not in shared}
        yield EvalResult(
            task_type=task, dataset_type=dataset, dataset_name=dataset, dataset_args=shared or None,
            metric_type=metric, metric_value=score.value, metric_args=own or None,
        )  # fmt: skip


def _shared(scores: Iterable[Scored]) -> dict[str, Any]:
    """What is known of the data and the same in all scores: the Hub keeps one `args` for a data set."""
    first, *others = [score.facts for score in scores] or [{}]
    return {
        name: value
        for name, value in first.items()
        if name in OF_DATA and all(facts.get(name) == value for facts in others)
    }


def _args(args: Any) -> dict[str, Any]:
    """Those that are ours: cards of others have all kinds of `args`, a plain text too."""
    return known(args) if isinstance(args, Mapping) else {}

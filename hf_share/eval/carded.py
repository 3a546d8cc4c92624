# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of a report as a model card takes them: each with its error and what it was measured on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError, unknown
from ..hub.scores import plain


PRICES = ("perplexity", "bits_per_byte")
Results = dict[str, dict[str, Any]]  # data set -> metric -> number, or a mapping with it and what is known


def scores_of(results: Any, folder: str | os.PathLike) -> Any:
    """What `hf-share eval` wrote of the model in `folder`, as `model_card` takes it; other results as they
    are.
    """
    return results if not _is_report(results) else _scores_in(results, _row_of(results, folder))


def baseline_of(results: Any, folder: str | os.PathLike) -> Any:
    """The same of the first model of that report, to which it compares the others; None if that is the one in
    `folder`, or there is no report.
    """
    if not _is_report(results):
        return None
    first = results["models"][0]
    return None if first is _row_of(results, folder) else _scores_in(results, first)


def _is_report(results: Any) -> bool:
    return isinstance(results, dict) and {"models", "settings", "averaged"} <= results.keys()


def _row_of(results: dict[str, Any], folder: str | os.PathLike) -> dict[str, Any]:
    rows = {row["name"]: row for row in results["models"]}
    name = Path(folder).resolve().name
    if name not in rows and len(rows) > 1:
        raise unknown("model in these results", name, rows, ConfigError)
    return rows.get(name) or results["models"][0]


def _scores_in(results: dict[str, Any], row: dict[str, Any]) -> Results:
    settings, found = results["settings"], {}
    for task, of in row["tasks"].items():
        differences = {of.get("metric"): _difference(row.get("difference", {}).get(task, {}))}
        of = {**settings, **of}  # examples in the prompt are a task's own where it says so
        found[task] = {
            metric: plain(score["value"], {**of, **score, **differences.get(metric, {})})
            for metric, score in of["scores"].items()
        }
    if "perplexity" in row:
        price = row["perplexity"]
        read = {name: price.get(name) for name in ("tokens", "window", "stride")}
        prices = {name: price[name] for name in PRICES if price[name] is not None}
        found[settings.get("text") or "text"] = {name: plain(value, read) for name, value in prices.items()}
    return found


def _difference(paired: dict[str, Any]) -> dict[str, Any]:
    return {"difference": paired.get("mean"), "difference_stderr": paired.get("stderr")}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The table of scores in a card: each with its error, beside the base model's, and what it was measured on.

A difference on the same items stands for the difference of two scores where it is known, since its error is
the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .scores import Scored, Scores


NOTHING = "Nothing was measured."
LEGEND = (
    "± is one standard error; a change that has one is a mean over the same items. A score at chance is not "
    "told from guessing by two standard errors."
)


def score_table(scores: Scores, before: Scores) -> str:
    """The table, and below it what its signs mean.

    Args:
        before: scores of the base model; its columns are left out if there are none.
    """
    rows = [
        (dataset, metric, told, before.get(dataset, {}).get(metric))
        for dataset, metrics in scores.items()
        for metric, told in metrics.items()
    ]
    if not rows:
        return NOTHING
    numbers = ["base model", "this model", "change"] if before else ["value"]
    where = ["measured on"] if any(measured_on(told) for _, _, told, _ in rows) else []
    lines = [
        ["data", "metric", *numbers, *where],
        ["---", "---", *("---:" for _ in numbers), *("---" for _ in where)],
    ]
    for dataset, metric, told, was in rows:
        values = [_base(was, told), _value(told), _change(was, told)] if before else [_value(told)]
        lines.append([dataset, metric, *values, *(measured_on(told) for _ in where)])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{LEGEND}" if "±" in text or "(at chance)" in text else text


def measured_on(score: Scored) -> str:
    """`250 of 5,000 items, 5-shot, chance 0.25`, as far as it is known."""
    return ", ".join(_measured_on(score))


def _measured_on(score: Scored) -> Iterator[str]:
    if score.items is not None:
        part = score.total is not None and score.items < score.total
        yield f"{score.items:,} of {score.total:,} items" if part else f"{score.items:,} items"
    if score.limit is not None and (score.items is None or score.total is None):
        yield f"limit {score.limit:,}"
    if score.tokens is not None:
        yield f"{score.tokens:,} tokens"
    if score.window is not None:
        yield f"windows of {score.window:,}{'' if score.tokens is not None else ' tokens'}"
    if score.stride is not None:
        yield f"stride {score.stride:,}"
    if score.num_fewshot is not None:
        yield f"{score.num_fewshot}-shot"
    if score.chance is not None:
        yield f"chance {score.chance:.3g}"


def _value(score: Scored) -> str:
    return f"{_number(score.value, score.stderr)}{' (at chance)' if score.at_chance else ''}"


def _base(was: Scored | None, told: Scored) -> str:
    """The base model's score, with what it was measured on where that is not what ours was."""
    if was is None:
        return ""
    where = measured_on(was)
    return f"{_value(was)} ({where})" if where and where != measured_on(told) else _value(was)


def _change(was: Scored | None, told: Scored) -> str:
    if told.difference is not None:
        return _number(told.difference, told.difference_stderr, "+")
    return "" if was is None else f"{told.value - was.value:+g}"


def _number(value: float, error: float | None, sign: str = "") -> str:
    """`0.547 ± 0.016`: two digits of the error, and the value to the same place."""
    if not error:
        return f"{value:{sign}g}{'' if error is None else ' ± 0'}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:{sign}.{places}f} ± {error:.{places}f}"

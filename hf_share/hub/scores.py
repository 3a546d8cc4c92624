# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A score and what it takes to trust it: its error, how much it was measured on, and what guessing gives.

Scores are given as data set -> metric -> number, or a mapping with the number as `value` and what is known of
it under the names of `Scored`; or as the file that lm-eval writes. A number by itself is a score of which
nothing more is known, and a card then says nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError, unknown


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A metric on a data set; None is not known."""

    value: float
    stderr: float | None = None
    items: int | None = None  # that were scored
    total: int | None = None  # that the data have
    limit: float | None = None  # that was set, of items or below 1 of their share
    num_fewshot: int | None = None
    tokens: int | None = None  # predicted, of a text
    window: int | None = None
    stride: int | None = None
    chance: float | None = None
    at_chance: bool | None = None
    difference: float | None = None  # to the base model on the same items
    difference_stderr: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """All that is known but the value."""
        return {name: getattr(self, name) for name in FACTS if getattr(self, name) is not None}


Scores = dict[str, dict[str, Scored]]  # data set -> metric


def read_scores(results: Mapping[str, Any] | None) -> Scores:
    """The scores of a mapping, checked.

    Example:
        >>> read_scores({"piqa": {"acc": {"value": 0.5, "stderr": 0.1}}})["piqa"]["acc"].stderr
        0.1
    """
    if results is None:
        return {}
    if not isinstance(results, Mapping):
        raise ConfigError("results must map each data set to its metrics: {'wikitext': {'perplexity': 12.3}}")
    given = _of_harness(results) if "results" in results and "configs" in results else results
    return {str(dataset): _metrics(dataset, metrics) for dataset, metrics in given.items()}


def known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `facts` that a score can have, with values that fit; the others are left out."""
    read = {name: FACTS[name][0](value) for name, value in facts.items() if name in FACTS}
    return {name: value for name, value in read.items() if value is not None}


def plain(value: float, facts: Mapping[str, Any]) -> float | dict[str, Any]:
    """A score as `read_scores` takes it: a number where nothing more is known."""
    told = known(facts)
    return {"value": value, **told} if told else value


def _metrics(dataset: Any, metrics: Any) -> dict[str, Scored]:
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"results of {dataset!r} must map metrics to numbers, not {metrics!r}")
    return {str(name): _scored(f"results of {dataset!r}: {name!r}", told) for name, told in metrics.items()}


def _scored(where: str, told: Any) -> Scored:
    facts = dict(told) if isinstance(told, Mapping) else {"value": told}
    if "value" not in facts:
        raise ConfigError(f"{where} has no `value`; a number, or a mapping with one, fits")
    value = facts.pop("value")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{where} is {value!r}, not a number")
    for name, given in facts.items():
        if name not in FACTS:
            raise unknown(f"fact in {where}", str(name), ["value", *FACTS], ConfigError)
        read, fits = FACTS[name]
        if given is not None and read(given) is None:
            raise ConfigError(f"{where} has {name} {given!r}; {fits} fits")
    return Scored(value=float(value), **known(facts))


def _of_harness(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What lm-eval writes: a key is `metric,filter`, and its error stands at `metric_stderr,filter`."""
    return {str(task): dict(_of_task(found, str(task), row)) for task, row in found["results"].items()}


def _of_task(found: Mapping[str, Any], task: str, row: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(row, Mapping):
        raise ConfigError(f"results of {task!r} must map metrics to numbers, not {row!r}")
    items, total = _counts(found, task)
    shared = {
        "items": items, "total": total, "limit": _in(found, "config", "limit"),
        "num_fewshot": _in(found, "n-shot", task),
    }  # fmt: skip
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        # beside the metrics stand names and counts, which have no filter
        if comma and not metric.endswith("_stderr") and isinstance(value, Real):
            error = row.get(f"{metric}_stderr,{kind}")
            yield metric if kind == "none" else key, plain(float(value), {**shared, "stderr": error})


def _counts(found: Mapping[str, Any], task: str) -> tuple[int | None, int | None]:
    """The items scored and those there are, of a task or of all tasks of a group."""
    own = _in(found, "n-samples", task)
    if own is not None:
        return _count(_in(own, "effective")), _count(_in(own, "original"))
    parts = [_counts(found, name) for name in _in(found, "group_subtasks", task) or ()]
    scored, there = zip(*parts, strict=True) if parts else ((None,), (None,))
    return _sum(scored), _sum(there)


def _sum(counts: tuple[int | None, ...]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if len(told) == len(counts) else None


def _in(found: Any, *keys: str) -> Any:
    """The value at a path of keys, None where a version of lm-eval does not write it."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _count(value: Any) -> int | None:
    read = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    return None if read < 0 else read


def _number(value: Any) -> float | None:
    finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def _error(value: Any) -> float | None:
    read = _number(value)
    return None if read is None or read < 0 else read


def _limit(value: Any) -> float | None:
    read = _error(value)
    return int(read) if read is not None and read == int(read) else read


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


# name of a fact -> its value if that fits and None if not, and what fits
READ: dict[str, tuple[Callable[[Any], Any], str]] = {
    "stderr": (_error, "a number from 0"),
    "limit": (_limit, "a number from 0"),
    "chance": (_number, "a number"),
    "at_chance": (_flag, "true or false"),
    "difference": (_number, "a number"),
    "difference_stderr": (_error, "a number from 0"),
}
COUNT = (_count, "a whole number from 0")
FACTS = {field.name: READ.get(field.name, COUNT) for field in fields(Scored) if field.name != "value"}

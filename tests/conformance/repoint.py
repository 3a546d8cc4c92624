# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What peft's tests ask of LoRA, asked of the candidates instead.

peft parametrizes its tests over lists of methods. Of each list the LoRA rows are kept, once for every
candidate, in its words (`Candidate.keywords`); rows and tests about something that only LoRA has (DoRA,
embeddings, ...) fall away. A test that no list touches is about one method by name, and is not asked.

The id of a row ends in `@candidate`; without that tail the ids of all candidates are the same, so that
outcomes can be compared.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _pytest.mark import Mark, ParameterSet
from peft import LoraConfig

from conformance import models
from conformance.candidates import LINEAR_MODELS, Candidate, Untranslatable, candidates


def repoint(upstream: type, without: dict[str, str] | None = None) -> type:
    """The test class `upstream`, reduced to what can be asked of any adapter, asked of the candidates.

    `without` names tests that are not asked although a list touches them, each with the reason.
    """
    unknown = set(without or {}) - set(dir(upstream))
    if unknown:
        raise ValueError(f"{upstream.__name__} has no test {', '.join(sorted(unknown))} any more")
    chosen = candidates()
    dropped: dict[str, Any] = {}
    asked = 0
    for name, test in inspect.getmembers(upstream, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        marks = [] if name in (without or {}) else repointed_marks(test, chosen)
        if marks:
            test.pytestmark = marks
            asked += 1
        else:
            dropped[name] = None
    if not asked:
        raise ValueError(f"nothing in {upstream.__name__} is asked of LoRA any more: its lists have changed")
    return type(upstream.__name__, (upstream,), dropped)


def repointed_marks(test: Callable, chosen: list[Candidate]) -> list[Mark]:
    """The marks of `test` with lists of candidates and local models; empty if it is not about any adapter."""
    marks = []
    about_adapters = False
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names = argument_names(mark)
            if names == ["model_id"]:
                mark = parametrize(mark, list(local_models(mark.args[1])))
            elif any(mentions_lora(row) for row in values_of(mark.args[1])):
                about_adapters = True
                mark = parametrize(mark, list(candidate_rows(names, mark.args[1], chosen)))
            if not mark.args[1]:
                return []
        marks.append(mark)
    return marks if about_adapters else []


def parametrize(mark: Mark, rows: list[ParameterSet]) -> Mark:
    return pytest.mark.parametrize(mark.args[0], rows).mark


def argument_names(mark: Mark) -> list[str]:
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def values_of(rows: Any) -> Iterator[tuple]:
    for row in rows:
        if isinstance(row, ParameterSet):
            row = row.values
        yield row if isinstance(row, (tuple, list)) else (row,)


def mentions_lora(row: tuple) -> bool:
    # `type is`, not isinstance: AdaLoRA's config is a subclass of LoRA's
    return any(value is LoraConfig or type(value) is LoraConfig for value in row)


def local_models(hub_ids: Any) -> Iterator[ParameterSet]:
    for hub_id in hub_ids:
        path = models.local(hub_id)
        if path:
            yield pytest.param(path, id=hub_id.rsplit("/", 1)[-1])


def candidate_rows(names: list[str], rows: Any, chosen: list[Candidate]) -> Iterator[ParameterSet]:
    of_lora = [row for row in values_of(rows) if mentions_lora(row)]
    for number, row in enumerate(of_lora):
        said = dict(zip(names, row, strict=True))
        for candidate in chosen:
            try:
                values = [translated(said, name, candidate) for name in names]
            except Untranslatable:
                break
            yield pytest.param(*values, id=f"{said.get('test_name', f'row{number}')}@{candidate.name}")


def translated(said: dict[str, Any], name: str, candidate: Candidate) -> Any:
    value = said[name]
    if value is LoraConfig:
        return candidate.config
    if type(value) is LoraConfig:
        return candidate.like(value)
    if "kwargs" in name:
        return LINEAR_MODELS.get(said.get("model_id", ""), {}) | candidate.keywords(value)
    if name == "model_id" and value not in LINEAR_MODELS:
        raise Untranslatable(value)
    if name == "tuner_method":
        return "adapter"  # "lora" makes the test go on to add_weighted_adapter
    return value

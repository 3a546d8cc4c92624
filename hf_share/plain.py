# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Plain values, of which a plan is made: names, numbers, and lists and dicts of them that cannot be changed.

A list becomes a tuple and a dict an `Args`, so that plans are equal and hashed by value; `thaw` gives JSON
its lists and dicts back. Everything else is a `PlanError`. This file imports the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import PlanError


def freeze(obj: Any, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        if not isinstance(value, (list, tuple)):
            raise PlanError(f"{obj.step} step: {name} must be a list, not {value!r:.80}")
        object.__setattr__(obj, name, tuple(value))


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number as JSON has it: 3, and neither 3.0 nor true, which equal 3 and 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_count(value: Any, where: str, least: int) -> None:
    if not is_whole(value) or value < least:
        raise PlanError(f"{where}: {value!r:.80} is not a whole number of at least {least}")


def require_name(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value or len(value) > 512:
        raise PlanError(f"{where}: {value!r:.80} is not a name")


def require_sites(sites: tuple, where: str) -> None:
    if not sites:
        raise PlanError(f"{where} has no sites")
    for site in sites:
        require_name(site, f"{where}: site")
    if len(set(sites)) != len(sites):
        raise PlanError(f"{where} names a site twice")


class Args(dict):
    """A rule's arguments: a dict that cannot be changed, so plans can be hashed and compared by value."""

    def _refuse(self, *args: Any, **kwargs: Any):
        raise TypeError("a plan is frozen; make another step with dataclasses.replace")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self):
        return (Args, (dict(self),))


def frozen_args(value: Any, where: str) -> Args:
    if not isinstance(value, Mapping):
        raise PlanError(f"{where} must be a JSON object, not {type(value).__name__}")
    return _plain(value, where)


def _plain(value: Any, where: str) -> Any:
    """`value` frozen, if it is made of plain JSON values; keys are sorted and numbers finite."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise PlanError(f"{where}: every key must be a string")
        return Args({key: _plain(value[key], where) for key in sorted(value)})
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, where) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PlanError(f"{where}: {value!r} is not a finite number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise PlanError(f"{where}: a whole number of {value.bit_length()} bits; at most 63 fit")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise PlanError(f"{where}: {type(value).__name__} is not a plain value; names and numbers are")


def thaw(value: Any) -> Any:
    """Lists and dicts of their own for JSON, from the frozen values of a step."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, tuple) else value

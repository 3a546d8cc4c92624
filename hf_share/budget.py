# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a subnet may cost: `bits=3.0`, `bytes=1.2GB`, `latency_ms=12`, or several of them at once.

Sizes follow the file systems and the Hub: kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, unknown


UNITS = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip
# in any case, since nobody means gigabits of a file, and without their B
BYTES = {u: size for unit, size in UNITS.items() for u in (unit.lower(), unit.lower().removesuffix("b"))}
_NUMBER = r"[\d.]+(?:[eE][+-]?\d+)?"
COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
FORM = "such as bits=3.0, bytes=1.2GB or latency_ms=12"


@dataclass(frozen=True)
class Budget:
    """The most that each named cost may be. The first one is what a ladder of budgets climbs."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, given: Budget | str | Mapping[str, Any]) -> Budget:
        """A budget from `"bits=3.0"`, `"bits=3.0,bytes=1.2GB"`, `"3.0 bits"` or `{"bits": 3.0}`.

        Example:
            >>> Budget.of("bytes=1.2GB").limits
            (('bytes', 1200000000.0),)
        """
        if isinstance(given, Budget):
            return given
        if not isinstance(given, (str, Mapping)):
            raise ConfigError(f"budget is {given!r}; {FORM}")
        pairs = [_pair(part) for part in given.split(",")] if isinstance(given, str) else list(given.items())
        limits = tuple((str(name), _number(str(name), value)) for name, value in pairs)
        if len(dict(limits)) != len(limits) or not limits:
            raise ConfigError(f"budget {given!r}: each cost once, {FORM}")
        return cls(limits)

    @property
    def cost(self) -> str:
        return self.limits[0][0]

    @property
    def limit(self) -> float:
        return self.limits[0][1]

    @property
    def name(self) -> str:
        """What a subnet of this budget is called: `3.0-bits`, `1.2-GB`; several costs are joined by `_`."""
        return "_".join(label(*pair) for pair in self.limits)

    def with_limit(self, limit: float) -> Budget:
        """This budget with another limit of its first cost."""
        return Budget(((self.cost, limit), *self.limits[1:]))

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.limits)


def label(cost: str, value: float) -> str:
    """A short name of an amount: `3.0-bits`, `63.42-kB`, `12.5-ms`, `1.5M-params`."""
    if cost == "params":
        size, letter = next(((n, c) for n, c in COUNTS if value >= n), (1.0, ""))
        return f"{_short(value / size)}{letter}-params"
    if cost != "bytes":
        return f"{_short(value)}-{cost.removeprefix('latency_')}"
    small_enough = [u for u in ("B", "kB", "MB", "GB", "TB") if UNITS[u] <= max(value, 1.0)]
    unit = small_enough[-1]
    return f"{_short(value / UNITS[unit])}-{unit}"


def _short(value: float) -> str:
    return str(float(f"{value:.4g}"))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if equals and name and value:
        return name, value
    turned = re.fullmatch(rf"\s*({_NUMBER})[\s-]*([A-Za-z]+)\s*", text)  # "3.0 bits", as `choose` takes it
    if turned is None:
        raise ConfigError(f"budget {text!r} is not of the form cost=amount, {FORM}")
    amount, unit = turned.groups()
    names = {**dict.fromkeys(BYTES, "bytes"), "ms": "latency_ms"}
    return (names[unit.lower()], amount + unit) if unit.lower() in names else (unit, amount)


def _number(name: str, value: Any) -> float:
    found = re.fullmatch(r"\s*([\d.eE+-]+)\s*([A-Za-z]*)\s*", str(value))
    try:
        if found is None or isinstance(value, bool):
            raise ValueError
        number, unit = float(found[1]), found[2]
    except ValueError:
        raise ConfigError(f"budget {name}={value!r} is no amount; {FORM}") from None
    known = BYTES if name == "bytes" else {name.rpartition("_")[2]: 1.0}
    if unit and unit.lower() not in known:
        raise unknown(f"unit of {name}", unit, UNITS if name == "bytes" else known, ConfigError)
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"budget {name}={value!r}: an amount above 0 fits")
    return number * known.get(unit.lower(), 1.0)

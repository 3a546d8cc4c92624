# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Rules with a choice of `bits`: which widths are offered, which is active, and which are still stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .errors import PlanError
from .plain import is_whole
from .rules import Rule


@dataclass(frozen=True, kw_only=True)
class Widths(Rule):
    """A rule for each of several widths.

    Args:
        widths: the widths that are offered, narrowest first.
        bits: the active width; the widest if None.
        kept: the widths that are still stored, if not all; each site then holds its active one alone.
    """

    active: ClassVar[tuple[str, ...]] = ("bits",)
    most: ClassVar[int] = 64  # bits of a width

    widths: tuple[int, ...]
    bits: int | None = None
    kept: tuple[int, ...] | None = None

    def __post_init__(self):
        fit = f"whole numbers from 1 to {self.most}"
        widths = self._rising(self.widths, "widths", fit)
        if widths[0] < 1 or widths[-1] > self.most:
            raise PlanError(f"{self.name}: widths is {self.widths!r:.80}; {fit}, rising, fit")
        object.__setattr__(self, "widths", widths)
        if self.bits is not None and (not is_whole(self.bits) or self.bits not in self.widths):
            offered = ", ".join(map(str, self.widths))
            raise PlanError(f"{self.name}: bits is {self.bits!r}; offered are {offered}")
        if self.kept is not None:
            self._read_kept()

    def _rising(self, given: Any, name: str, fit: str) -> tuple[int, ...]:
        values = tuple(given) if isinstance(given, (list, tuple)) else ()
        if not values or not all(map(is_whole, values)) or list(values) != sorted(set(values)):
            raise PlanError(f"{self.name}: {name} is {given!r:.80}; {fit}, rising, fit")
        return values

    def _read_kept(self) -> None:
        kept = self._rising(self.kept, "kept", f"some of {self.widths}")
        if any(b not in self.widths for b in kept):
            raise PlanError(f"{self.name}: kept is {self.kept!r:.80}; some of {self.widths}, rising, fit")
        if self.bits is not None and self.bits not in kept:
            raise PlanError(f"{self.name}: bits is {self.bits}, and only {kept} are kept")
        object.__setattr__(self, "kept", kept)

    @property
    def width(self) -> int:
        """The active width."""
        return self.widths[-1] if self.bits is None else self.bits

    @property
    def held(self) -> tuple[int, ...]:
        """The widths that a site stores: every one, or, once only some are kept, the active one; before it is
        known which that is, all that are kept.
        """
        if self.kept is None:
            return self.widths
        return self.kept if self.bits is None else (self.bits,)

    def only(self, b: int) -> Widths:
        """The rule of a site that stores width b alone."""
        return replace(self, bits=b, kept=(b,))

    def choices(self) -> dict[str, tuple[Any, ...]]:
        return {} if self.kept else {"bits": self.widths}

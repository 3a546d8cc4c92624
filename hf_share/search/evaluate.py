# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations of a search: counted, written down as they come, and never made twice.

A row of the file is one evaluation: the candidate, the share of the search data it saw, its value (smaller is
better), and a fingerprint of the model and the data. A search that was killed asks for the same candidates in
the same order, since it is a function of its seed, and finds the first ones answered. Another model or other
text has another fingerprint and does not see them.

The price of a search is `spent`, in evaluations on all of the search data: a candidate that the search asks
for again costs nothing, one that the file answers costs what it cost then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..lines import append_line, drop_cut_line, read_lines
from .space import Candidate


if TYPE_CHECKING:
    from rich.progress import Progress


Measure = Callable[[Candidate, float], float]  # candidate, share of the search data -> value


class Evaluator:
    """`evaluate(candidate)` is its value, smaller is better; infinite if it was no number.

    Args:
        measure: the value of a candidate on the first `share` of the search data.
        fingerprint: of everything the value depends on beside the candidate.
        parts: what the search data can be cut into, its windows; a share is rounded up to some of them.
        path: JSON lines file of evaluations, made if it does not exist; None keeps them in memory.
        fits: which candidates may be the best so far in the progress bar.
    """

    def __init__(
        self,
        measure: Measure,
        *,
        fingerprint: str = "",
        parts: int | None = None,
        path: str | Path | None = None,
        fits: Callable[[Candidate], bool] = lambda candidate: True,
        progress: bool = True,
    ) -> None:
        self.measure, self.fingerprint, self.fits, self.progress = measure, fingerprint, fits, progress
        self.parts = parts
        self.path = None if path is None else Path(path)
        self.seen: dict[tuple[Candidate, float], float] = {}  # asked for in this search
        self.measured = 0  # passes that were made now; the file answers the others
        self._kept = self._read()
        self._bar: Progress | None = None

    def __call__(self, candidate: Candidate, share: float = 1.0) -> float:
        share = self.share(share)
        key = (candidate, share)
        if key not in self.seen:
            self.seen[key] = self._kept[key] if key in self._kept else self._measure(candidate, share)
            self._show()
        return self.seen[key]

    def share(self, share: float) -> float:
        """A share of the search data as it is evaluated and counted."""
        return share if self.parts is None else math.ceil(share * self.parts - 1e-9) / self.parts

    @property
    def spent(self) -> float:
        """Evaluations so far, each counted by the share of the search data it saw."""
        return math.fsum(share for _, share in self.seen)

    @property
    def passes(self) -> int:
        """How often a candidate saw some share of the search data, new or not."""
        return len(self.seen)

    @property
    def results(self) -> dict[Candidate, float]:
        """Value of every candidate that was evaluated on all of the search data, in order."""
        return {candidate: value for (candidate, share), value in self.seen.items() if share == 1.0}

    @property
    def best(self) -> tuple[Candidate, float] | None:
        """The best candidate so far that fits, and its value."""
        found = [(c, v) for c, v in self.results.items() if self.fits(c)]
        return min(found, key=lambda pair: pair[1], default=None)

    @contextmanager
    def stage(self, name: str, total: float) -> Iterator[None]:
        """Show the evaluations made inside as a progress bar called `name`, with the best so far."""
        if self._bar is not None:
            yield
            return
        before = self.spent
        with _bar(disable=not self.progress) as bar:
            self._bar, self._task = bar, bar.add_task(name, total=total)
            self._name, self._before = name, before
            try:
                yield
            finally:
                self._bar = None

    def _measure(self, candidate: Candidate, share: float) -> float:
        value = float(self.measure(candidate, share))
        value = value if math.isfinite(value) else math.inf
        self.measured += 1
        if self.path is not None:
            number = value if math.isfinite(value) else None  # JSON has no infinity
            row = {"candidate": candidate, "share": share, "value": number, "of": self.fingerprint}
            append_line(self.path, row)
        return value

    def _read(self) -> dict[tuple[Candidate, float], float]:
        if self.path is None:
            return {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(self.path)
        try:
            rows = [row for row in read_lines(self.path) if row["of"] == self.fingerprint]
            return {(tuple(row["candidate"]), float(row["share"])): _value(row) for row in rows}
        except (KeyError, TypeError):
            raise ConfigError(
                f"{self.path} holds something else than evaluations; name another file"
            ) from None

    def _show(self) -> None:
        if self._bar is not None:
            best = self.best
            text = "" if best is None else f"  best so far {best[1]:.5g}"
            done = self.spent - self._before
            self._bar.update(self._task, completed=round(done), description=self._name + text)


def _bar(disable: bool) -> Progress:
    """On stderr: what a command prints on stdout is its result."""
    from rich import progress  # here, so that `import hf_share` does not wait for it
    from rich.console import Console

    counts = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    return progress.Progress(*counts, *times, console=Console(stderr=True), disable=disable)


def _value(row: Mapping[str, Any]) -> float:
    return math.inf if row["value"] is None else float(row["value"])

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves: a table, a page of Markdown, JSON, and a plot of quality against cost.

A task that any of the models scores within two standard errors of guessing is "at chance" and counts in no
average, or models would be averaged over different tasks.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..describe import readable
from ..files import write_text
from ..markdown import table
from ..plots import plot_costs
from .harness import Score
from .paired import Paired, paired_difference


if TYPE_CHECKING:
    from .measure import Measured


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measures of several models; differences are to the first."""

    settings: dict[str, Any]
    versions: dict[str, str]
    date: str
    models: tuple[Measured, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.models[0].tasks)

    def at_chance(self, task: str) -> list[str]:
        """The models that only guess at a task."""
        return [m.name for m in self.models if m.tasks[task].score.at_chance]

    @property
    def averaged(self) -> list[str]:
        """The tasks of the averages: scored between 0 and 1, and at chance for no model."""
        bounded = [t for t in self.tasks if self.models[0].tasks[t].score.chance is not None]
        return [task for task in bounded if not self.at_chance(task)]

    def average(self, model: Measured) -> float | None:
        tasks = self.averaged
        return statistics.fmean(model.tasks[t].score.value for t in tasks) if tasks else None

    def differences(self, model: Measured) -> dict[str, Paired]:
        """Task -> this model minus the first, on the same items, for metrics that are means over items."""
        first = self.models[0]
        pairs = {t: (first.tasks[t].score.items, model.tasks[t].score.items) for t in self.tasks}
        return {t: paired_difference(ours, theirs) for t, (ours, theirs) in pairs.items() if ours and theirs}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = []
        for model in self.models:
            row = model.to_dict()
            if self.tasks:
                row["average"] = self.average(model)
            if model is not self.models[0]:
                row["difference"] = {
                    task: {"mean": d.mean, "stderr": d.stderr, "items": d.items}
                    for task, d in self.differences(model).items()
                }
            rows.append(row)
        at_chance = {task: names for task in self.tasks if (names := self.at_chance(task))}
        return {
            "date": self.date, "versions": self.versions, "settings": self.settings, "models": rows,
            "averaged": self.averaged, "at_chance": at_chance,
        }  # fmt: skip

    def head(self) -> list[str]:
        """The columns of `rows`."""
        return [name for name, show in COLUMNS.items() if any(show(self, m) is not None for m in self.models)]

    def rows(self) -> Iterator[list[str]]:
        """A row for each model: its costs, its price for the text, its tasks and their average."""
        shown = self.head()
        for model in self.models:
            cells = [COLUMNS[name](self, model) for name in shown]
            yield [model.name, *(cell or "" for cell in cells), *(self.cell(model, t) for t in self.tasks)]

    def cell(self, model: Measured, task: str) -> str:
        """A task's score with its standard error."""
        return told(model.tasks[task].score)

    def changes(self) -> Iterator[list[str]]:
        """A row for each model but the first: what its tasks differ by on the same items."""
        for model in self.models[1:]:
            found = self.differences(model)
            yield [model.name, *(str(found[task]) if task in found else "" for task in self.tasks)]

    def notes(self) -> Iterator[str]:
        """What the tables leave out, and why."""
        for task in self.tasks:
            row = self.models[0].tasks[task]
            chance = "" if row.score.chance is None else f", chance {row.score.chance:.3f}"
            guess = self.at_chance(task)
            left = f"; **at chance** ({', '.join(guess)}), left out of averages" if guess else ""
            there = "" if row.total in (None, row.items) else f" of {row.total}"
            yield f"{task}: {row.primary} of {row.items}{there} items{chance}{left}"

    def markdown(self) -> str:
        """The page."""
        parts = ["# Evaluation", table(["model", *self.head(), *self.tasks], list(self.rows()))]
        if self.tasks and len(self.models) > 1:
            parts += [f"Difference to {self.models[0].name} on the same items, with its standard error:"]
            parts += [table(["model", *self.tasks], list(self.changes()))]
        if self.tasks:
            parts += ["\n".join(f"- {note}" for note in self.notes())]
        price = self.models[0].perplexity
        if price is not None:
            where = self.settings.get("text") or "a text"
            parts += [f"Perplexity of {where}: windows of {price.window} tokens, stride {price.stride}."]
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items() if v not in (None, []))
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return "\n\n".join([*parts, f"{self.date}; {settings or 'default settings'}; {versions}."]) + "\n"

    def plot(self, path: str | os.PathLike) -> None:
        """Draw quality against bytes and, where it was measured, against decode speed."""
        quality, points = self.quality()
        costs = {"file, MB": [m.bytes / 1e6 for m in self.models]}
        speeds = [m.tokens_per_second for m in self.models]
        if None not in speeds:
            costs["decoded tokens a second"] = speeds
        plot_costs([m.name for m in self.models], costs, quality, points, path)

    def quality(self) -> tuple[str, list[float]]:
        """The number that stands for quality, of each model: the average of tasks, or perplexity."""
        averages = [self.average(m) for m in self.models]
        if self.averaged:
            return f"average of {len(self.averaged)} tasks", [a for a in averages if a is not None]
        prices = [m.perplexity.perplexity for m in self.models if m.perplexity is not None]
        if len(prices) == len(self.models):
            return "perplexity", prices
        raise ValueError("no quality to draw: every task is at chance, and no text was scored (--text)")

    def save(self, stem: str | os.PathLike) -> list[Path]:
        """Write `<stem>.json`, `<stem>.md` and, of several models, `<stem>.png`; what was written."""
        path = Path(stem)
        path = path.with_suffix("") if path.suffix in (".json", ".md", ".png") else path
        names = [path.with_name(path.name + ending) for ending in (".json", ".md", ".png")]
        written = [
            write_text(names[0], json.dumps(self.to_dict(), indent=2)),
            write_text(names[1], self.markdown()),
        ]
        priced = all(m.perplexity is not None for m in self.models)
        if len(self.models) > 1 and (self.averaged or priced):
            self.plot(names[2])
            written.append(names[2])
        return written


def told(score: Score) -> str:
    """`0.547 ± 0.016`, marked where it is at chance."""
    error = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{error}{' (at chance)' if score.at_chance else ''}"


COLUMNS: dict[str, Callable[[Report, Any], str | None]] = {
    "file": lambda report, m: readable(m.bytes),
    "stored": lambda report, m: f"{m.stored:,}",
    "used": lambda report, m: f"{m.used:,}",
    "tokens/s": lambda report, m: None if m.tokens_per_second is None else f"{m.tokens_per_second:.1f}",
    "perplexity": lambda report, m: None if m.perplexity is None else f"{m.perplexity.perplexity:.3f}",
    "bits/byte": lambda report, m: None if m.perplexity is None else f"{m.perplexity.bits_per_byte:.4f}",
    "average": lambda report, m: None if (mean := report.average(m)) is None else f"{mean:.3f}",
}

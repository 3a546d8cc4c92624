# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a comparison leaves for people: a Markdown page with tables and verdicts, and a plot beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from ..markdown import table
from .cells import Results
from .stats import Interval


__all__ = ["by_seed", "scatter", "table", "write"]


def by_seed(results: Results, key: str, **wanted: Any) -> dict[int, float]:
    """Seed -> `key` of the cells whose settings are `wanted`."""
    return {
        row["seed"]: row[key]
        for row in results.values()
        if row.get(key) is not None and all(row.get(name) == value for name, value in wanted.items())
    }


def write(output: str | Path, text: str) -> Path:
    """The page beside the results, `<results>.md`, written to a temporary name and moved."""
    return write_text(Path(output).with_suffix(".md"), text)


def scatter(
    path: str | Path, panels: Mapping[str, Mapping[str, tuple[Interval, Interval]]], x: str, y: str
) -> None:
    """One panel for each key; in it a point with its intervals for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * len(panels), 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for number, (name, (across, up)) in enumerate(points.items()):
            half = [[i.half if i.count > 1 else 0.0] for i in (across, up)]
            style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10 % 5], "capsize": 2}
            ax.errorbar([across.mean], [up.mean], xerr=half[0], yerr=half[1], label=name, ls="", **style)
        ax.set(title=title, xlabel=x, ylabel=y)
        ax.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)

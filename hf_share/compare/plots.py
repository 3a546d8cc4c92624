# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Plots of comparisons: methods as curves over their sizes, and differences as rows.

A method has one colour and one marker in all panels and one entry in the legend, which stands outside. What
is far above the rest would press all else together: it is marked at the edge, with its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stats import Interval


COLORS = (*(f"C{i}" for i in range(10)), "navy", "darkgoldenrod", "black", "magenta", "darkgreen", "maroon")
MARKERS = "os^Dv<>PX*p"
LINE = 10.0  # points between numbers at the edge
Curves = Mapping[str, Sequence["Point"]]


@dataclass(frozen=True)
class Point:
    """Where a method stands, and a word beside it."""

    x: Interval
    y: Interval
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """Methods with their points, each joined in the order given.

    Args:
        level: a name, and the y that it stands for, drawn across.
        share: the part of the points that the y axis has to hold; those above, and those whose interval is
            longer than it, are marked at its edge.
        hollow: whether markers are drawn empty.
    """

    curves: Curves
    level: tuple[str, float] | None = None
    share: float = 1.0
    hollow: bool = False

    def shows(self, point: Point) -> bool:
        means = sorted(p.y.mean for points in self.curves.values() for p in points)
        top = means[max(round(self.share * len(means)), 1) - 1]
        return self.share == 1.0 or point.y.mean <= top and _half(point.y) <= top - means[0]


def plot(path: str | Path, panels: Mapping[str, Panel], x: str, y: str, *, log: bool = False) -> None:
    """One panel for each title, two in a row; `log` is of the x axis."""
    from matplotlib.figure import Figure

    columns, rows = min(len(panels), 2), -(-len(panels) // 2)
    width, height = (8.0, 5.4) if columns == 1 else (5.2, 4.6)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[len(panels) :]:
        unused.remove()
    looks = _looks(name for panel in panels.values() for name in panel.curves)
    known: dict[str, Any] = {}
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        ax.set(xlabel=x, ylabel=y, **({"xscale": "log"} if log else {}))
        ax.grid(alpha=0.25)
        _draw(ax, panel, looks)
        ax.set_title(title, pad=6 if panel.share == 1.0 else 62)
        if log:
            _plain_ticks(ax)
        known |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), fontsize=9, loc="outside right center", frameon=False)
    figure.draw_without_rendering()  # numbers side by side need to know how wide the panels came out
    for ax, panel in zip(axes, panels.values(), strict=False):
        _number_beyond(ax, panel, looks)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    known = enumerate(dict.fromkeys(names))
    return {n: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, n in known}


def _draw(ax: Any, panel: Panel, looks: Mapping[str, dict[str, str]]) -> None:
    empty = {"markerfacecolor": "white", "ls": ":"} if panel.hollow else {"ls": "-"}
    for name, points in panel.curves.items():
        look = {**looks[name], **empty, "ms": 6, "alpha": 0.9}
        _curve(ax, [p for p in points if panel.shows(p)], look)
        ax.plot([], [], **{**look, "markerfacecolor": looks[name]["color"], "ls": "-"}, label=name)
    if panel.level is not None:
        ax.axhline(panel.level[1], color="black", lw=1, ls="--", label=panel.level[0])
    if panel.share < 1.0:
        _limit(ax, panel)
        for p, look in _beyond(panel, looks):
            face = {"markerfacecolor": "white"} if panel.hollow else {}
            ax.plot([p.x.mean], [ax.get_ylim()[1]], clip_on=False, zorder=5, ms=6, **look, **face)


def _curve(ax: Any, points: Sequence[Point], look: dict[str, Any]) -> None:
    across, up = ([_half(i) for i in side] for side in ([p.x for p in points], [p.y for p in points]))
    bars = {"xerr": across, "yerr": up, "capsize": 2, "elinewidth": 1} if any((*across, *up)) else {}
    ax.errorbar([p.x.mean for p in points], [p.y.mean for p in points], **bars, **look, lw=1.2)
    for p in points:
        ax.annotate(p.label, (p.x.mean, p.y.mean), xytext=(5, 4), textcoords="offset points", fontsize=8)


def _half(found: Interval) -> float:
    return found.half if found.count > 1 else 0.0


def _limit(ax: Any, panel: Panel) -> None:
    shown = [p.y.mean for points in panel.curves.values() for p in points if panel.shows(p)]
    shown += [panel.level[1]] if panel.level else []
    room = 0.06 * (max(shown) - min(shown)) or 1.0
    ax.set_ylim(min(shown) - room, max(shown) + room)


def _beyond(panel: Panel, looks: Mapping[str, dict[str, str]]) -> list[tuple[Point, dict[str, str]]]:
    """What lies higher than the axis or is wider than it, from left to right."""
    found = [(p, looks[n]) for n, points in panel.curves.items() for p in points if not panel.shows(p)]
    return sorted(found, key=lambda pair: pair[0].x.mean)


def _number_beyond(ax: Any, panel: Panel, looks: Mapping[str, dict[str, str]]) -> None:
    low, edge = ax.get_ylim()
    last = -math.inf
    for p, look in _beyond(panel, looks):
        at = float(ax.transData.transform((p.x.mean, edge))[0]) * 72.0 / ax.figure.dpi
        last = max(at, last + LINE)  # side by side, for marks that stand close
        wide = f" ± {p.y.half:.1f}" if _half(p.y) > edge - low else ""
        ax.annotate(f"{p.y.mean:.2f}{wide} ↑", (p.x.mean, edge), xytext=(last - at, 7), fontsize=8,
                    textcoords="offset points", rotation=90, ha="center", va="bottom",
                    color=look["color"])  # fmt: skip


def _plain_ticks(ax: Any) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(LogLocator(subs=()))


def differences(path: str | Path, rows: Mapping[str, tuple[Interval, Sequence[float]]], x: str) -> None:
    """A row for each name: a mean with its interval, and the numbers it is of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.45 * len(rows) + 1.2), layout="constrained")
    ax = figure.subplots()
    for i, (found, each) in enumerate(rows.values()):
        half = [found.half] if found.count > 1 else None
        ax.errorbar([found.mean], [i], xerr=half, fmt="o", color="C0", capsize=3)
        ax.plot(each, [i] * len(each), "|", color="C1", ms=11)
    ax.axvline(0.0, color="black", lw=1, ls="--")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set(xlabel=x)
    ax.grid(alpha=0.25, axis="x")
    figure.savefig(path, dpi=130, bbox_inches="tight")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures. matplotlib is imported when one is drawn, since most programs draw none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .describe import Description
    from .scan import Scan


def plot_grids(description: Description, path: str | os.PathLike) -> None:
    """Depth x role of every stack; the number in a cell is the depth whose tensor is used there."""
    plt = _pyplot()
    grids = description.grids
    if not grids:
        raise ValueError(f"{description.model} has no stack of layers to draw")
    heights = [max(len(names), 3) for names, _ in grids.values()]
    width = max(max(len(rows[0]) for _, rows in grids.values()) * 0.42 + 4, 7)
    size = (width, sum(heights) * 0.28 + 1.2 * len(grids))
    ratios = {"height_ratios": heights}
    figure, axes = plt.subplots(
        len(grids), 1, figsize=size, squeeze=False, gridspec_kw=ratios, layout="constrained"
    )
    for axis, (stack, (names, rows)) in zip(axes[:, 0], grids.items(), strict=True):
        _draw(axis, plt.get_cmap("tab20"), stack, names, rows)
    figure.suptitle(
        f"{description.model}: {description.stored:,} stored, {description.used:,} used", fontsize=11
    )
    save(figure, path)


def _draw(axis: Any, colours: Any, stack: str, names: tuple[str, ...], rows: list[list[int | None]]) -> None:
    depth = len(rows[0])
    for y, row in enumerate(rows):
        for x, source in enumerate(row):
            if source is None:
                continue
            shared = row.count(source) > 1
            face = colours(source % 20) if shared else "white"
            axis.add_patch(_rectangle(x, y, face))
            axis.text(
                x, y, str(source), ha="center", va="center", fontsize=7, color="black" if shared else "grey"
            )
    axis.set(xlim=(-0.5, depth - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="depth", title=stack or "layers")
    axis.set_xticks(range(depth))
    axis.set_yticks(range(len(names)), [n.removesuffix(".weight") for n in names], fontsize=7)


def _rectangle(x: int, y: int, face: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="lightgrey", linewidth=0.6)


def plot_tradeoff(rows: list[dict[str, Any]], path: str | os.PathLike, quality: str = "perplexity") -> None:
    """Quality against bytes on disk, one named point a row: `{"name", "bytes", quality}`. Lower left is
    better.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        axis.scatter(row["bytes"] / 1e6, row[quality], s=60)
        axis.annotate(
            row["name"],
            (row["bytes"] / 1e6, row[quality]),
            textcoords="offset points",
            xytext=(7, 4),
            fontsize=9,
        )
    values = [row[quality] for row in rows]
    if max(values) > 5 * min(values):
        axis.set_yscale("log")
    axis.set(xlabel="size on disk, MB", ylabel=f"{quality} on held-out text")
    axis.margins(0.18)
    axis.grid(alpha=0.3)
    save(figure, path)


def plot_costs(
    names: list[str],
    costs: dict[str, list[float]],
    quality: str,
    values: list[float],
    path: str | os.PathLike,
) -> None:
    """Quality against each of several costs, side by side, one named point a model."""
    plt = _pyplot()
    size = (6 * len(costs), 4.2)
    figure, axes = plt.subplots(1, len(costs), figsize=size, squeeze=False, layout="constrained")
    for axis, (cost, across) in zip(axes[0], costs.items(), strict=True):
        for name, x, y in zip(names, across, values, strict=True):
            axis.scatter(x, y, s=60)
            axis.annotate(name, (x, y), textcoords="offset points", xytext=(7, 4), fontsize=9)
        axis.set(xlabel=cost, ylabel=quality)
        axis.margins(0.18)
        axis.grid(alpha=0.3)
    save(figure, path)


def plot_importance(scores: dict[str, list[float]], path: str | os.PathLike) -> None:
    """What each layer is worth, one row of bars a measure, each on its own scale."""
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(scores), 1, figsize=(7, 1.9 * len(scores)), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, (name, values) in zip(axes[:, 0], scores.items(), strict=True):
        axis.bar(range(len(values)), values, width=0.7)
        axis.set(ylabel=name, xticks=range(len(values)))
        axis.grid(axis="y", alpha=0.3)
    axes[-1, 0].set_xlabel("layer")
    save(figure, path)


def plot_scan(scan: Scan, path: str | os.PathLike) -> None:
    """The measures of a scan: bars over layers, and heat maps of head similarity and of the spectrum."""
    plt = _pyplot()
    drawn = [(draw, value) for name, draw in PANELS.items() if (value := getattr(scan, name)) is not None]
    if not drawn:
        raise ValueError("the scan holds no measure to draw")
    rows = -(-len(drawn) // 2)
    figure, axes = plt.subplots(rows, min(len(drawn), 2), figsize=(12, 4.2 * rows), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, (draw, value) in zip(axes.flat, drawn, strict=False):
        draw(axis, value)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    figure.suptitle(f"{scan.model}, stack {scan.stack}", fontsize=11)
    save(figure, path)


def _bars(title: str, xlabel: str) -> Any:
    def draw(axis: Any, values: Any) -> None:
        axis.bar(range(len(values)), values, width=0.7)
        axis.set(title=title, xlabel=xlabel, xticks=range(len(values)))
        axis.grid(axis="y", alpha=0.3)

    return draw


def _heat(title: str) -> Any:
    def draw(axis: Any, values: Any) -> None:
        rows = values if isinstance(values, dict) else dict(enumerate(values))
        # a layer is its own double, which would hide what is between the others
        own = not isinstance(values, dict)
        numbers = [[_number(v, own and x == y) for x, v in enumerate(row)] for y, row in rows.items()]
        image = axis.imshow(numbers, aspect="auto", cmap="viridis", interpolation="nearest")
        axis.figure.colorbar(image, ax=axis)
        axis.set(title=title, xlabel="layer", xticks=range(len(numbers[0])))
        axis.set_yticks(range(len(rows)), [str(name) for name in rows], fontsize=7)

    return draw


def _number(value: float | None, hidden: bool) -> float:
    return float("nan") if value is None or hidden else value


PANELS = {
    "influence": _bars("block influence", "layer"),
    "drift": _bars("KL from a layer to the next", "layer"),
    "heads": _heat("head similarity of two layers"),
    "spectrum": _heat("share of the rank that holds 90 % of the energy"),
}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: str | os.PathLike) -> None:
    """Write the picture under a temporary name, then move it."""
    path = os.fspath(path)
    stem, ending = os.path.splitext(path)
    part = f"{stem}.part{ending or '.png'}"
    figure.savefig(part, dpi=150)
    os.replace(part, path)
    _pyplot().close(figure)

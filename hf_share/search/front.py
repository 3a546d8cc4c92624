# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a search hands on: rows of subnets in `subnets.json` (`hf_share/registry.py`), a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import markdown, registry
from ..errors import ConfigError
from ..files import write_text
from ..plots import _pyplot, save
from ..registry import FILE, current, read


Row = Mapping[str, Any]  # name, choices, bytes, mean_bits, nll, split


def ordered(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Smallest first."""
    return sorted((dict(row) for row in rows), key=lambda row: (row["bytes"], row["name"]))


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[dict[str, Any]]:
    """All rows, smallest first; a new one replaces an old one of its name, and all that were measured with
    other weights.
    """
    new = list(new)
    marks = {row.get("weights") for row in new}
    old = current(old, marks.pop()) if len(marks) == 1 else old
    return ordered(({row["name"]: row for row in old} | {row["name"]: row for row in new}).values())


def write(folder: str | os.PathLike, rows: Iterable[Row]) -> Path:
    """Write rows into the folder's `subnets.json`, with a table `front.md` and a plot `front.png` of all that
    are in it. Rows of the same name there are replaced, others stay.
    """
    path = Path(folder, FILE)
    every = merged(read(path) if path.exists() else (), rows)
    registry.write(folder, every)
    write_text(path.with_name("front.md"), table(every))
    plot_front(every, path.with_name("front.png"))
    return path


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, smallest first."""
    return markdown.table(("subnet", "mean bits", "bytes", "nll"), [cells(row) for row in ordered(rows)])


def cells(row: Row) -> tuple[str, str, str, str]:
    """Name, mean bits, bytes and loss as a table shows them."""
    bits, nll = row["mean_bits"], row["nll"]
    return (
        row["name"], "-" if bits is None else f"{bits:.3f}", f"{row['bytes']:,}",
        "-" if nll is None else f"{nll:.4f}",
    )  # fmt: skip


def plot_front(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Loss on the report split against bytes, one named point a subnet. Lower left is better."""
    shown = [row for row in ordered(rows) if row.get("nll") is not None]
    if not shown:
        raise ConfigError("no subnet was measured, so there is no front to draw")
    figure, axis = _pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    sizes, losses = [row["bytes"] / 1e6 for row in shown], [row["nll"] for row in shown]
    axis.plot(sizes, losses, marker="o", linewidth=1)
    for row, x, y in zip(shown, sizes, losses, strict=True):
        axis.annotate(row["name"], (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axis.set(xlabel="size on disk, MB", ylabel="nll on the report split, nats per token")
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    save(figure, path)

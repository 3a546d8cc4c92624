# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a search hands on: rows of subnets, their file `subnets.json`, a table and a picture.

A row says what to set, what it costs and how good it is: `name, choices, bytes, mean_bits, nll, split`. `nll`
is measured on the report split; `split` names the text the subnet was chosen on and that it was measured on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, unknown
from ..plots import _pyplot, save


FILE = "subnets.json"


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """One row. `choices` is what `choose` takes: `choose(model, **row.choices)`."""

    name: str
    choices: Mapping[str, Mapping[str, Any]]
    bytes: int
    mean_bits: float | None
    nll: float | None
    split: Mapping[str, str]
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None or k != "latency_ms"}


def write_subnets(folder: str | os.PathLike, rows: Iterable[Subnet]) -> Path:
    """Write rows into the folder's `subnets.json`; rows of the same name there are replaced, others stay."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    held = {row.name: row for row in (read_subnets(folder) if path.exists() else ())}
    held.update({row.name: row for row in rows})
    part = path.with_name(path.name + ".part")
    listed = [row.to_dict() for row in ordered(held.values())]
    part.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def read_subnets(folder: str | os.PathLike) -> list[Subnet]:
    """The rows of a folder's `subnets.json`."""
    path = Path(folder, FILE)
    if not path.exists():
        raise ConfigError(
            f"{folder} has no {FILE}; a search writes it: hf-share search MODEL --budget bits=3.0"
        )
    try:
        return [Subnet(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no list of rows with {', '.join(f.name for f in fields(Subnet))}: {error}"
        ) from None


def named(rows: Sequence[Subnet], name: str) -> Subnet:
    """The row called `name`."""
    for row in rows:
        if row.name == name:
            return row
    raise unknown("subnet", name, [row.name for row in rows], ConfigError)


def ordered(rows: Iterable[Subnet]) -> list[Subnet]:
    """Smallest first."""
    return sorted(rows, key=lambda row: (row.bytes, row.name))


def table(rows: Iterable[Subnet]) -> str:
    """The rows as a Markdown table, smallest first."""
    lines = ["| subnet | mean bits | bytes | nll |", "| --- | ---: | ---: | ---: |"]
    for row in ordered(rows):
        bits = "" if row.mean_bits is None else f"{row.mean_bits:.3f}"
        nll = "" if row.nll is None else f"{row.nll:.4f}"
        lines.append(f"| {row.name} | {bits} | {row.bytes:,} | {nll} |")
    return "\n".join(lines)


def plot_front(rows: Sequence[Subnet], path: str | os.PathLike) -> None:
    """Loss on the report split against bytes, one named point a subnet. Lower left is better."""
    shown = [row for row in ordered(rows) if row.nll is not None]
    if not shown:
        raise ConfigError("no subnet was measured, so there is no front to draw")
    figure, axis = _pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    sizes, losses = [row.bytes / 1e6 for row in shown], [row.nll for row in shown]
    axis.plot(sizes, losses, marker="o", linewidth=1)
    for row, x, y in zip(shown, sizes, losses, strict=True):
        axis.annotate(row.name, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axis.set(xlabel="size on disk, MB", ylabel="nll on the report split, nats per token")
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    save(figure, path)

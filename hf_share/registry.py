# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Named subnets: `subnets.json` beside the weights, one entry for each size that was found worth a name.

    {"name": "3.0-bits", "choices": {"bits": {"layers.0.mlp.up_proj": 2, ...}}, "bytes": 5210432,
     "mean_bits": 2.998, "nll": 1.806, "split": "tinystories/valid[60000:]", "weights": "9f3c..."}

`choices` is what `choose` takes; `bytes` is the file of that subnet alone; `nll` was measured on `split`, on
which nothing was chosen. `weights` is the hash of those it was measured with: with others the numbers do not
hold, so `save_pretrained` leaves such an entry out.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import cached_file

from .budget import Budget
from .errors import CheckpointError, ConfigError, nearest, unknown
from .files import SUBNETS, write_text


FILE = SUBNETS
KEYS = ("name", "choices", "bytes", "mean_bits", "nll", "split", "weights")
AMOUNTS = {"bits": "mean_bits", "bytes": "bytes"}


def subnets(model: nn.Module | str | os.PathLike, **kwargs: Any) -> list[dict[str, Any]]:
    """The named subnets of a model, or of a folder or Hub id, smallest first; none if it has no list.

    `kwargs` are for the download: `revision`, `token`, `cache_dir`, ...

    Raises:
        CheckpointError: if the list is no list of subnets.
    """
    if isinstance(model, nn.Module):
        if known(model) is None:
            remember(model, _fetched(getattr(model, "name_or_path", ""), kwargs))
        return [dict(row) for row in known(model) or ()]
    return _fetched(str(model), kwargs)


def known(model: nn.Module) -> list[dict[str, Any]] | None:
    """The list that is kept with the model, or lies in the folder it came from; nothing is downloaded."""
    own = model.__dict__.get("_hf_share_subnets")
    place = getattr(model, "name_or_path", "")
    path = Path(place or "") / FILE
    return read(path) if own is None and place and path.is_file() else own


def _fetched(place: str, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    if not place:
        return []
    silent = ("missing_entries", "connection_errors")
    quiet = {f"_raise_exceptions_for_{what}": False for what in silent}
    path = cached_file(place, FILE, **quiet, **kwargs)
    return [] if path is None else read(path)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a `subnets.json`, smallest first."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON file: {error}") from None
    return checked(rows, str(path))


def checked(rows: Any, where: str) -> list[dict[str, Any]]:
    """`rows` as entries of a list of subnets, smallest first."""
    if not isinstance(rows, list):
        raise CheckpointError(f"{where} holds a {type(rows).__name__}; a list of subnets fits")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise CheckpointError(f"{where}: {row!r:.80} is no subnet with a name")
        for key in row:
            if key not in KEYS:
                raise unknown(f"key of subnet {row['name']!r}", key, KEYS, CheckpointError)
        if not isinstance(row.get("choices"), Mapping):
            raise CheckpointError(f"{where}: subnet {row['name']!r} has no choices")
        for key in ("bytes", "mean_bits", "nll"):
            value = row.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise CheckpointError(f"{where}: {key} of subnet {row['name']!r} is {value!r}, not a number")
    return sorted(rows, key=lambda row: row.get("bytes") or 0)


def write(folder: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as the `subnets.json` of `folder`, whole or not at all."""
    write_text(Path(folder) / FILE, json.dumps(checked(list(rows), FILE), indent=1))


def remember(model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the list with the model: `choose` finds it, and `save_pretrained` writes it."""
    model.__dict__["_hf_share_subnets"] = checked([dict(row) for row in rows], "the list of subnets")


def current(rows: Iterable[Mapping[str, Any]], weights: str | None) -> list[dict[str, Any]]:
    """The rows that were measured with these weights, and those that do not say."""
    said = {weights, None}
    return [dict(row) for row in rows if weights is None or row.get("weights") in said]


def forget(model: nn.Module, kept: Sequence[Mapping[str, Any]] = ()) -> None:
    """Drop what is listed of a model whose weights have changed, but for `kept`, and say so once."""
    gone = len(known(model) or ()) - len(kept)
    if gone > 0:
        remember(model, kept)
        warnings.warn(
            f"{gone} named subnets were measured with other weights than this model has now, so they are "
            "left out; search again (hf_share.search)",
            stacklevel=3,
        )


def find(
    rows: Sequence[Mapping[str, Any]],
    name: str | None = None,
    budget: Budget | str | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The entry called `name`, or the best one within `budget`: "3.0 bits" on average, or "1.2 MB".

    Raises:
        ConfigError: with the nearest name, or with the smallest entry if none fits.
    """
    if not rows:
        raise ConfigError("this model has no named subnets; hf_share.search finds and names some")
    if name is not None:
        found = next((row for row in rows if row["name"] == name), None)
        if found is None:
            names = [row["name"] for row in rows]
            raise ConfigError(
                f"no subnet is called {name!r}{nearest(name, names)}; there are {', '.join(names)}"
            )
        return dict(found)
    limits = _limits(budget)
    within = [row for row in rows if all(_is_within(row.get(key), most) for key, most in limits)]
    if not within:
        known = {key: [row[key] for row in rows if row.get(key) is not None] for key, _ in limits}
        least = (f"{min(found, default=None)} {key.replace('_', ' ')}" for key, found in known.items())
        raise ConfigError(f"no subnet within {budget!r}; the smallest has {', '.join(least)}")
    return dict(min(within, key=lambda row: (row.get("nll") is None, row.get("nll"), row.get("bytes"))))


def _limits(budget: Any) -> list[tuple[str, float]]:
    """Keys of an entry, and the most that each may be."""
    limits = Budget.of(budget).limits
    if any(cost not in AMOUNTS for cost, _ in limits):
        raise ConfigError(f'budget is {budget!r}; "3.0 bits" or "1200000 bytes" fit')
    return [(AMOUNTS[cost], most) for cost, most in limits]


def _is_within(amount: float | None, most: float) -> bool:
    return amount is not None and amount <= most * (1 + 1e-9)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One size cut out of the files of an elastic checkpoint, tensor by tensor: no model is built in memory.

The names and shapes of the smaller file follow from its plan, on the meta device; each of its tensors is the
first part of one in the larger file, and only that part is read. What is in memory at a time is one shard of
the output.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig

from ..attach import attach
from ..cut import cuts, narrow
from ..elastic import choose, narrowed
from ..errors import CheckpointError, ConfigError, Refused
from ..extract import subnet_config
from ..files import filling
from ..filesize import Shaped, data_bytes, parse_target, tensors_of
from ..lanes import Lanes
from ..materialize import make_plain
from ..offers import DEPTH, LOOPS
from ..plan import SharePlan
from ..registry import find, subnets
from ..rules import step_rule
from ..sites import features, prefix, sites
from ..steps import Arrange
from ..ties import attached


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = ("*token*", "*.model", "vocab*", "merges.txt", "generation_config.json", "special_tokens_map.json",
          "chat_template*", "*processor*config.json")  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A tensor to write: its `name`, what it is the first part of, and its type and shape."""

    name: str
    source: str
    shaped: Shaped


def slice_checkpoint(
    source: str | os.PathLike, folder: str | os.PathLike, *, name: str | None = None,
    budget: str | None = None, plain: bool = False, shard: str = "500MB", progress: bool = True,
    **choices: Any,
) -> Path:  # fmt: skip
    """Write one size of the elastic checkpoint `source` to `folder`, reading no more of it than that size
    has.

    Args:
        source: a folder or Hub id.
        name, budget: a subnet of its `subnets.json`, or the best of them within a budget.
        plain: write a checkpoint of the stock class, which loads without hf_share; for models whose choices
            are of structure alone, and one size for all layers.
        shard: the most bytes of a file, which is what is held in memory.
        choices: `bits`, `ffn`, `kv_groups`; with `plain` also `depth`.

    Raises:
        ConfigError: if there is no such size.
        Refused: with `plain`, if weights are made by rules, or sizes differ from layer to layer.
        CheckpointError: if a file does not hold what the plan says.

    Example:
        >>> slice_checkpoint("elastic-7b", "small-7b", ffn=0.5)  # doctest: +SKIP
    """
    home = Path(source) if Path(source).is_dir() else Path(snapshot_download(str(source)))
    most = parse_target(shard, 0)
    given = {k: v for k, v in choices.items() if v is not None}
    if sum((name is not None, budget is not None, bool(given))) != 1:
        raise ConfigError("give one of name, budget and choices (bits, ffn, kv_groups, depth)")
    small = (_plain if plain else _shared)(home, name, budget, given)
    where = _files(home)
    pieces = list(_pieces(small, where, home))
    with filling(folder) as part:
        _write(part, pieces, where, most, progress)
        small.config.save_pretrained(part)
        for pattern in BESIDE:
            for file in home.glob(pattern):
                shutil.copy(file, part / file.name)
    return Path(folder)


@dataclass(frozen=True)
class Small:
    """What is to be written: a model on the meta device, and what its tensors are called in the larger
    file.
    """

    model: Any
    renamed: Mapping[str, str]

    @property
    def config(self) -> Any:
        return self.model.config


def _shared(home: Path, name: str | None, budget: str | None, choices: Mapping[str, Any]) -> Small:
    for choice in (LOOPS, DEPTH):
        if choice in choices:
            raise ConfigError(f"{choice} stays a choice of a shared checkpoint; plain=True leaves layers out")
    config: Any = subnet_config(home, name, budget=budget, **choices)
    model = _on_meta(config)
    attach(model, SharePlan.from_dict(config.quantization_config["plan"]))
    return Small(model, {})


def _plain(home: Path, name: str | None, budget: str | None, choices: Mapping[str, Any]) -> Small:
    config: Any = AutoConfig.from_pretrained(home)
    values = getattr(config, "quantization_config", None)
    if not isinstance(values, dict) or not values.get("plan"):
        raise ConfigError(f"{home} is no shared checkpoint")
    plan = SharePlan.from_dict(values["plan"])
    if any(not isinstance(step_rule(step), Lanes) for step in plan.generates):
        raise Refused(
            "rules make weights of this model, so a plain file is no part of its own; "
            "materialize(model) forms them"
        )
    del config.quantization_config
    model = attach(_on_meta(config), plan)
    if name is not None or budget is not None:
        choices = find(subnets(home), name, budget)["choices"]
    choose(model, **choices)
    record, dot = attached(model), prefix(model)
    assert record is not None
    index = {s.name: s for s in sites(model, parts=True)}
    cut = {f"{dot}{site}": narrow(index[site], own) for site, own in cuts(narrowed(record.plan)).items()}
    model, renamed = make_plain(model), {}
    for stock in model.state_dict():
        before = _before(stock, dot, record.plan.arranges)
        weight, _, leaf = before.rpartition(".")
        if leaf == "weight" and weight in cut:
            module: Any = model.get_submodule(stock.rpartition(".")[0])
            if (cut[weight].in_features, cut[weight].out_features) != features(module):
                said, own = features(module), cut[weight].shape[::-1]
                raise Refused(
                    f"{weight!r} has {said} inputs and outputs in a plain checkpoint, whose config says one "
                    f"size for all layers, and {own} at the size that is asked for; materialize(model) fills "
                    "it with zeros"
                )
        before = record.ties.get(before, before)
        renamed[stock] = record.guards.get(before, before)
    return Small(model, renamed)


def _before(name: str, dot: str, arranges: Sequence[Arrange]) -> str:
    """What a tensor was called while the layers that do not run were there."""
    for step in arranges:
        head = f"{dot}{step.stack}."
        if name.startswith(head):
            depth, _, rest = name[len(head) :].partition(".")
            return f"{head}{step.running[int(depth)]}.{rest}"
    return name


def _on_meta(config: Any) -> Any:
    architecture = (getattr(config, "architectures", None) or ["?"])[0]
    kind: Any = getattr(transformers, architecture, None)
    if kind is None:
        raise ConfigError(f"transformers has no class {architecture!r}, which the config names")
    with torch.device("meta"):
        return kind._from_config(config)


def _files(home: Path) -> dict[str, Path]:
    """Tensor -> the file that holds it."""
    where: dict[str, Path] = {}
    if (home / INDEX).is_file():
        index = json.loads((home / INDEX).read_text(encoding="utf-8"))
        found = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise CheckpointError(f"{home / INDEX} does not say which file holds which tensor")
        for file in set(found.values()):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(f"{home / INDEX} names {file!r}, which is no weight file beside it")
        return {key: home / file for key, file in found.items()}
    if not (home / WEIGHTS).is_file():
        raise CheckpointError(f"{home} holds no {WEIGHTS}")
    with safe_open(home / WEIGHTS, framework="pt") as f:
        where = dict.fromkeys(f.keys(), home / WEIGHTS)
    return where


def _pieces(small: Small, where: Mapping[str, Path], home: Path) -> Iterator[Piece]:
    for name, shaped in tensors_of(small.model).items():
        source = small.renamed.get(name, name)
        if source not in where:
            raise CheckpointError(f"{home} lacks {source!r}, which its plan says is stored")
        yield Piece(name, source, shaped)


def _write(
    folder: Path, pieces: list[Piece], where: Mapping[str, Path], most: int, progress: bool
) -> None:
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        held = sum(data_bytes(p.shaped) for p in shards[-1])
        if shards[-1] and held + data_bytes(piece.shaped) > most:
            shards.append([])
        shards[-1].append(piece)
    names = [
        WEIGHTS if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    for file, shard in zip(names, tqdm(shards, "slicing", unit="shard", disable=not progress), strict=True):
        save_file(_read(shard, where), folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {p.name: file for file, shard in zip(names, shards, strict=True) for p in shard}
        total = sum(data_bytes(p.shaped) for p in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read(shard: list[Piece], where: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """The tensors of one shard. Files are opened for it alone, so that what was read of them can go."""
    out: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(where[piece.source] for piece in shard):
        with safe_open(file, framework="pt") as f:
            for piece in (p for p in shard if where[p.source] == file):
                out[piece.name] = _first(f.get_slice(piece.source), piece, file)
    return out


def _first(stored: Any, piece: Piece, file: Path) -> torch.Tensor:
    has, (_, shape) = tuple(stored.get_shape()), piece.shaped
    if len(has) != len(shape) or any(a < b for a, b in zip(has, shape, strict=True)):
        raise CheckpointError(f"{file}: {piece.source!r} is {list(has)}, its plan asks for {list(shape)}")
    return stored[tuple(slice(0, n) for n in shape)].contiguous() if shape else stored[...]

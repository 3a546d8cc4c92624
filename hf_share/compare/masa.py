# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Models trained from nothing, alike but for where their attention weights come from.

A recipe of `train.pretrain` says the numbers, a variant the keys of it that differ; each is trained with the
same seeds, which fix starting values and the order of the data.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..train.data import split
from ..train.pretrain import PretrainConfig, pretrain
from ..train.settings import Settings
from .cells import Cell, Results
from .plots import differences
from .record import Record, items_hash, settings_of
from .report import by_seed, intro, table, write
from .stats import interval, paired


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Which recipe, which variants of it, how many seeds."""

    recipe: str = "recipes/masa_pretrain.yaml"
    variants: dict = field(default_factory=dict)  # name -> keys of the recipe that differ
    overrides: dict = field(default_factory=dict)  # keys that differ for all: {steps: 10}
    seeds: int = 3
    output: str = "model_cards/results/compare_masa.jsonl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variants:
            raise ConfigError("variants names the models to train: {dense: {share: {}}, ...}")
        for changes in self.variants.values():
            PretrainConfig.load(self.recipe, {**self.overrides, **changes})

    # of the recipe: a cell has its own, or its numbers do not depend on them
    FREE = ("log_steps", "output", "report_to", "resume", "save_steps", "seed", "share")

    @property
    def places(self) -> dict[str, str]:
        return {}


def record(config: Config) -> Record:
    """What decides the numbers beside a cell's name: the recipe, what each variant changes, the text."""
    recipe = PretrainConfig.load(config.recipe, config.overrides)
    variants = {f"variant {name}": changes for name, changes in config.variants.items()}
    return Record({**settings_of(recipe, config.FREE), **text_of(recipe), **variants})


def text_of(recipe: PretrainConfig) -> dict[str, str]:
    """Which text, and a hash of it: the sources of the standard library differ by the version of Python."""
    parts = split(recipe)
    python = f"the standard library of Python {platform.python_version()}"
    name = python if parts.source == "stdlib" else Path(parts.source).name
    return {"text": name, "text_hash": items_hash([parts.train, parts.validation, parts.test])}


def wanted(config: Config, results: Results) -> Iterator[Cell]:
    """Every cell of the comparison."""
    recipe = yaml.safe_load(Path(config.recipe).read_text(encoding="utf-8"))
    for seed in range(config.seeds):
        for name, changes in config.variants.items():
            numbers = {**recipe, **config.overrides, **changes}
            yield Cell(f"{name}/seed={seed}", {"variant": name, "seed": seed, "recipe": numbers})


def measure(s: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and measure it on held-out text."""
    with tempfile.TemporaryDirectory() as folder:
        found = pretrain(PretrainConfig.load(None, {**s["recipe"], "seed": s["seed"], "output": folder}))
    numbers = {k: getattr(found, k) for k in ("nll", "bits_per_byte", "parameters", "step_seconds")}
    return {**numbers, "perplexity": found.perplexity}


COMMAND = "compare_masa.yaml --jobs 2"
SIZES = "Llamas ({num_hidden_layers} layers of {hidden_size})"
LENGTHS = " for {steps} steps of {batch} x {context} tokens of {text}"
INTRO = """{models} trained from nothing{lengths}, alike but for what each variant changes. Mean and 95 %
interval over seeds, on text that no training step saw. *Stored* counts every parameter once; *minus dense* is
over seeds that both have. How long a step took is not told: cells ran beside other work."""


def _intro(record: Record) -> str:
    sizes, lengths = (text.format(**record.of) if record.of else "" for text in (SIZES, LENGTHS))
    return intro(COMMAND, INTRO, models=sizes or "Llamas", lengths=lengths)


def report(config: Config, results: Results, record: Record) -> str:
    """The page of what is measured, written beside the results with its plot."""
    rows, shown = [], {}
    for name in config.variants:
        found = [r for r in results.values() if r.get("variant") == name and r["nll"] is not None]
        if found:
            nll = interval([r["nll"] for r in found])
            stored = found[0]["parameters"]
            ours, dense = (by_seed(results, "nll", variant=v) for v in (name, "dense"))
            beside = paired(ours, dense)
            rows.append([name, stored, str(nll), str(beside)])
            each = [ours[seed] - dense[seed] for seed in ours.keys() & dense.keys()]
            if each and name != "dense":
                shown[f"{name}, {stored / 1e6:.2f} M"] = (beside, each)
    head = ("variant", "stored", "NLL", "minus dense")
    text = "\n\n".join(["# MASA from scratch", _intro(record), table(head, rows)])
    write(config.output, text)
    if shown:
        words = "NLL minus dense: each seed, mean and 95 % interval"
        differences(Path(config.output).with_suffix(".png"), shown, words)
    return text

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Models trained from nothing, alike but for where their attention weights come from.

A recipe of `train.pretrain` says the numbers, a variant the keys of it that differ; each is trained with the
same seeds, which fix starting values and the order of the data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..train.pretrain import PretrainConfig, pretrain
from ..train.settings import Settings
from .cells import Cell, Results
from .report import by_seed, scatter, table, write
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

    @property
    def places(self) -> dict[str, str]:
        return {}


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


INTRO = """`python recipes/compare.py --config recipes/compare_masa.yaml --jobs 2`

Small Llamas (8 layers of 192) trained from nothing for 600 steps of 16 x 128 tokens on the sources of the
Python standard library, alike but for their attention weights. Mean and 95 % interval over seeds, on modules
that no training step saw. *Stored* counts every parameter once."""


def report(config: Config, results: Results) -> str:
    """The page of what is measured, written beside the results with its plot."""
    rows, points = [], {}
    for name in config.variants:
        found = [r for r in results.values() if r.get("variant") == name and r["nll"] is not None]
        if found:
            nll = interval([r["nll"] for r in found])
            seconds = sorted(r["step_seconds"] for r in found)[len(found) // 2]
            stored = found[0]["parameters"]
            rows.append([name, stored, str(nll), str(_beside(name, results)), f"{seconds:.2f}"])
            points[name] = (interval([r["parameters"] / 1e6 for r in found]), nll)
    head = ("variant", "stored", "NLL", "minus dense", "s/step")
    text = "\n\n".join(["# MASA from scratch", INTRO, table(head, rows)])
    write(config.output, text)
    if points:
        plot = Path(config.output).with_suffix(".png")
        scatter(plot, {"from scratch": points}, "stored parameters (millions)", "NLL")
    return text


def _beside(name: str, results: Results) -> Any:
    return paired(by_seed(results, "nll", variant=name), by_seed(results, "nll", variant="dense"))

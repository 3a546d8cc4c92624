# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters at equal budgets: a small story model is taught another kind of text.

Arms meet at about equal numbers of trained parameters (VB-LoRA, as its paper counts, at equal bytes of the
file it saves). Each arm's learning rate is searched on validation text, on a grid that grows while its best
is at an edge; then every arm is trained with the same seeds, which fix the order of the data. Measured are
the test text, and text of the kind the model came from: what adapting forgot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from ..errors import ConfigError, unknown
from ..eval.perplexity import perplexity
from ..train.settings import Settings
from ..train.text import Windows, target_bytes, windows
from .adapters_report import CLAIMS, FINAL, page
from .arms import Arm, Makers
from .cells import Cell, Results
from .claims import longer
from .rates import arm_cells, require_grid
from .record import Record, hash_of, model_facts, model_hash, need, settings_of
from .training import saved_bytes, train


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Numbers of the comparison. Lengths are in tokens; `data` is a folder with the texts named below."""

    model: str = ""
    data: str = ""
    output: str = "model_cards/results/compare_adapters.jsonl"

    domains: str = "shakespeare,fairytales"
    arms: str = "all"
    steps: int = 150
    search_steps: int = 60
    batch: int = 8
    context: int = 128
    seeds: int = 5
    grid: int = 4  # learning rates to begin with, a factor 3 apart

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [*arms(), "all"]
        for arm in self.arms.split(","):
            if arm not in known:
                raise unknown("arm", arm, known, ConfigError)
        require_grid(self.grid)

    # they decide which cells there are, or stand in a record as hashes
    FREE = ("model", "data", "output", "domains", "arms", "seeds")

    @property
    def places(self) -> dict[str, str]:
        """Where the model and the texts lie; results do not say it."""
        return {"model": self.model, "data": self.data}


def record(config: Config) -> Record:
    """What decides the numbers beside a cell's name: settings, the model, the texts of the domains."""
    need(**config.places)
    names = dict.fromkeys(name for d in config.domains.split(",") for name in files_of(d).values())
    texts = {name: hash_of(Path(config.data) / name) for name in names}
    of = {**settings_of(config, config.FREE), "model": model_hash(config.model), **texts}
    return Record(of, model_facts(config.model, AutoModelForCausalLM))


def arms() -> dict[str, Arm]:
    make = Makers(target_modules="all-linear", task_type="CAUSAL_LM")
    return {
        "LoRA r=1": make.lora("A", 1),
        "ShareA r=2": make.share("A", 2),
        "MoS e=1 p=0 r=4": make.mos("A", 1, 0, 4),
        "VeRA r=317": make.vera("A", 317),
        "VB-LoRA r=6": make.vblora("A", 6),
        "LoRA r=2": make.lora("B", 2),
        "ShareA r=3": make.share("B", 3),
        "MoS e=2 p=1 r=6": make.mos("B", 2, 1, 6),
        "VB-LoRA r=14": make.vblora("B", 14),
        "full": Arm("-", 1e-4, None),
    }


def wanted(config: Config, results: Results) -> Iterator[Cell]:
    """The cells of the comparison that can be measured, given what has been."""
    chosen = [a for a in arms() if config.arms == "all" or a in config.arms.split(",")]
    for domain in config.domains.split(","):
        shared = {"domain": domain, "batch": config.batch, "context": config.context}
        still = {"arm": "frozen", "part": "final", "steps": 0, "seed": 0, "rate": 0.0}
        yield Cell(f"{domain}/frozen", {**shared, **still})
        for arm in chosen:
            of_arm = {**shared, "arm": arm}
            cells = list(arm_cells(f"{domain}/{arm}", of_arm, arms()[arm].rate, config, results))
            yield from cells
            yield from longer(cells, CLAIMS, results, "test_nll", config.seeds, domain=domain, **FINAL)


def measure(s: Mapping[str, Any], *, model: str, data: str) -> dict[str, Any]:
    """Adapt the model that lies at `model` and measure one cell."""
    texts, tokenizer = load_texts(model, data, s["domain"], s["context"])
    set_seed(s["seed"])
    return measured(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), texts, tokenizer, s)


def measured(model: Any, texts: dict[str, Tensor], tokenizer: Any, s: Mapping[str, Any]) -> dict[str, Any]:
    arm = arms().get(s["arm"])
    if arm is not None and arm.config is not None:
        model = get_peft_model(model, arm.config)
    trained = 0 if arm is None else sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds = train(model, Windows(texts["train"]), s) if arm is not None else 0.0
    found = {"trained": trained, "step_seconds": round(seconds, 4)}
    for name in ("valid",) if s["part"] == "search" else ("valid", "test", "source"):
        size = target_bytes(tokenizer, texts[name])
        result = perplexity(model, texts[name], progress=False, text_bytes=size)
        found[f"{name}_nll"], found[f"{name}_bits_per_byte"] = result.nll, result.bits_per_byte
    if arm is not None and arm.config is not None:
        found["file_bytes"] = saved_bytes(model)
    return found


@cache
def load_texts(model: str, data: str, domain: str, context: int) -> tuple[dict[str, Tensor], Any]:
    """Windows of a domain's `train`, `valid` and `test` text, and of `source`, the model's own kind."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    cuts = {part: (Path(data) / name).read_bytes() for part, name in files_of(domain).items()}
    if "whole" in cuts:
        whole = cuts.pop("whole")
        cuts |= {"train": whole[:1_000_000], "valid": whole[1_000_000:1_055_000], "test": whole[1_055_000:]}
    cuts["source"] = cuts["source"][:60_000]
    texts = {part: raw.decode(errors="ignore").split("<|endoftext|>") for part, raw in cuts.items()}
    return {part: windows(tokenizer, docs, context) for part, docs in texts.items()}, tokenizer


def files_of(domain: str) -> dict[str, str]:
    """The files of a domain's parts, below the folder of texts; `whole` is one file to cut into parts."""
    if domain == "shakespeare":
        own = {"whole": "tinyshakespeare/input.txt"}
    else:
        own = {"train": f"{domain}/train.txt", "valid": f"{domain}/val.txt", "test": f"{domain}/test.txt"}
    return {**own, "source": "tinystories/valid.txt"}


def report(config: Config, results: Results, record: Record) -> str:
    """The page of what is measured, written beside the results with its plot."""
    named = [(name, arm.budget) for name, arm in arms().items()]
    return page(config.domains.split(","), named, results, config.output, record)

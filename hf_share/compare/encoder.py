# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters on an encoder: sentiment (SST-2) and similarity of sentences (STS-B) with a small BERT.

    u = mean of the last hidden state over the tokens
    SST-2:  softmax(H u)              cross-entropy and accuracy on the dev set; the head H is trained by all
    STS-B:  cos(u_1, u_2) -> score/5  squared error in training, Spearman's rank correlation on the dev set

Arms meet at equal budgets as in `adapters`; learning rates are searched on training rows that are kept apart.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, set_seed

from ..errors import ConfigError, unknown
from ..train.settings import Settings
from .arms import Arm, Makers
from .cells import Cell, Results
from .encoder_report import page
from .rates import arm_cells, require_grid
from .record import Record, hash_of, model_facts, model_hash, need, settings_of
from .training import saved_bytes, train


FOLDERS = {"sst2": "SST-2", "stsb": "STS-B"}
TASKS = tuple(FOLDERS)
TOGETHER = 8  # rows that the body takes at once


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Numbers of the comparison. `data` is a folder with `SST-2` and `STS-B` as GLUE's TSV files."""

    model: str = ""
    data: str = ""
    output: str = "model_cards/results/compare_encoder.jsonl"

    tasks: str = "sst2,stsb"
    arms: str = "all"
    rows: int = 8000  # of SST-2's training set
    steps: int = 250
    search_steps: int = 80
    batch: int = 32
    length: int = 64  # tokens
    seeds: int = 3
    grid: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, known in ((self.tasks, TASKS), (self.arms, [*arms(), "all"])):
            for name in given.split(","):
                if name not in known:
                    raise unknown("task or arm", name, known, ConfigError)
        require_grid(self.grid)

    # they decide which cells there are, or stand in a record as hashes
    FREE = ("model", "data", "output", "tasks", "arms", "seeds")

    @property
    def places(self) -> dict[str, str]:
        """Where the model and the rows lie; results do not say it."""
        return {"model": self.model, "data": self.data}


def record(config: Config) -> Record:
    """What decides the numbers beside a cell's name: settings, the model, the rows of the tasks."""
    need(**config.places)
    names = [f"{FOLDERS[task]}/{part}.tsv" for task in config.tasks.split(",") for part in ("train", "dev")]
    rows = {name: hash_of(Path(config.data) / name) for name in names}
    of = {**settings_of(config, config.FREE), "model": model_hash(config.model), **rows}
    return Record(of, model_facts(config.model, AutoModel))


def arms() -> dict[str, Arm]:
    make = Makers(target_modules=r".*encoder\.layer\..*\.(query|key|value|dense)")
    return {
        "LoRA r=1": make.lora("A", 1),
        "ShareA r=2": make.share("A", 2),
        "MoS e=1 p=0 r=4": make.mos("A", 1, 0, 4),
        "VeRA r=576": make.vera("A", 576),
        "VB-LoRA r=7": make.vblora("A", 7),
        "LoRA r=2": make.lora("B", 2),
        "ShareA r=3": make.share("B", 3),
        "MoS e=2 p=1 r=6": make.mos("B", 2, 1, 6),
        "full": Arm("-", 2e-5, None),
    }


def wanted(config: Config, results: Results) -> Iterator[Cell]:
    """The cells of the comparison that can be measured, given what has been."""
    chosen = [a for a in arms() if config.arms == "all" or a in config.arms.split(",")]
    for task in config.tasks.split(","):
        shared = {"task": task, "batch": config.batch, "length": config.length, "rows": config.rows}
        for arm in chosen:
            of_arm = {**shared, "arm": arm}
            for cell in arm_cells(f"{task}/{arm}", of_arm, arms()[arm].rate, config, results):
                yield cell if task == "sst2" else _two_epochs(cell)


def _two_epochs(cell: Cell) -> Cell:
    """STS-B is trained on all its rows, twice; its search keeps its own number of steps."""
    steps = cell.settings["steps"] if cell.settings["part"] == "search" else 0
    return Cell(cell.name, {**cell.settings, "steps": steps})


class Encoder(nn.Module):
    """An encoder with mean pooling: classes from a head, or the cosine of two sentences."""

    def __init__(self, body: nn.Module, width: int, task: str):
        super().__init__()
        self.body, self.task = body, task
        self.head = nn.Linear(width, 2) if task == "sst2" else None

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, length) tokens, padded at their ends -> (n, width).

        Rows of like length go through the body together: in one piece, most of a batch would be padding.
        """
        lengths = attention_mask.sum(1)
        order = lengths.argsort()
        pieces = []
        for rows in order.split(TOGETHER):
            end = int(lengths[rows].max())
            ids, mask = input_ids[rows, :end], attention_mask[rows, :end]
            hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
            kept = mask[..., None].to(hidden.dtype)
            pieces.append((hidden * kept).sum(1) / kept.sum(1))
        return torch.cat(pieces)[order.argsort()]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        u = self.pooled(input_ids, attention_mask)
        if self.head is not None:
            logits = self.head(u)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}
        one, two = u.chunk(2)  # the second sentences follow the first ones
        cosine = F.cosine_similarity(one, two)
        return {"loss": F.mse_loss(cosine, labels / 5.0), "logits": cosine}


class Rows(torch.utils.data.Dataset):
    """Rows of (sentences, label); the collator tokenises."""

    def __init__(self, rows: Sequence[tuple[tuple[str, ...], float]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tuple[str, ...], float]:
        return self.rows[index]


class Collator:
    """Rows -> a batch of token ids: first sentences, then second ones."""

    def __init__(self, tokenizer: Any, length: int, task: str):
        self.tokenizer, self.length, self.task = tokenizer, length, task

    def __call__(self, rows: Sequence[tuple[tuple[str, ...], float]]) -> dict[str, Tensor]:
        sentences = [texts[i] for i in range(len(rows[0][0])) for texts, _ in rows]
        options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": self.length}
        batch = self.tokenizer(sentences, return_token_type_ids=False, return_tensors="pt", **options)
        kind = torch.int64 if self.task == "sst2" else torch.float32
        return {**batch, "labels": torch.tensor([label for _, label in rows], dtype=kind)}


def measure(s: Mapping[str, Any], *, model: str, data: str) -> dict[str, Any]:
    """Train and measure one cell."""
    parts = load_rows(data, s["task"], s["rows"])
    set_seed(s["seed"])
    body: Any = AutoModel.from_pretrained(model, dtype=torch.float32)
    config = arms()[s["arm"]].config
    width = body.config.hidden_size
    body = body if config is None else get_peft_model(body, config)
    encoder = Encoder(body, width, s["task"])
    collator = Collator(AutoTokenizer.from_pretrained(model), s["length"], s["task"])
    trained = sum(p.numel() for p in body.parameters() if p.requires_grad)
    steps = s["steps"] or 2 * (len(parts["train"]) // s["batch"])
    rows = parts["search" if s["part"] == "search" else "train"]
    seconds = train(encoder, Rows(rows), {**s, "steps": steps}, collator)
    found = {"trained": trained, "steps": steps, "step_seconds": round(seconds, 4)}
    if s["part"] == "search":
        return {**found, "valid_nll": score(encoder, parts["valid"], collator)["loss"]}
    return {**found, **score(encoder, parts["dev"], collator), **_size(body, config)}


def _size(body: Any, config: Any) -> dict[str, int]:
    return {} if config is None else {"file_bytes": saved_bytes(body)}


@torch.inference_mode()
def score(encoder: Encoder, rows: Sequence, collator: Collator, batch: int = 64) -> dict[str, float]:
    """`loss`, and `score`: accuracy of SST-2, Spearman's correlation of STS-B."""
    encoder.eval()
    batches = [collator(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    outputs = [encoder(**b) for b in batches]
    labels = torch.cat([b["labels"] for b in batches])
    logits = torch.cat([o["logits"] for o in outputs])
    loss = sum(float(o["loss"]) * len(b["labels"]) for o, b in zip(outputs, batches, strict=True))
    if encoder.task == "sst2":
        right = float((logits.argmax(-1) == labels).float().mean())
    else:
        ranked = float(spearmanr(logits.numpy(), labels.numpy()).statistic)
        right = ranked if math.isfinite(ranked) else 0.0  # one number for all pairs ranks nothing
    return {"loss": loss / len(rows), "score": right}


@cache
def load_rows(data: str, task: str, count: int) -> dict[str, list[tuple[tuple[str, ...], float]]]:
    """`train`, `valid` (rows of the training file that `train` has not) and `dev`."""
    folder = Path(data) / FOLDERS[task]
    whole, dev = (_read(folder / f"{name}.tsv", task) for name in ("train", "dev"))
    if task == "stsb":
        cut = len(whole) - 749
        return {"train": whole, "search": whole[:cut], "valid": whole[cut:], "dev": dev}
    return {"train": whole[:count], "search": whole[:count], "valid": whole[count : count + 1000], "dev": dev}


def _read(path: Path, task: str) -> list[tuple[tuple[str, ...], float]]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if task == "sst2":
        return [((r["sentence"].strip(),), int(r["label"])) for r in rows]
    return [((r["sentence1"], r["sentence2"]), float(r["score"])) for r in rows if r.get("score")]


def report(config: Config, results: Results, record: Record) -> str:
    """The page of what is measured, written beside the results with its plot."""
    named = [(name, arm.budget) for name, arm in arms().items()]
    return page(config.tasks.split(","), named, results, config.output, record)

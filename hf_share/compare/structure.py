# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Structures at equal sizes: a model made smaller in many ways, healed with the same tokens.

Each cell shares the dense model to at most `ratio` of its parameters, measures it, trains all its weights on
text with the dense model as teacher, and measures again: perplexity, FLOPs a token, the bytes of its file,
and the same with NF4 inside. The dense model itself is healed with the same tokens. Decode speed does not
depend on values: it has cells of its own, each measured with nothing beside it.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..errors import ConfigError
from ..eval.harness import task_items, task_scores
from ..eval.perplexity import perplexity
from ..eval.speed import decode_speed
from ..guards import never_repack
from ..hub.outline import file_bytes
from ..hub.record import inner_config
from ..plan import SharePlan
from ..quantize import quantize
from ..ties import attached
from ..train.heal import HealConfig, heal
from ..train.settings import Settings
from ..train.text import target_bytes, windows
from .cells import Cell, Results
from .claims import at_other_rates, longer
from .record import Record, hash_of, items_hash, model_facts, model_hash, need, settings_of
from .structure_report import CLAIMS, CODES, FIRST, SPEED, page
from .structures import ARMS, ATTENTION, Case, OutOfReach, build, check_arms, count


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Numbers of the comparison. `train` and `test` are text files; lengths are in tokens."""

    model: str = ""
    train: str = ""
    test: str = ""
    output: str = "model_cards/results/compare_structure.jsonl"

    arms: str = "all"
    steps: int = 60
    batch: int = 8
    context: int = 256
    learning_rate: float = 1e-3
    test_bytes: int = 120_000
    windows: int = 16  # of training text, to measure layers on
    seeds: int = 3
    tasks: str = ""  # lm-eval tasks for seed 0, by name; none: perplexity alone
    task_folder: str = ""  # where their YAML and data files lie
    task_items: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arms != "all":
            check_arms(self.arms.split(","))

    # they decide which cells there are, or stand in a record as hashes
    FREE = ("model", "train", "test", "task_folder", "output", "arms", "seeds")

    @property
    def places(self) -> dict[str, str]:
        """Where the model and the texts lie; results do not say it."""
        names = ("model", "train", "test", "task_folder")
        return {name: getattr(self, name) for name in names}


def record(config: Config) -> Record:
    """What decides the numbers beside a cell's name: settings, the model, the texts, the items of tasks."""
    need(model=config.model, train=config.train, test=config.test)
    of = {**settings_of(config, config.FREE), "model": model_hash(config.model)}
    of |= {name: hash_of(getattr(config, name)) for name in ("train", "test")}
    if config.tasks:
        of |= {name: items_hash(items) for name, items in _task_items(config).items()}
    return Record(of, model_facts(config.model, AutoModelForCausalLM))


def _task_items(config: Config) -> dict[str, list[dict]]:
    try:
        return task_items(config.tasks.split(","), folder=config.task_folder or None)
    except ConfigError as error:
        raise ConfigError(f"{error} (--task_folder names the folder of the tasks' files)") from None


RATIOS = (0.9, 0.7, 0.5)
FEW = {"fold, gates": (0.5,), "recursive": (0.7, 0.5)}  # arms that have no size of their own for each ratio
ALSO = ("ShortGPT", "fold", "relaxed, SVD")  # compared where strict recursion with two loops stands, too
STRICT = 0.58
CODE_BITS = 4
CODED = ("dense", "SVD, by error")  # NF4 leaves factors as they are; the arm of factors that loses least
OF_TASKS = ("tasks", "task_items")
OF_BUILDING = ("context", "windows", "test_bytes")


def wanted(config: Config, results: Results) -> Iterator[Cell]:
    """The cells of the comparison that can be measured, given what has been."""
    cells = list(_cells(config))
    yield from cells
    plain = [Cell(c.name, {k: v for k, v in c.settings.items() if k not in OF_TASKS}) for c in cells]
    for more in (longer, at_other_rates):
        yield from more(plain, CLAIMS, results, "nll", config.seeds, **FIRST)
    for cell in cells:
        if cell.settings["seed"] == 0:
            kept = {k: v for k, v in cell.settings.items() if k in ("arm", "ratio", "seed", *OF_BUILDING)}
            yield Cell(f"{cell.name}/speed", {**kept, **SPEED}, alone=True)
    for cell in plain:
        if cell.settings["arm"] in CODED:
            yield Cell(f"{cell.name}/codes", {**cell.settings, **CODES})


def _cells(config: Config) -> Iterator[Cell]:
    chosen = config.arms.split(",")
    numbers = {k: getattr(config, k) for k in ("steps", "batch", "context", "learning_rate", "windows")}
    numbers["test_bytes"] = config.test_bytes
    tasks = {"tasks": config.tasks, "task_items": config.task_items} if config.tasks else {}
    for arm, ratio in _points():
        for seed in range(config.seeds) if config.arms == "all" or arm in chosen else ():
            settings = {"arm": arm, "ratio": ratio, "seed": seed, **numbers, **({} if seed else tasks)}
            yield Cell(f"{arm}/{ratio}/seed={seed}", settings)


def _points() -> Iterator[tuple[str, float]]:
    yield "dense", 1.0
    for arm in ("LaCo", *ARMS, *ATTENTION):
        for ratio in (*FEW.get(arm, RATIOS), *((STRICT,) if arm in ALSO else ())):
            yield arm, ratio


def measure(
    s: Mapping[str, Any], *, model: str, train: str, test: str, task_folder: str = ""
) -> dict[str, Any]:
    """Share, heal and measure one cell; or share, and measure how fast it decodes."""
    text = load_texts(model, train, test, s["context"], s["test_bytes"])
    dense: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    calibration = list(text["train"][: s["windows"]].split(4))
    whole = count(dense)
    try:
        shared = build(s["arm"], s["ratio"], Case(copy.deepcopy(dense), calibration, s["seed"]))
    except OutOfReach as error:
        return {"reachable": False, "stored": error.smallest, "of_dense": error.smallest / whole}
    if s.get("part") == SPEED["part"]:
        return {"tokens_per_second": decode_speed(shared.eval(), text["test"][:1, :16])}
    if s.get("part") == CODES["part"]:
        return _in_codes(heal(shared, text["train"], dense, _healing(s)), text)
    found = {"reachable": True, "stored": count(shared), "of_dense": count(shared) / whole}
    found |= {"plan": _plan(shared), "before": _measure(shared, text)}
    start = time.process_time()
    healed = heal(shared, text["train"], dense, _healing(s))
    found["step_seconds"] = round((time.process_time() - start) / s["steps"], 3)
    after = _measure(healed, text)
    found |= {"after": after, "nll": after["nll"], "flops_a_token": flops(healed, text["test"])}
    if s.get("tasks"):
        tokenizer, names = AutoTokenizer.from_pretrained(model), s["tasks"].split(",")
        options = {"folder": task_folder or None, "limit": s["task_items"]}
        found["scores"] = task_scores(healed, tokenizer, names, **options)
    return {**found, **_files(healed, text)}


def _healing(s: Mapping[str, Any]) -> HealConfig:
    return HealConfig(
        train="full",
        output=str(Path(tempfile.gettempdir()) / "hf_share-compare"),
        **{k: s[k] for k in ("steps", "batch", "context", "learning_rate", "seed")},
        warmup_steps=max(s["steps"] // 20, 1),
    )


def _plan(model: Any) -> dict[str, Any]:
    shared = attached(model)
    return (shared.plan.source() if shared else SharePlan()).to_dict()


def _measure(model: Any, text: Mapping[str, Any]) -> dict[str, float]:
    found = perplexity(model, text["test"], progress=False, text_bytes=text["bytes"])
    return {"nll": found.nll, "bits_per_byte": found.bits_per_byte or 0.0}


def _in_codes(model: Any, text: Mapping[str, Any]) -> dict[str, Any]:
    """The same with all that it stores in codes of four bits, in our own format."""
    quantize(model, CODE_BITS)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {"codes_nll": _measure(model, text)["nll"], "codes_bytes": file_bytes(Path(folder))}


def _files(model: Any, text: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of the model's file in fp32, and with NF4 inside, which is measured as it loads."""
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain", Path(folder) / "nf4"
        model.save_pretrained(plain)
        record = attached(model)
        if record is None or record.plan.is_plain:
            quantised = AutoModelForCausalLM.from_pretrained(plain, quantization_config=four)
        else:
            quantised = AutoModelForCausalLM.from_pretrained(plain, config=inner_config(plain, four))
        quantised.save_pretrained(small)
        never_repack(quantised)  # the packed kernel refuses some shapes
        nf4 = {"nf4_nll": _measure(quantised, text)["nll"], "nf4_bytes": file_bytes(small)}
        return {"bytes": file_bytes(plain), **nf4}


@torch.no_grad()
def flops(model: Any, ids: Tensor) -> int:
    """Floating point operations a token of one window takes, head included."""
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids[:1])
    return counter.get_total_flops() // ids.shape[1]


@cache
def load_texts(model: str, train: str, test: str, context: int, size: int) -> dict[str, Any]:
    """Windows to heal on and to measure on, and the bytes the latter stand for."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    documents = Path(train).read_text(encoding="utf-8").split("<|endoftext|>")
    rest = Path(test).read_bytes()[:size].decode(errors="ignore").split("<|endoftext|>")
    found = {"train": windows(tokenizer, documents, context), "test": windows(tokenizer, rest, context)}
    return {**found, "bytes": target_bytes(tokenizer, found["test"])}


def report(config: Config, results: Results, record: Record) -> str:
    """The page of what is measured, written beside the results with its plots."""
    return page([arm for arm, _ in dict.fromkeys(_points())], results, config.output, record)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The recipes' trainers on two gloo processes, DDP and FSDP2, train what one process trains: equal global
batch, equal order, rows of unequal length. What they save loads in one process, each tensor once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from helpers import elements, pointers, stored, unique
from peft import PeftModel
from zoo import build, logits

from hf_share.ties import attached
from hf_share.train.pretrain import train_tokenizer


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("scale")]  # one launch for all

WORKER = Path(__file__).parent / "workers" / "recipe.py"
KINDS, WAYS = ("adapter", "folded", "recursive", "masa"), ("ddp", "fsdp2")


def start(log: Path, worker: Path, *arguments: str, **env: str) -> tuple[subprocess.Popen, Path]:
    path = os.pathsep.join([str(WORKER.parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    with log.open("w") as out:
        command = [sys.executable, str(worker), *arguments]
        return subprocess.Popen(command, env=known, stdout=out, stderr=subprocess.STDOUT), log


def two(folder: Path, worker: Path, *arguments: str, **env: str) -> list[tuple[subprocess.Popen, Path]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", **env}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [start(folder / f"{r['RANK']}.log", worker, *arguments, **known, **r) for r in ranks]


def finish(started: list[tuple[subprocess.Popen, Path]]) -> None:
    try:
        codes = [process.wait(timeout=540) for process, _ in started]
    finally:
        for process, _ in started:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for _, log in started)


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    _write_texts(folder)
    one = start(folder / "one.log", WORKER, str(folder), "single")
    finish([one, *two(folder, WORKER, str(folder), *WAYS)])
    return folder


def _write_texts(folder: Path) -> None:
    documents = [f"{i} and {i % 7} make {i + i % 7}. " * 3 for i in range(600)]
    (folder / "text.txt").write_text("<|endoftext|>".join(documents))
    rows = [{"prompt": f"{i} and {i % 7}", "completion": f" make {i + i % 7}." * (i % 5)} for i in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build("llama", vocab_size=300).save_pretrained(folder / "base")
    train_tokenizer(documents, vocab_size=290, context=64).save_pretrained(folder / "base")


def read(launch: Path, kind: str, way: str) -> dict:
    return torch.load(launch / f"{kind}-{way}.pt")


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_and_two_agree(kind, way, launch):
    one, two = read(launch, kind, "single"), read(launch, kind, way)
    assert len(one["losses"]) == len(two["losses"]) == 20 and len(set(one["losses"])) > 10
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5)
    assert two["losses"][-1] == pytest.approx(one["losses"][-1], rel=1e-3)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        assert relative(gradient, two["gradients"][name]) <= 1e-5, name
    assert relative(one["logits"], two["logits"]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_sharded(kind, launch):
    """Each process holds half of every tensor; tied layers are one unit, and no layer is left to the root."""
    found = read(launch, kind, "fsdp2")
    assert found["units"] == [True] * 4
    layers = {name: held for name, held in found["held"].items() if ".layers." in name}
    assert len(layers) >= 24 and all(2 * local == full for local, full in layers.values())
    assert set(found["held"]) >= set(found["gradients"])
    assert not read(launch, kind, "ddp")["held"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_loads_in_one_process(kind, way, launch):
    folder, found = launch / f"{kind}-{way}", read(launch, kind, way)
    if kind == "adapter":
        torch.manual_seed(5)
        model = PeftModel.from_pretrained(build("llama"), folder).eval()
        assert elements(folder) == sum(g.numel() for g in found["gradients"].values())
    else:
        model = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
        guards = sum(shape == (1,) for shape in stored(folder).values())
        assert attached(model) is not None and elements(folder) == unique(model) + guards
        assert bool(pointers(model)) == (kind != "masa")
    assert torch.equal(logits(model), found["logits"])


NEEDS_TRL = pytest.mark.skipif(find_spec("trl") is None, reason="the extra hf_share[train] is not installed")
ADAPTERS = ["share_lora", "mos"]
RECIPES = [*ADAPTERS, "streamed", "full", "cached", "adapter", "exits", "bits", "neurons", "muon", "adamw"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", [*RECIPES, pytest.param("instructed", marks=NEEDS_TRL)])
def test_a_recipe_gives_back_the_whole_model(recipe, way, launch):
    """The recipes themselves: what they return on two processes is what one gives, and saves."""
    one, two = read(launch, f"recipe-{recipe}", "single"), read(launch, f"recipe-{recipe}", way)
    # pretraining saves in bf16, and Muon computes in it: a rounding goes the other way here and there
    assert relative(one["logits"], two["logits"]) < {"muon": 5e-3, "adamw": 1e-3}.get(recipe, 1e-5)
    folder = launch / f"recipe-{recipe}-{way}"
    if recipe in (*ADAPTERS, "instructed", "streamed"):
        torch.manual_seed(5)
        base: Any = build("llama")
        if recipe not in ADAPTERS:
            base = tf.AutoModelForCausalLM.from_pretrained(launch / "base")
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(model.eval()), two["logits"])


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    _write_texts(folder)
    for way in WAYS:
        finish(two(folder, WORKER.with_name("resumed.py"), str(folder), way))
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("recipe", ["finetune", "full", "adapter", "worse", "muon"])
def test_two_processes_go_on_from_a_checkpoint(recipe, way, gone_on):
    """To the bit what they train unbroken; norms trained beside an adapter, and the best step, come back."""
    unbroken, resumed = torch.load(gone_on / f"{recipe}-{way}.pt")
    assert torch.equal(unbroken, resumed)
    folder = gone_on / f"{recipe}-{way}" / "checkpoints"
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert recipe != "worse" or Path(state["best_model_checkpoint"]).name == "checkpoint-2"


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_zero_trains_what_one_process_trains(tmp_path):
    """ZeRO-2 and ZeRO-3 on CPUs, over ties and stores."""
    finish(two(tmp_path, WORKER.with_name("zero.py"), "2", "3", DS_ACCELERATOR="cpu"))
    lines = [line for line in (tmp_path / "0.log").read_text().splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    assert [case["stage"] for case in found] == [2, 3]
    for case in found:
        assert case["losses"] == pytest.approx(case["expected"], rel=1e-5)
        assert case["losses"][-1] < case["losses"][0] and case["error"] < 1e-5

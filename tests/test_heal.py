# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Healing: an adapter on shared weights, or all of them; a dense model may be shared first."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import zoo
from helpers import elements, pointers, unique
from promises import source
from safetensors.torch import load_file
from workers import killed
from zoo import logits

import hf_share
from hf_share import ConfigError, RecursiveConfig
from hf_share.train.heal import HealConfig, heal, load
from hf_share.train.main import main
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.stored import as_stored


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WINDOWS = torch.randint(3, 96, (16, 16), generator=torch.Generator().manual_seed(1))
SHORT = {"steps": 40, "batch": 4, "warmup_steps": 0, "context": 16, "kd_weight": 1.0}


def distance(model, teacher) -> float:
    with torch.no_grad():
        ours, theirs = (m(input_ids=WINDOWS).logits.log_softmax(-1) for m in (model, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("train", ["adapter", "full"])
def test_healing_comes_nearer_to_the_teacher_and_stays_shared(train, tmp_path):
    model = hf_share.share(copy.deepcopy(source("llama")), RecursiveConfig(init="average"))
    sharing, size, before = pointers(model), unique(model), distance(model, source("llama"))
    weight = model.model.layers[0].mlp.up_proj.weight.clone()
    rate = {"adapter": 5e-3, "full": 1e-3}[train]
    config = HealConfig(output=str(tmp_path), train=train, learning_rate=rate, **SHORT)
    teacher = copy.deepcopy(source("llama"))
    healed = heal(model, WINDOWS, teacher, config)
    assert distance(healed, source("llama")) < 0.7 * before
    assert pointers(healed) == sharing
    moved = not torch.equal(healed.model.layers[0].mlp.up_proj.weight, weight)
    assert moved == (train == "full") and (unique(healed) == size) == (train == "full")
    healed.save_pretrained(tmp_path / "healed")
    again = type(healed).from_pretrained(tmp_path / "healed")
    assert torch.equal(logits(again), logits(healed)) and again.config.use_cache
    assert elements(tmp_path / "healed") == unique(healed) + 1


def test_a_dense_model_is_shared_first(tmp_path):
    source("llama").save_pretrained(tmp_path / "dense")
    structure = "{method: recursive, num_loops: 2, lora_rank: 2}"
    config = HealConfig.load(None, {"model": str(tmp_path / "dense"), "structure": structure})
    model, teacher = load(config)
    assert hf_share.choices(model)["loops"] == (1, 2)
    assert torch.equal(logits(teacher), logits(source("llama"))), "it is its own teacher"
    model.save_pretrained(tmp_path / "shared")
    with pytest.raises(ConfigError, match="is shared already; leave out structure"):
        load(HealConfig(model=str(tmp_path / "shared"), structure=config.structure))
    assert load(HealConfig(model=str(tmp_path / "shared")))[1] is None


FULL = ["--train", "full"]
KEPT = {"heal": FULL, "adapter": ["--r", "1"], "early_exit": [], "elastic": FULL}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore")
def test_the_result_is_stored_as_its_model_was(name, tmp_path):
    task = "heal" if name == "adapter" else name
    model = hf_share.share(zoo.build("llama", vocab_size=300), RecursiveConfig()).bfloat16()
    model.save_pretrained(tmp_path / "in")
    words = ["counting can be learnt"] * 20
    train_tokenizer(words, vocab_size=290, context=64).save_pretrained(tmp_path / "in")
    numbers = {**killed.write_text(tmp_path), "steps": 2, "save_steps": 2, "eval_steps": 2, "context": 16}
    numbers |= {"teacher": "largest"} if task == "elastic" else {}

    def train(**other: object) -> Path:
        words = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), *KEPT[name]]
        main(task, [*words, *(f"--{key}={value}" for key, value in {**numbers, **other}.items())])
        return tmp_path / "out"

    types = {str(tensor.dtype) for tensor in load_file(train() / "model.safetensors").values()}
    assert types == {"torch.bfloat16"}
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("in", "out")]
    assert name == "adapter" or sizes[1] <= sizes[0]
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    inside = [load_file(file) for file in checkpoint.glob("*.safetensors")]
    assert "torch.float32" in {str(tensor.dtype) for tensors in inside for tensor in tensors.values()}
    train(dtype="float32")  # of the same run: its checkpoints serve
    wider = {str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert wider == {"torch.float32"}


def test_only_what_is_stored_in_float32_changes_its_type():
    model = hf_share.share(copy.deepcopy(source("llama")), RecursiveConfig())
    sharing, rope = pointers(model), model.model.rotary_emb.inv_freq.clone()
    as_stored(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and pointers(model) == sharing
    assert torch.equal(model.model.rotary_emb.inv_freq, rope)
    with pytest.raises(ConfigError, match="unknown dtype 'bf16'; "):
        HealConfig(dtype="bf16")


BAD = {
    "train": ({"train": "all"}, "unknown train 'all'"),
    "no method": ({"structure": {"num_loops": 2}}, "structure names a method"),
    "method": ({"structure": "{method: recursiv}"}, "unknown method 'recursiv'; did you mean 'recursive'"),
    "key": ({"structure": {"method": "recursive", "loops": 2}}, "unexpected keyword argument 'loops'"),
    "value": ({"structure": {"method": "recursive", "num_loops": 1}}, "num_loops is 1"),
    "no dict": ({"structure": "recursive"}, "structure='recursive' is not of type dict"),
    "kd_weight": ({"kd_weight": 1.5}, "kd_weight=1.5 must lie in"),
    "temperature": ({"temperature": 0.0}, "temperature=0.0 above 0"),
    "tail_weight": ({"tail_weight": -1.0}, "tail_weight=-1.0 must be finite"),
    "replace_start": ({"replace_start": 0.0}, "replace_start=0.0 must lie in"),
    "learning_rate": ({"learning_rate": -1.0}, "learning_rate=-1.0 must be finite"),
    "no yaml": ({"structure": "{a"}, "is not of type dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_do_not_fit_are_refused(name):
    values, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        HealConfig.load(None, values)


@pytest.mark.parametrize("recipe", ["heal.yaml", "recursive.yaml", "fold.yaml", "svd.yaml"])
def test_recipes_are_settings(recipe, request):
    config = HealConfig.load(request.config.rootpath / "recipes" / recipe)
    assert bool(config.structure) == (recipe != "heal.yaml")

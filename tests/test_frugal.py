# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Training in less memory: checkpointing changes no number, bfloat16 few, and a base of few bits stays."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from helpers import stored
from peft import PeftModel
from promises import source
from workers import killed
from zoo import build, logits

import hf_share
from hf_share import ConfigError, ElasticConfig, FoldConfig, RecursiveConfig, Refused
from hf_share.train.early_exit import EarlyExitConfig, train_exits
from hf_share.train.elastic import ElasticRunConfig, train_elastic
from hf_share.train.few_bits import load_frozen
from hf_share.train.finetune import FinetuneConfig, finetune
from hf_share.train.fsdp import blueprint
from hf_share.train.heal import HealConfig, heal, load
from hf_share.train.main import main
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.stored import as_stored


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WINDOWS = 3 + torch.arange(64)[:, None] % 20 + torch.arange(16)
STEPS = 4
SHORT = {"steps": STEPS, "batch": 4, "warmup_steps": 0, "context": 16, "log_steps": 1, "save_steps": STEPS}
FOLD, LOOPS = FoldConfig(group_size=2), RecursiveConfig(num_loops=2)
CODES = {"preset": "hf_share", "group_size": 16}


def shared(arch: str, config):
    return hf_share.share(copy.deepcopy(source(arch)), config)


def adapted(arch: str, method: str, **numbers):
    adapter = {"method": method, "r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}
    return finetune(copy.deepcopy(source(arch)), WINDOWS, FinetuneConfig(adapter=adapter, **numbers))


def healed(arch: str, **numbers):
    return heal(shared(arch, FOLD), WINDOWS, copy.deepcopy(source(arch)), HealConfig(**numbers))


def elastic(config: ElasticConfig, **numbers):
    torch.manual_seed(0)
    model = hf_share.share(copy.deepcopy(source("llama")), config)
    teacher = "largest" if numbers.get("preset") == "bignas" else copy.deepcopy(source("llama"))
    return train_elastic(model, WINDOWS, teacher, ElasticRunConfig(**numbers))


RUNS = {
    "share_lora": lambda **n: adapted("llama", "share_lora", **n),
    "mos": lambda **n: adapted("gpt2", "mos", **n),
    "fold": lambda **n: healed("llama", train="full", hidden_weight=0.1, **n),
    "fold, gpt2": lambda **n: healed("gpt2", train="full", **n),
    "fold, adapter": lambda **n: healed("llama", norms=True, **n),
    "replaced": lambda **n: healed("llama", train="full", replace_start=0.1, replace_steps=99, **n),
    "exits": lambda **n: train_exits(shared("llama", LOOPS), WINDOWS, EarlyExitConfig(**n)),
    "codes": lambda **n: elastic(ElasticConfig(**CODES), **n),
    "in place": lambda **n: elastic(ElasticConfig(bits=[], ffn=[0.5], depth=[2]), preset="bignas", **n),
}


def losses(folder: Path) -> list[float]:
    state = folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json"
    return [row["loss"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]


@pytest.fixture
def passes(monkeypatch):
    """How often a layer was run whose inside is computed again for gradients."""
    counts = [0]
    stock = torch.utils.checkpoint._checkpoint_without_reentrant_generator

    def counted(*args, **kwargs):
        counts[0] += 1
        return stock(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", counted)
    return counts


@pytest.mark.parametrize("name", RUNS)
def test_checkpointing_changes_no_number(name, passes, tmp_path):
    plain = RUNS[name](output=str(tmp_path / "plain"), **SHORT)
    assert passes == [0]
    again = RUNS[name](output=str(tmp_path / "again"), checkpointing=True, **SHORT)
    assert passes[0] >= 2 * STEPS
    assert losses(tmp_path / "again") == losses(tmp_path / "plain")
    assert len(losses(tmp_path / "again")) == STEPS
    pairs = zip(plain.named_parameters(), again.named_parameters(), strict=True)
    assert all(one == two and torch.equal(p, q) for (one, p), (two, q) in pairs)
    assert not again.is_gradient_checkpointing and again.config.use_cache


@pytest.mark.parametrize("name", ["share_lora", "fold", "fold, adapter", "exits", "codes"])
def test_bfloat16_computes_nearly_the_same(name, tmp_path):
    plain = RUNS[name](output=str(tmp_path / "plain"), **SHORT)
    half = RUNS[name](output=str(tmp_path / "half"), bf16=True, **SHORT)
    found, expected = losses(tmp_path / "half"), losses(tmp_path / "plain")
    assert found != expected and found == pytest.approx(expected, rel=2e-2)
    assert {p.dtype for p in half.parameters()} == {p.dtype for p in plain.parameters()}
    assert "forward" not in vars(half) and "_original_forward" not in vars(half)
    assert torch.equal(logits(copy.deepcopy(half)), logits(half)) and logits(half).dtype == torch.float32


KINDS = {4: "Linear4bit", 8: "Linear8bitLt"}


def base(folder: Path, dtype=torch.float32, config=None) -> str:
    """A folder with a model, shared by `config`, and a tokenizer."""
    model = build("llama", vocab_size=300, hidden_size=64, intermediate_size=128).to(dtype)
    model = model if config is None else hf_share.share(model, config)
    model.save_pretrained(folder)
    train_tokenizer(["counting can be learnt"] * 20, vocab_size=290, context=64).save_pretrained(folder)
    return str(folder)


def command(task: str, model: str, out: Path, **settings) -> None:
    text = killed.write_text(out.parent)
    words = {**text, **SHORT, "eval_steps": 2, "save_steps": 2, "eval_windows": 4, **settings}
    main(task, [model, "-o", str(out), *(f"--{key}={value}" for key, value in words.items())])


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("config", [None, FOLD], ids=["dense", "fold"])
def test_an_adapter_trains_over_a_base_of_few_bits(bits, config, tmp_path):
    model = base(tmp_path / "base", config=config)
    settings = {"bits": bits, "checkpointing": True, "learning_rate": 1e-2}
    command("finetune", model, tmp_path / "broken", **settings, steps=2)
    command("finetune", model, tmp_path / "broken", **settings)
    command("finetune", model, tmp_path / "whole", **settings)
    assert stored(tmp_path / "broken") == stored(tmp_path / "whole")
    assert all("hf_share_" in key for key in stored(tmp_path / "whole"))
    frozen = load_frozen(model, 16, bits)
    assert type(frozen.model.layers[1].mlp.up_proj).__name__ == KINDS[bits]
    plain = logits(frozen)
    assert not torch.equal(logits(PeftModel.from_pretrained(frozen, tmp_path / "whole").eval()), plain)


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_is_healed_over_few_bits_loads_exactly(bits, dtype, tmp_path):
    model = base(tmp_path / "base", dtype, FOLD)
    config = HealConfig(model=model, output=str(tmp_path / "out"), bits=bits, norms=True, **SHORT)
    shared, _ = load(config)
    codes = shared.model.layers[0].mlp.up_proj.weight.clone()
    healed = as_stored(heal(shared, WINDOWS, load_frozen(model, 16), config), dtype)
    before = logits(healed)
    healed.save_pretrained(tmp_path / "healed")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "healed")
    assert torch.equal(logits(again), before)
    first, second = (again.model.layers[i].mlp.up_proj for i in (0, 1))
    assert type(first).__name__ == KINDS[bits] and first.weight is second.weight
    assert torch.equal(first.weight, codes) and not torch.equal(first.share.B, second.share.B)


def test_healing_by_command_takes_bits_and_bfloat16(tmp_path):
    model = base(tmp_path / "base", torch.bfloat16, FOLD)
    command("heal", model, tmp_path / "out", bits=4, bf16=True, checkpointing=True, dtype="bfloat16")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert logits(again).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="quantised already; leave out bits"):
        load_frozen(str(tmp_path / "out"), 16, 4)


def test_a_structure_goes_over_few_bits_where_it_needs_no_numbers(tmp_path):
    model = base(tmp_path / "base")
    shared, teacher = load(HealConfig(model=model, bits=4, structure={"method": "fold", "group_size": 2}))
    layers = shared.model.layers
    assert type(layers[0].mlp.up_proj).__name__ == "Linear4bit" and type(teacher.lm_head).__name__ == "Linear"
    assert layers[0].mlp.up_proj.weight is layers[1].mlp.up_proj.weight
    with pytest.raises(Refused, match="quantised"):
        load(HealConfig(model=model, bits=4, structure={"method": "recursive", "init": "average"}))


def test_weights_of_few_bits_are_not_divided_by_fsdp2():
    accelerator = SimpleNamespace(is_fsdp2=True, state=None)
    with pytest.raises(Refused, match="leave out bits"):
        blueprint(SimpleNamespace(accelerator=accelerator, model=SimpleNamespace(is_quantized=True)))


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FinetuneConfig, {"bits": 3}, "4 .nf4. or 8 .int8. fits"),
        (HealConfig, {"bits": 2}, "4 .nf4. or 8 .int8. fits"),
        (HealConfig, {"bits": 4, "train": "full"}, "train=adapter fits"),
        (EarlyExitConfig, {"checkpointing": "maybe"}, "not of type bool"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, given, message):
    with pytest.raises(ConfigError, match=message):
        config(**given)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: any method's adapter learns, the base stays as it is, the recipes' settings are read."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers import stored
from peft import PeftModel
from promises import source
from transformers.integrations import INTEGRATION_TO_CALLBACK
from zoo import build, logits

from hf_share import ConfigError, MosConfig, PlanError, ShareLoraConfig
from hf_share.eval.causal import load_causal
from hf_share.eval.perplexity import perplexity
from hf_share.train import finetune as task
from hf_share.train.finetune import FinetuneConfig, finetune
from hf_share.train.heal import HealConfig, heal
from hf_share.train.pretrain import train_tokenizer


RECIPES = Path(__file__).resolve().parents[1] / "recipes"
WINDOWS = 3 + torch.arange(64)[:, None] % 20 + torch.arange(16)  # counting, which can be learnt
SHORT = {"steps": 30, "batch": 4, "warmup_steps": 0, "context": 16, "learning_rate": 2e-2}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "adapter", [{"method": "share_lora", "r": 2}, {"method": "mos", "r": 4}], ids=["share_lora", "mos"]
)
def test_an_adapter_learns_and_the_base_stays(adapter, tmp_path):
    config = FinetuneConfig(
        adapter={**adapter, "target_modules": "all-linear"}, output=str(tmp_path), **SHORT
    )
    model = copy.deepcopy(source("llama"))
    adapted = finetune(model, WINDOWS, config)
    with torch.no_grad():
        before, after = (float(m(input_ids=WINDOWS, labels=WINDOWS).loss) for m in (source("llama"), adapted))
    assert after < before - 0.2
    assert torch.equal(logits(copy.deepcopy(adapted).unload()), logits(source("llama")))
    adapted.save_pretrained(tmp_path / "adapter")
    assert all("hf_share_" in key for key in stored(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(copy.deepcopy(source("llama")), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=WINDOWS).logits, adapted(input_ids=WINDOWS).logits)
    assert adapted.config.use_cache


def test_an_adapter_that_does_not_fit_is_refused_before_any_work(tmp_path, monkeypatch):
    build("llama", vocab_size=300).save_pretrained(tmp_path)
    train_tokenizer(["counting can be learnt"] * 20, vocab_size=290, context=64).save_pretrained(tmp_path)
    monkeypatch.setattr(task, "perplexity", None)
    monkeypatch.setattr(task, "read_rows", None)
    with pytest.raises(PlanError, match=r"rank 8 does not fit.*over 4 layers .*at most r = 5; a larger"):
        task.main(["--model", str(tmp_path), "--config", str(RECIPES / "mos.yaml"), "--context", "16"])


def test_an_adapter_that_trains_nothing_is_refused(tmp_path):
    adapter = {"method": "fold", "group_size": 2}
    config = FinetuneConfig(adapter=adapter, output=str(tmp_path), **SHORT)
    message = "'fold' has nothing that trains.*hf-share train heal"
    with pytest.raises(ConfigError, match=message):
        finetune(copy.deepcopy(source("llama")), WINDOWS, config)
    with pytest.raises(ConfigError, match=message):
        task._require_fit(config.adapter_config(), copy.deepcopy(source("llama")))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_reports_to_what_is_not_installed_are_refused_before_any_work(name, monkeypatch):
    def missing(self):
        raise RuntimeError(f"Run `pip install {name}`.")

    monkeypatch.setattr(INTEGRATION_TO_CALLBACK[name], "__init__", missing)
    with pytest.raises(ConfigError, match=f"report_to={name} needs a package .*pip install {name}"):
        HealConfig(model="m", report_to=name).need_model("the model")


def test_a_method_that_measures_has_the_first_rows():
    asked = FinetuneConfig(adapter={"method": "masa", "ratio": 0.6}).adapter_config()
    assert torch.equal(torch.cat(task._with_text(asked, WINDOWS)._calibration), WINDOWS)
    plain = FinetuneConfig().adapter_config()
    assert task._with_text(plain, WINDOWS)._calibration is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [1, 5])
def test_validation_sees_windows_that_fill_no_batch(count, tmp_path):
    config = FinetuneConfig(output=str(tmp_path), save_steps=2, eval_steps=2, **{**SHORT, "steps": 2})
    held = torch.randint(3, 96, (count, 16), generator=torch.Generator().manual_seed(1))
    adapted = finetune(copy.deepcopy(source("llama")), WINDOWS, config, held)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    with torch.no_grad():
        loss = float(adapted(input_ids=held, labels=held).loss)
    assert state["best_metric"] == pytest.approx(loss, rel=1e-4)


def test_rows_that_fill_no_batch_are_refused(tmp_path):
    config = FinetuneConfig(output=str(tmp_path), **{**SHORT, "batch": 65})
    with pytest.raises(ConfigError, match="batch=65: the training text has 64 rows, which fill no batch"):
        finetune(copy.deepcopy(source("llama")), WINDOWS, config)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_loss_is_of_the_tokens_that_are_predicted(arch, tmp_path):
    """Validation in training equals the perplexity of the same windows, for GPT-2 as for Llama."""
    numbers = {**SHORT, "steps": 1, "save_steps": 1, "eval_steps": 1}
    config = HealConfig(output=str(tmp_path), train="full", **numbers)
    held = torch.randint(3, 96, (4, 16), generator=torch.Generator().manual_seed(1))
    healed = heal(copy.deepcopy(source(arch)), WINDOWS, None, config, held)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(perplexity(healed, held, progress=False).nll, rel=1e-5)


def test_an_option_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        FinetuneConfig.from_command_line(None, ["model", "--output"])
    assert "--output needs a value, of type str" in capsys.readouterr().err
    assert FinetuneConfig.from_command_line(None, ["model", "--resume"]).resume


def test_a_model_is_not_written_over(tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    with pytest.raises(ConfigError, match="is what the run starts from; name another folder"):
        FinetuneConfig(model=model, output=model).need_model("the model")
    other = FinetuneConfig(model="other", output=model, **SHORT)
    with pytest.raises(ConfigError, match="holds a model that no such run made"):
        other.need_model("the model")
    dataclasses.replace(other, resume=False).need_model("the model")
    finetune(copy.deepcopy(source("llama")), WINDOWS, other)  # from here on it is a folder of such a run
    other.need_model("the model")


def test_the_best_step_needs_checkpoints():
    with pytest.raises(ConfigError, match="eval_steps=5 keeps the best step, which takes checkpoints"):
        FinetuneConfig(eval_steps=5)


@pytest.mark.parametrize("arch, message", [
    ("bert", "is no causal language model but a BertForMaskedLM"),
    ("headless", "does not hold 1 of its weights"),
    ("gpt2", "context=128: the model has positions for 64 tokens"),
])  # fmt: skip
def test_models_that_cannot_learn_to_predict_are_refused(arch, message, tmp_path):
    model = build("llama") if arch == "headless" else build(arch)
    (model.model if arch == "headless" else model).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_causal(str(tmp_path), 128)


def test_the_recipes_are_read():
    share = FinetuneConfig.load(RECIPES / "share_lora.yaml").adapter_config()
    assert isinstance(share, ShareLoraConfig) and share.task_type == "CAUSAL_LM" and share.r == 8
    mos = FinetuneConfig.load(RECIPES / "mos.yaml", {"adapter": "{method: mos, r: 4}"}).adapter_config()
    assert isinstance(mos, MosConfig) and mos.r == 4
    assert FinetuneConfig.load(RECIPES / "mos.yaml").adapter_config().equivalent_rank == 2


@pytest.mark.parametrize(
    "adapter, message",
    [
        ({"r": 2}, "adapter names a method"),
        ({"method": "mose"}, "unknown method 'mose'; did you mean 'mos'"),
        ({"method": "mos", "rank": 2}, "unexpected keyword argument 'rank'"),
        ("mos", "is not of type dict"),
    ],
)
def test_bad_input(adapter, message):
    with pytest.raises((ConfigError, TypeError), match=message):
        FinetuneConfig(adapter=adapter)

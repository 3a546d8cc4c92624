# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: any method's adapter learns, the base stays as it is, the recipes' settings are read."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers import stored
from peft import PeftModel
from promises import source
from zoo import logits

from hf_share import ConfigError, MosConfig, ShareLoraConfig
from hf_share.train.finetune import FinetuneConfig, finetune


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

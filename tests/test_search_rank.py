# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Searching the ranks of low-rank deltas: costs are those of the LoRA that is made of a choice."""

from __future__ import annotations

import random

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import hf_share
from hf_share import ConfigError, ElasticConfig, Refused
from hf_share.search.rank_space import rank_space


def data(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, zoo.VOCAB, (6, 16), generator=torch.Generator().manual_seed(seed))


def elastic(arch: str, adapter: bool, **args) -> torch.nn.Module:
    """Deltas that are trained a little, the first ranks more than the last."""
    config = ElasticConfig(preset="nls", **{"ranks": [2, 4, 8], **args})
    if adapter:
        config.task_type = "CAUSAL_LM"
    model = get_peft_model(zoo.build(arch), config) if adapter else hf_share.share(zoo.build(arch), config)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".B") or "hf_share_B" in name or name.endswith("_B"):
                value.copy_(torch.randn(value.shape, generator=gen) / (1 + torch.arange(value.shape[-1])))
    return model.eval()


def test_ranks_are_not_searched_at_the_cost_of_a_lora_that_cannot_be_made():
    model = hf_share.share(zoo.build("llama"), hf_share.RecursiveConfig(num_loops=2))
    model = hf_share.share(model, ElasticConfig(preset="nls", ranks=[2, 4]))
    with pytest.raises(Refused, match="this is a whole model, whose plan makes or changes weights .Arrange"):
        search(model, {"params": 1e6})
    adapted = elastic("llama", adapter=True)
    assert rank_space(adapted).decisions


def search(model, budget, **more):
    options = {"evaluations": 8, "rungs": 3, "progress": False, **more}
    return hf_share.search(model, budget, data(), data(1), **options)


@pytest.mark.parametrize("adapter", [False, True], ids=["shared", "adapter"])
@pytest.mark.parametrize(("arch", "targets"), [("llama", None), ("gpt2", ["c_attn:q", "c_attn:v", "c_fc"])])
def test_costs_are_those_of_the_lora(arch, targets, adapter, tmp_path):
    model = elastic(arch, adapter, target_modules=targets)
    space = rank_space(model)
    assert {d.kind for d in space.decisions} == {"rank"} and set(space.sizes) == {3}
    draw = random.Random(0)
    drawn = [tuple(draw.randrange(n) for n in space.sizes) for _ in range(3)]
    for i, candidate in enumerate([space.smallest, space.largest, *drawn]):
        hf_share.choose(model, **space.choices(candidate))
        hf_share.to_lora(model, tmp_path / str(i))
        file = tmp_path / str(i) / "adapter_model.safetensors"
        amounts, cost = space.amounts(candidate), space.costs["bytes"]
        assert amounts["bytes"] == file.stat().st_size
        assert amounts["params"] == sum(t.numel() for t in load_file(file).values())
        assert cost.sum(candidate) <= cost.of(candidate) <= cost.sum(candidate) + cost.slack


@pytest.mark.parametrize("adapter", [False, True], ids=["shared", "adapter"])
def test_the_best_ranks_within_a_budget_are_a_lora(adapter, tmp_path):
    model = elastic("llama", adapter)
    before, cost = zoo.logits(model), rank_space(model).costs["params"]
    limit = (cost.smallest + cost.largest) // 2
    found = search(model, {"params": limit}, output=tmp_path / "search")
    assert torch.equal(zoo.logits(model), before) and not found.kept
    assert found.best["nll"] is not None and len(found.best["choices"]["rank"]) == 28
    hf_share.choose(model, name=found.best["name"])
    assert len(set(found.best["choices"]["rank"].values())) > 1
    hf_share.to_lora(model, tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    assert file.stat().st_size == found.best["bytes"]
    assert sum(t.numel() for t in load_file(file).values()) <= limit
    plain = PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "lora")
    torch.testing.assert_close(zoo.logits(plain), zoo.logits(model), atol=1e-5, rtol=1e-4)


def test_sparse_deltas_are_searched_too_and_budgets_are_checked():
    model = elastic("llama", adapter=True, sparse=True)
    found = search(model, {"params": rank_space(model).costs["params"].smallest * 2})
    assert found.best["choices"].keys() == {"rank"}
    with pytest.raises(ConfigError, match="params=10 is below the smallest subnet"):
        search(model, {"params": 10})
    with pytest.raises(ConfigError, match="unknown cost 'bits'"):
        search(model, "bits=3.0")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Searching the sizes of sub-layers: costs to the byte, budgets, and subnets that can be cut out."""

from __future__ import annotations

import copy
import random
import re

import pytest
import torch
import transformers as tf
import zoo

import hf_share
from hf_share import ConfigError, ElasticConfig, FoldConfig, ShareConfig
from hf_share.elastic import bindings
from hf_share.search.structure_space import structure_space


def data(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, zoo.VOCAB, (6, 16), generator=torch.Generator().manual_seed(seed))


def elastic(fold: bool = False, **args) -> torch.nn.Module:
    config = ElasticConfig(**{"bits": [], "ffn": [0.25, 0.5], "kv_groups": [1], **args})
    methods = ShareConfig(methods=[FoldConfig(group_size=2), config]) if fold else config
    return hf_share.share(zoo.build("llama"), methods)


def search(model, budget, **more):
    options = {"evaluations": 8, "rungs": 3, "progress": False, **more}
    return hf_share.search(model, budget, data(), data(1), **options)


@pytest.mark.parametrize("args", [{}, {"ranks": [2, 4]}, {"fold": True}], ids=["weights", "deltas", "tied"])
def test_bytes_are_those_of_the_file(args, tmp_path):
    model = elastic(**args)
    space = structure_space(model)
    assert {d.kind for d in space.decisions} == {"ffn", "kv_groups"}
    assert len(space.decisions) == (4 if args.get("fold") else 8)
    draw = random.Random(0)
    drawn = [tuple(draw.randrange(n) for n in space.sizes) for _ in range(3)]
    for i, candidate in enumerate([space.smallest, space.largest, *drawn]):
        amounts = space.amounts(candidate)
        cut = hf_share.extract(copy.deepcopy(model), **space.choices(candidate))
        cut.save_pretrained(tmp_path / str(i))
        assert amounts["bytes"] == (tmp_path / str(i) / "model.safetensors").stat().st_size
        own = {id(p): p.numel() for p in cut.parameters()}
        guards = len(cut._hf_share.guards)  # one number for each, which keeps stock code away
        assert amounts["params"] == sum(own.values()) + guards
        cost = space.costs["bytes"]
        assert cost.sum(candidate) <= cost.of(candidate) <= cost.sum(candidate) + cost.slack


def test_the_best_within_a_budget(tmp_path):
    model = elastic()
    before = zoo.logits(model)
    costs = structure_space(model).costs["bytes"]
    limit = int((costs.smallest + costs.largest) / 2)
    found = search(model, {"bytes": limit}, output=tmp_path / "search")
    assert torch.equal(zoo.logits(model), before)
    assert found.best["bytes"] <= limit and found.best["mean_bits"] is None
    assert set(found.best["choices"]) == {"ffn", "kv_groups"}
    assert found.best["nll"] < max(row["nll"] for row in found.rows)
    model.save_pretrained(tmp_path / "model")
    name = found.best["name"]
    small = hf_share.slice_checkpoint(tmp_path / "model", tmp_path / "small", name=name, progress=False)
    assert (small / "model.safetensors").stat().st_size == found.best["bytes"]
    hf_share.choose(model, name=name)
    again = tf.AutoModelForCausalLM.from_pretrained(small)
    torch.testing.assert_close(zoo.logits(again), zoo.logits(model), atol=1e-6, rtol=1e-5)


def test_what_cannot_be_searched_is_said():
    with pytest.raises(ConfigError, match="bytes=10 is below the smallest subnet"):
        search(elastic(), {"bytes": 10})
    with pytest.raises(ConfigError, match="unknown cost 'bits'; did you mean 'bytes'"):
        search(elastic(), "bits=3.0")
    with pytest.raises(ConfigError, match="takes no less time"):
        search(elastic(), {"latency_ms": 5})


def test_a_budget_that_smaller_sizes_would_meet_says_which_choice_makes_them():
    model = elastic(bits=[2, 3], group_size=16, r_private=0, r_shared=0)
    said = r"at the sizes chosen now; hf_share.choose\(model, ffn=0.25, kv_groups=1\) before the search"
    with pytest.raises(ConfigError, match=said) as error:
        search(model, {"bytes": 1000})
    least = int(re.search(r"has bytes=(\d+)", str(error.value))[1])
    hf_share.choose(model, ffn=0.25, kv_groups=1)
    with pytest.raises(ConfigError, match=r"which has bytes=\d+$") as error:
        search(model, {"bytes": 1000})
    assert int(re.search(r"has bytes=(\d+)", str(error.value))[1]) < least
    with pytest.raises(ConfigError, match="which has bits=2$"):
        search(elastic(bits=[2, 3], group_size=16), "bits=1.9")


def test_choices_that_are_not_searched_are_named():
    model = hf_share.share(zoo.build("llama"), ElasticConfig(preset="sorted"))
    with pytest.raises(ConfigError, match="for bits, ffn, kv_groups or rank.* sets depth, which this model"):
        search(model, {"bytes": 10**9})
    both = elastic(ranks=[2, 4])
    assert search(both, {"bytes": 10**9}, evaluations=0, rungs=0).kept == ("rank",)


def test_widths_are_searched_at_the_sizes_that_are_chosen(tmp_path):
    """Mean bits count the weights that are left, and bytes are those of the file."""
    model = elastic(bits=[2, 3], group_size=16, r_private=1, r_shared=1)
    hf_share.choose(model, ffn=0.25, kv_groups=1)
    found = search(model, "bits=2.5")
    assert found.best["choices"]["ffn"] == {f"layers.{i}.mlp.down_proj": 0.25 for i in range(4)}
    hf_share.choose(model, ffn=None, kv_groups=None)
    cut = hf_share.extract(copy.deepcopy(model), name=found.best["name"])
    cut.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == found.best["bytes"]
    codes = [b for b in bindings(cut) if b.rule.name == "nested"]
    sizes = [b.site.in_features * b.site.out_features for b in codes]
    mean = sum(n * b.rule.width for n, b in zip(sizes, codes, strict=True)) / sum(sizes)
    assert found.best["mean_bits"] == pytest.approx(mean) and mean <= 2.5


def test_codes_of_a_model_that_was_cut(tmp_path):
    """Structure first, then codes of what is left; each cut once."""
    model = hf_share.extract(elastic(), ffn=0.5, kv_groups=1)
    hf_share.share(model, ElasticConfig(bits=[2, 3], group_size=16)).eval()
    assert hf_share.choices(model) == {"bits": (2, 3)}
    hf_share.choose(model, bits=2)
    out = zoo.logits(model)
    model.save_pretrained(tmp_path / "both")
    config = hf_share.subnet_config(tmp_path / "both", bits=2)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "both", config=config)
    assert torch.equal(zoo.logits(small), out)
    assert torch.equal(zoo.logits(hf_share.extract(model, bits=2)), out)
    assert model.model.layers[0].mlp.up_proj.out_features == 24

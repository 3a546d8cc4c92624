# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Every choice that a model offers can be chosen before it is loaded, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
import zoo

import hf_share
from hf_share import ConfigError, ElasticConfig, RecursiveConfig, ShareConfig
from hf_share.elastic import bindings
from hf_share.hub.load import load_model
from hf_share.registry import remember


DEPTH = ElasticConfig(bits=[2, 3], group_size=16, ffn=[0.5], kv_groups=[1], depth=[3], order="none")
LOOPS = ShareConfig(methods=[RecursiveConfig(num_loops=2), ElasticConfig(bits=[2, 3], group_size=16)])
RANKS = ElasticConfig(preset="nls", ranks=[4, 8])
MIXED = ElasticConfig(bits=[2, 3], group_size=16, ranks=[2, 4], ffn=[0.5])
SITE = "layers.1.mlp.up_proj"


def saved(folder, config):
    """A model whose deltas are drawn at random, in a folder."""
    model = hf_share.share(zoo.build("llama"), config).eval()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".share." in name:
                value.copy_(0.05 * torch.randn(value.shape, generator=gen))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        (DEPTH, {"depth": 3}),
        (DEPTH, {"depth": 3, "bits": 2, "ffn": 0.5, "kv_groups": 1}),
        (DEPTH, {"bits": {SITE: 2}, "depth": 3}),
        (LOOPS, {"loops": 1}),
        (LOOPS, {"loops": 1, "bits": 2}),
        (RANKS, {"rank": 4}),
        (MIXED, {"rank": 2, "ffn": 0.5}),
        (MIXED, {"rank": {SITE: 2}, "bits": 3}),
    ],
)
def test_what_is_chosen_before_loading_is_what_is_loaded(tmp_path, config, chosen):
    model = saved(tmp_path, config)
    assert set(chosen) <= set(hf_share.choices(model))
    small = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, config=hf_share.subnet_config(tmp_path, **chosen)
    )
    full = zoo.logits(model)
    expected = zoo.logits(hf_share.choose(model, **chosen))
    assert not torch.equal(expected, full)
    torch.testing.assert_close(zoo.logits(small), expected, atol=1e-6, rtol=1e-5)
    left = {"depth", "loops", "rank"} & set(hf_share.choices(model))
    assert hf_share.choices(small) == {name: hf_share.choices(model)[name] for name in left}


def test_a_named_subnet_keeps_all_of_its_choices(tmp_path):
    model = saved(tmp_path, DEPTH)
    remember(model, [{"name": "low", "choices": {"bits": 2, "depth": 3}}])
    model.save_pretrained(tmp_path)
    config = hf_share.subnet_config(tmp_path, "low", trust_remote_code=False, local_files_only=True)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    torch.testing.assert_close(zoo.logits(small), zoo.logits(hf_share.choose(model, name="low")))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fnn": 0.5}, "unknown choice 'fnn'; did you mean 'ffn'"),
        ({"bits": 2, "dept": 3}, "unknown choice 'dept'; did you mean 'depth'"),
        ({"bits": 2, "rank": 4}, "unknown choice 'rank'"),
        ({"bits": 2, "revison": "main"}, "did you mean 'revision'"),
        ({"bits": 2, "use_cache": False}, "unknown choice 'use_cache'"),
        ({"bits": 4}, "bits=4 is not offered; this model has 2, 3"),
        ({"bits": {"layers.1.mlp.up": 2}}, f"did you mean '{SITE}'"),
        ({"bits": {SITE: 4}}, f"bits=4 is not offered at '{SITE}', which has 2, 3"),
        ({"depth": {"layers": 3}}, "depth is a choice of a whole stack"),
        ({"depth": 2}, "depth=2 is not offered; this model has 3, 4"),
        ({"name": "x", "bits": 2}, "give one of name, budget and choices .*bits.*depth"),
        ({}, "give one of name, budget and choices"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(tmp_path, asked, message):
    saved(tmp_path, DEPTH)
    with pytest.raises(ConfigError, match=message):
        hf_share.subnet_config(tmp_path, **asked)


def test_a_number_that_equals_an_offered_one_is_that_one(tmp_path):
    model = saved(tmp_path, MIXED)
    asked = {"bits": 3.0, "rank": np.float32(2), "ffn": 1}
    hf_share.choose(model, **asked)
    expected = zoo.logits(model)
    model.save_pretrained(tmp_path)
    plan = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["plan"]
    found = {k: repr(v) for step in plan["steps"] for k, v in step["args"].items() if k in asked}
    assert found == {"bits": "3", "rank": "2", "ffn": "1.0"}
    assert torch.equal(zoo.logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path)), expected)
    assert torch.equal(zoo.logits(load_model(f"{tmp_path}@bits=3.0")), expected)
    hf_share.choose(model, bits={SITE: 2.0})
    assert {b.rule.bits for b in bindings(model) if b.rule.frozen and b.site.name == SITE} == {2}
    remember(model, [{"name": "low", "choices": {"bits": 2.0}}])
    hf_share.choose(model, name="low")
    assert {repr(b.rule.bits) for b in bindings(model) if b.rule.frozen} == {"2"}


@pytest.mark.parametrize("value", [True, "3", [3], 2.5, float("nan")])
def test_what_equals_no_offered_number_is_refused(tmp_path, value):
    model = saved(tmp_path, DEPTH)
    before = model._hf_share.plan
    for asked in ({"bits": value}, {"bits": {SITE: value}}, {"depth": value}, {"kv_groups": value}):
        with pytest.raises(ConfigError, match="is not offered"):
            hf_share.choose(model, **asked)
    assert model._hf_share.plan is before


@pytest.mark.parametrize(
    ("step", "key", "value", "message"),
    [
        ("nested", "bits", 3.0, "bits is 3.0; offered are 2, 3"),
        ("nested", "bits", [3.0, *[2] * 27], "bits is 3.0"),
        ("by_width", "bits", 3.0, "bits is 3.0"),
        ("heads", "kv_groups", 1.0, "kv_groups is 1.0; offered are"),
        ("heads", "kv_groups", True, "kv_groups is True"),
        ("neurons", "ffn", True, "ffn is True"),
        ("arrange", "layers", 3.0, "layers is 3.0"),
    ],
)
def test_a_plan_holds_numbers_as_they_are_offered(tmp_path, step, key, value, message):
    saved(tmp_path, DEPTH)
    config = json.loads((tmp_path / "config.json").read_text())
    for own in config["quantization_config"]["plan"]["steps"]:
        if own.get("rule") == step:
            own["args"][key] = value
        elif own["step"] == step:
            own[key] = own["origin"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(hf_share.PlanError, match=message):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path)

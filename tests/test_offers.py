# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Every choice that a model offers can be chosen before it is loaded, and nothing else."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
import zoo

import hf_share
from hf_share import ConfigError, ElasticConfig, RecursiveConfig, ShareConfig
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

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The chosen size of an elastic model as a compressed-tensors checkpoint that stock transformers loads."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
import transformers as tf
import zoo
from safetensors import safe_open

import hf_share
from hf_share import ConfigError, ElasticConfig, Refused
from hf_share.costs import Costs
from hf_share.packed import group_of, integer_grid, packed


def test_a_grid_is_no_worse_than_any_of_its_scales():
    """One group, against every scale of a fine search."""
    torch.manual_seed(0)
    w = torch.randn(1, 8)
    for bits in (2, 3):
        half = 2 ** (bits - 1)
        found = (w - integer_grid(w, bits, 8).weight()).square().sum()
        scales = torch.linspace(-3, 3, 6001)[:, None]
        q = (w / scales).round().clamp(-half, half - 1)
        assert found <= 1.25 * (w - q * scales).square().sum(-1).nan_to_num(1e9).amin()


def test_more_bits_and_smaller_groups_are_nearer():
    torch.manual_seed(0)
    W = torch.randn(16, 64)
    errors = {
        (b, g): float((W - integer_grid(W, b, g).weight()).norm()) for b, g in product((2, 4, 8), (16, 64))
    }
    assert errors[2, 64] > errors[4, 64] > errors[8, 64]
    assert all(errors[b, 16] < errors[b, 64] for b in (2, 4))
    assert [group_of(n, 32) for n in (64, 172, 17)] == [32, 4, 17]
    with pytest.raises(ConfigError, match="groups of 24 do not divide 64"):
        integer_grid(W, 4, 24)


def test_stock_transformers_loads_every_mix_of_widths(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    config = ElasticConfig(bits=[2, 3, 4, 8], group_size=16, r_private=1, r_shared=1)
    model = hf_share.share(zoo.build("llama"), config).eval()
    costs, draw = Costs.of(model), random.Random(0)
    choices = {unit.name: draw.choice([2, 3, 4, 8]) for unit in costs.units}
    hf_share.choose(model, bits=costs.expand(choices))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".share." in name:
                value.copy_(0.05 * torch.randn(value.shape))
    plain = packed(model, tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(zoo.logits(loaded, **zoo.inputs(model)), zoo.logits(plain, **zoo.inputs(model)))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as f:
        for unit in costs.units:
            shape = f.get_slice(f"model.{unit.name}.weight_packed").get_shape()
            assert 32 * shape[0] * shape[1] == unit.weights * choices[unit.name], "true bits on disk"
    assert "hf_share" not in (tmp_path / "config.json").read_text()


def test_models_that_do_not_fit_are_refused(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    with pytest.raises(ConfigError, match="no codes"):
        packed(zoo.build("llama"), tmp_path)
    with pytest.raises(Refused, match="Conv1D"):
        packed(hf_share.share(zoo.build("gpt2"), ElasticConfig(group_size=16)), tmp_path)

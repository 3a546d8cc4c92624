# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A scan measures what it says, on weights that are known, and draws it."""

from __future__ import annotations

import json

import pytest
import torch
import zoo

import hf_share
from hf_share import ConfigError, Refused


TEXT = [torch.randint(3, zoo.VOCAB, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_every_measure_of_a_llama(tmp_path):
    model = zoo.build("llama")
    found = hf_share.scan(model, TEXT)
    assert found.influence == pytest.approx(hf_share.block_influence(model, TEXT), rel=1e-5)
    assert found.drift == pytest.approx(hf_share.kl_drift(model, TEXT), rel=1e-5)
    assert found.missing == {} and found.depth == 4 and len(found.spectrum) == 7
    told = json.loads(json.dumps(found.to_dict()))
    assert len(told["heads"]) == 4 and told["stack"] == "layers"
    found.plot(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 10_000


@pytest.mark.parametrize("arch", ["llama", "gpt2", "neox", "phi3", "bert"])
def test_layers_with_the_same_heads_are_alike(arch):
    model = zoo.build(arch)
    fold = hf_share.share(zoo.build(arch), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    apart = hf_share.scan(model, measures=["heads"]).heads
    shared = hf_share.scan(fold, measures=["heads"]).heads
    assert shared[1][2] == pytest.approx(1.0, abs=1e-5) and apart[1][2] < 0.5
    assert apart[0][0] == pytest.approx(1.0, abs=1e-5) and shared[0][3] == pytest.approx(apart[0][3])


def test_heads_may_change_places():
    """The best match of a head is looked for among all heads of the other layer."""
    model = zoo.build("llama", num_key_value_heads=4)
    one, two = (model.model.layers[i].self_attn for i in (0, 1))
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            heads = getattr(one, name).weight.unflatten(0, (4, -1))
            getattr(two, name).weight.copy_(3.0 * heads[order].flatten(0, 1))
    found = hf_share.scan(model, measures=["heads"]).heads
    assert found[0][1] == pytest.approx(1.0, abs=1e-5) and found[0][2] < 0.5


def test_the_spectrum_counts_what_holds_the_energy():
    model = zoo.build("llama")
    weight = model.model.layers[1].mlp.up_proj.weight  # (48, 32)
    with torch.no_grad():
        weight.zero_()
        weight[range(4), range(4)] = torch.tensor([3.0, 3.0, 3.0, 1.0])  # 27 / 28 after three
    found = hf_share.scan(model, measures=["spectrum"]).spectrum
    assert found["mlp.up_proj"][1] == pytest.approx(3 / 32)
    assert found["mlp.up_proj"][0] > 0.3


def test_what_a_model_has_no_place_for_is_told():
    found = hf_share.scan(zoo.build("mamba"), TEXT, measures=["heads", "influence"])
    assert found.heads is None and "no attention" in found.missing["heads"] and found.influence
    found = hf_share.scan(zoo.build("llama").base_model, TEXT, measures=["drift"])
    assert found.drift is None and "head" in found.missing["drift"]


def test_what_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'spectrum'"):
        hf_share.scan(zoo.build("llama"), measures=["spectra"])
    with pytest.raises(ConfigError, match="measured on text"):
        hf_share.scan(zoo.build("llama"))
    with torch.device("meta"), pytest.raises(Refused, match="reads weights"):
        hf_share.scan(zoo.build("llama").to("meta"), TEXT)

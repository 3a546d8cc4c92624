# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`describe` tells what is stored, used and saved: golden text, numbers that add up, a picture."""

from __future__ import annotations

import json

import peft
import zoo

import hf_share


GOLDEN = """\
LlamaForCausalLM: 29,472 parameters stored, 37,152 used (0.793 stored / used), 117.9 kB
  group          stored once  visited           saved
  layers 1 2           7,680        2           7,680"""


def test_golden_text():
    model = hf_share.share(zoo.build("llama"), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    assert str(hf_share.describe(model)) == GOLDEN


def test_plain_model_shares_nothing():
    description = hf_share.describe(zoo.build("gpt2"))
    assert description.stored == description.used
    assert str(description).endswith("nothing is shared")


def test_numbers_are_those_of_the_materialized_model():
    model = hf_share.share(zoo.build("llama"), hf_share.FoldConfig(group_size=2))
    description = hf_share.describe(model)
    assert description.stored == sum(p.numel() for p in model.parameters())
    assert description.used == sum(p.numel() for p in hf_share.materialize(model).parameters())


def test_adapters_are_told_beside_the_structure_below_them():
    model = peft.get_peft_model(zoo.build("llama"), hf_share.FoldConfig(group_size=2))
    model.add_adapter("taste", hf_share.ShareLoraConfig(r=2, share="A", target_modules=["q_proj"]))
    fold, _, taste = hf_share.describe(model).groups
    assert (fold.name, fold.visits) == ("layers 0 1", 2)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    assert taste.name.startswith("taste: ") and taste.visits == layers
    assert taste.stored == 2 * width + layers * 2 * width and taste.saved == (layers - 1) * 2 * width


def test_dict_is_plain_json_and_plot_is_written(tmp_path):
    model = hf_share.share(zoo.build("t5"), hf_share.FoldConfig(group_size=2, stack="encoder.block"))
    description = hf_share.describe(model)
    assert json.loads(json.dumps(description.to_dict()))["groups"][0]["visits"] == 2
    description.plot(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.png"]

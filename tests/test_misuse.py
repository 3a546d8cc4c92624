# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What would go wrong in silence is refused, or right: offloaded models, moved tensors, merges, slices."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from promises import source
from zoo import build, inputs, logits

import hf_share
from hf_share import (
    CheckpointError,
    ConfigError,
    FoldConfig,
    MosConfig,
    PlanError,
    Refused,
    ShareLoraConfig,
    SharePlan,
)
from hf_share.elastic import choose
from hf_share.hub.load import split_choice
from hf_share.hub.slicer import slice_checkpoint
from hf_share.search.latency import latency_cost
from hf_share.steps import Arrange


def offloaded(tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu",
              "model.rotary_emb": "cpu"}  # fmt: skip
    return tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "away")
    )


def test_an_offloaded_model_is_not_changed(tmp_path):
    model = offloaded(tmp_path, build("llama"))
    with pytest.raises(Refused, match="is offloaded .device_map.*load it whole"):
        hf_share.share(model, FoldConfig(group_size=2))
    with pytest.raises(Refused, match="is offloaded .device_map.*load it whole"):
        hf_share.materialize(model)
    with torch.device("meta"):  # a structure without weights is no such model
        hf_share.share(build("llama"), FoldConfig(group_size=2))


def test_a_depth_that_counts_for_the_cache_stays():
    step = Arrange(stack="layers", order=(0, 1, 2, 3), depth=4, drops=(0,), depths=(3, 4))
    model = hf_share.share(build("llama"), SharePlan((step,)))
    with pytest.raises(Refused, match="depth=3 depth 0 does not run, and it is by its slot"):
        choose(model, depth=3)
    elastic = hf_share.ElasticConfig(bits=[], depth=[1, 4])
    assert 0 not in elastic.resolve(build("llama")).arranges[0].drops


@pytest.mark.parametrize("change", [
    lambda m: m.to(torch.bfloat16),
    lambda m: torch.nn.utils.vector_to_parameters(
        2.0 * torch.nn.utils.parameters_to_vector(m.parameters()), m.parameters()),
], ids=["another type", "other data"])  # fmt: skip
def test_what_is_kept_of_formed_weights_follows_the_stored_ones(change):
    model = hf_share.share(copy.deepcopy(source("llama")), MosConfig(r=4, init_weights=False))
    logits(model)  # forms, and keeps
    change(model)
    twin = copy.deepcopy(model)  # which forms its own
    assert torch.equal(logits(model), logits(twin))


def test_a_model_made_in_inference_mode_runs():
    with torch.inference_mode():
        model = get_peft_model(copy.deepcopy(source("llama")), MosConfig(r=4, init_weights=False)).eval()
        first, second = (model(**inputs(model)).logits for _ in range(2))
    assert torch.equal(first, second)


def test_layers_to_transform_counts_for_all_linear_and_patterns():
    for targets in ("all-linear", r".*\.(q_proj|v_proj)"):
        for layers, wanted in (([0, 2], {0, 2}), (0, {0}), (None, {0, 1, 2, 3})):
            config = ShareLoraConfig(target_modules=targets, layers_to_transform=layers)
            sites = config.resolve(source("llama")).generates[0].sites
            assert {int(name.split(".")[1]) for name in sites} == wanted


def test_a_lora_does_not_lose_whole_modules(tmp_path):
    config = ShareLoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])
    model = get_peft_model(copy.deepcopy(source("llama")), config)
    with pytest.raises(Refused, match="trained whole modules, too .lm_head."):
        hf_share.to_lora(model, tmp_path)


def test_merging_into_what_is_made_is_refused_by_name():
    base = hf_share.share(copy.deepcopy(source("llama")), hf_share.MasaConfig(num_atoms=2))
    model = get_peft_model(base, ShareLoraConfig(target_modules="all-linear", init_weights=False))
    with pytest.raises(Refused, match="merge: the base stores no weight here"):
        model.merge_adapter()


@pytest.mark.filterwarnings("ignore:Already:UserWarning")
def test_a_merge_that_is_refused_leaves_the_layer_unmerged():
    config = ShareLoraConfig(target_modules=["q_proj"], init_weights=False)
    model = get_peft_model(copy.deepcopy(source("llama")), config, adapter_name="one").eval()
    model.add_adapter("two", config)
    before = logits(model)
    model.merge_adapter(["one"])
    layer = model.base_model.model.model.layers[2].self_attn.q_proj
    with torch.no_grad():
        layer.hf_share_B["two"][0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(["two"], safe_merge=True)
    assert layer.merged_adapters == []
    with torch.no_grad():
        layer.hf_share_B["two"][0] = 0.0
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)


def test_a_slice_reads_no_file_but_those_beside_its_index(tmp_path):
    model = hf_share.share(build("llama"), hf_share.ElasticConfig(bits=[], ffn=[0.5], preset="sorted"))
    model.save_pretrained(tmp_path / "big", max_shard_size="20KB")
    (tmp_path / "big" / "chat_template.jinja").write_text("{{ messages }}")
    slice_checkpoint(tmp_path / "big", tmp_path / "small", ffn=0.5, progress=False)
    assert (tmp_path / "small" / "chat_template.jinja").exists()
    index = tmp_path / "big" / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"] = dict.fromkeys(names["weight_map"], "../secret.safetensors")
    index.write_text(json.dumps(names))
    with pytest.raises(CheckpointError, match="names '../secret.safetensors', which is no weight file"):
        slice_checkpoint(tmp_path / "big", tmp_path / "other", ffn=0.5, progress=False)


def test_a_plan_too_large_to_be_read_again_is_not_made(monkeypatch):
    monkeypatch.setattr("hf_share.plan.MAX_BYTES", 200)
    with pytest.raises(PlanError, match="a plan has at most 200 bytes of JSON"):
        hf_share.share(build("llama"), hf_share.ElasticConfig(group_size=16))


def test_words_and_tables_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"'\[1' in 'small@loops=\[1' is no value"):
        split_choice("small@loops=[1")
    with pytest.raises(ConfigError, match="a latency table is .site: .option: milliseconds"):
        latency_cost([], [1])

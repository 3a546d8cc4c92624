# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Active loops: a recursive model at fewer rounds computes what a model of those depths does, and says so."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from helpers import pointers, stored, unique
from peft import PeftModel, get_peft_model
from promises import no_trace, source
from test_arrange import decoded
from torch import nn
from transformers import DynamicCache
from transformers.generation import GenerationMixin
from zoo import build, inputs, logits

import hf_share
from hf_share import (
    Arrange,
    CheckpointError,
    ConfigError,
    FoldConfig,
    PlanError,
    RecursiveConfig,
    Refused,
    ShareConfig,
    ShareLoraConfig,
    SharePlan,
)
from hf_share.sites import sites, stacks


DEEP = {"num_hidden_layers": 6}
STACK = {"t5": "decoder.block", "whisper": "decoder.layers"}


def looped(arch: str, loops: int = 2, rank: int = 0, **args) -> nn.Module:
    config = RecursiveConfig(num_loops=loops, lora_rank=rank, stack=STACK.get(arch), **args)
    return hf_share.share(copy.deepcopy(source(arch)), config)


def three_rounds(**args) -> nn.Module:
    """Two layers, three times."""
    return hf_share.share(build("llama", **DEEP), RecursiveConfig(num_loops=3, **args))


def first_depths(model: nn.Module, depth: int) -> nn.Module:
    """A stock Llama of the first depths, with the weights that `model` has there."""
    dense = hf_share.materialize(model)
    config = copy.deepcopy(dense.config)
    config.num_hidden_layers = depth
    twin = type(dense)(config).eval()
    twin.load_state_dict({k: v for k, v in dense.state_dict().items() if k in twin.state_dict()})
    return twin


@pytest.mark.parametrize("rank", [0, 4])
def test_k_loops_are_the_first_k_rounds(rank):
    model = three_rounds(lora_rank=rank)
    assert hf_share.choices(model)["loops"] == (1, 2, 3)
    full = logits(model)
    for loops in (1, 2, 3):
        expected = logits(first_depths(model, 2 * loops))
        with hf_share.chosen(model, loops=loops):
            torch.testing.assert_close(logits(model), expected)
        assert torch.equal(logits(model), full)
    assert not torch.allclose(full, logits(first_depths(model, 2)), atol=1e-2)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(
    "arch", ["llama", "gpt2", "gemma2", "gemma3", "mamba", "bert", "t5", "whisper", "vit"]
)
def test_each_choice_decodes_with_its_cache_reloads_and_is_a_plain_model(arch, rank, tmp_path):
    model = looped(arch, rank=rank)
    full, names = logits(model), list(model.state_dict())
    for loops in (1, 2):
        hf_share.choose(model, loops=loops)
        now = logits(model)
        assert torch.equal(now, full) == (loops == 2)
        if isinstance(model, GenerationMixin):
            torch.testing.assert_close(decoded(model, True), decoded(model, False), rtol=1e-3, atol=1e-4)
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path / str(loops))
        again = type(model).from_pretrained(tmp_path / str(loops))
        assert torch.equal(logits(again), now) and pointers(again) == pointers(model)
        assert stored(tmp_path / str(loops)) == stored(tmp_path / "1"), "all depths are in the file"
        plain = hf_share.materialize(model)
        no_trace(plain)
        torch.testing.assert_close(logits(plain), now, rtol=1e-4, atol=2e-5)
        hf_share.choose(again, loops=None)
        assert torch.equal(logits(again), full)


@pytest.mark.parametrize("order", ["sequence", "middle-cycle"])
def test_orders_in_which_the_active_depths_are_not_the_first(order, tmp_path):
    model = looped("llama", order=order, rank=2)
    hf_share.choose(model, loops=1)
    active = {"sequence": (0, 2), "middle-cycle": (0, 1, 3)}[order]
    layers = stacks(model)["layers"].layers
    assert [layer for layer in model.model.layers] == [layers[depth] for depth in active]
    torch.testing.assert_close(decoded(model, True), decoded(model, False), rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))
    torch.testing.assert_close(logits(hf_share.materialize(model)), logits(model))


def test_a_depth_that_would_get_anothers_mask_is_refused():
    model = looped("gemma2", order="sequence")  # sliding, full, sliding, full
    before = logits(model)
    with pytest.raises(Refused, match=r"loops=1 depth 2 \(sliding_attention\) would run as layer 1"):
        hf_share.choose(model, loops=1)
    assert torch.equal(logits(model), before) and hf_share.describe(model).plan.arranges[0].loops is None
    step = Arrange(stack="layers", order=(0, 0, 2, 2), sources=(0, 1, 2, 3), loops=1)
    with pytest.raises(Refused, match="would run as layer 1"):
        hf_share.share(copy.deepcopy(source("gemma2")), SharePlan((step,)))


def test_what_is_not_offered_is_refused():
    model = three_rounds()
    for value in (0, 4, -1, True, "2", 1.5):
        with pytest.raises(ConfigError, match="is not offered; this model has 1, 2, 3"):
            hf_share.choose(model, loops=value)
    with pytest.raises(ConfigError, match="did you mean 'loops'"):
        hf_share.choose(model, loop=1)
    with pytest.raises(ConfigError, match="unknown choice 'loops'"):
        hf_share.choose(copy.deepcopy(source("llama")), loops=1)


def test_chosen_gives_back_what_was_there():
    model = three_rounds(lora_rank=4)
    hf_share.choose(model, loops=2)
    two, plan = logits(model), hf_share.describe(model).plan
    with pytest.raises(KeyError), hf_share.chosen(model, loops=1, rank=1):
        with hf_share.chosen(model, loops=None):
            assert not torch.equal(logits(model), two)
        assert hf_share.describe(model).plan.arranges[0].loops == 1
        raise KeyError
    assert torch.equal(logits(model), two) and hf_share.describe(model).plan == plan
    assert plan.arranges[0].loops == plan.arranges[0].origin.loops == 2


def test_ranks_and_loops_are_chosen_together(tmp_path):
    model = three_rounds(lora_rank=4)
    hf_share.choose(model, loops=2, rank=2)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert {b.rule.rank for b in hf_share.elastic.bindings(again)} == {2}


def test_every_depth_stays_visible_to_all_but_the_forward_pass():
    model = three_rounds(lora_rank=2)
    names, weights = [s.name for s in sites(model, parts=True)], unique(model)
    hf_share.choose(model, loops=1)
    assert [s.name for s in sites(model, parts=True)] == names and unique(model) == weights
    assert stacks(model)["layers"].depth == 6
    layers = model.model.layers
    assert len(layers) == 2 and len(layers[1:]) == 1 and layers[-1] is model.model.get_submodule("layers.1")
    with pytest.raises(Refused, match="follow its plan"):
        layers.append(layers[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), logits(model))
        hf_share.choose(other, loops=3)
        assert len(other.model.layers) == 6 and len(model.model.layers) == 2


def cache_of(model: nn.Module, loops: int | None) -> DynamicCache:
    with hf_share.chosen(model, loops=loops), torch.no_grad():
        return model(**inputs(model), use_cache=True).past_key_values


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("made, used", [(1, None), (None, 1)])
def test_a_cache_made_at_other_loops_is_refused(arch, made, used):
    model = looped(arch)
    step = torch.tensor([[5], [6]])
    cache = cache_of(model, made)
    with hf_share.chosen(model, loops=used):
        depths = {1: 2, None: 4}
        says = f"filled by {depths[made]} depths, and {depths[used]} are active now. Make a new cache"
        with pytest.raises(Refused, match=says):
            model(input_ids=step, past_key_values=cache)
        with torch.no_grad():
            model(input_ids=step, past_key_values=cache_of(model, used))
            model(input_ids=step, past_key_values=DynamicCache(config=model.config))


@pytest.mark.parametrize("arch", ["t5", "whisper", "mamba"])
def test_other_caches_are_known_too(arch):
    model = looped(arch)
    name = "cache_params" if arch == "mamba" else "past_key_values"
    with torch.no_grad(), hf_share.chosen(model, loops=1):
        cache = getattr(model(**inputs(model), use_cache=True), name)
    with pytest.raises(Refused, match="filled by 2 depths"):
        model(**{**inputs(model), name: cache})


def test_an_adapters_folder_keeps_the_choice(tmp_path):
    config = RecursiveConfig(lora_rank=2, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(source("llama")), config)
    full = logits(model)
    hf_share.choose(model, loops=1)
    one = logits(model)
    assert not torch.equal(one, full)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(source("llama")), tmp_path)
    assert torch.equal(logits(again), one)
    hf_share.choose(again, loops=None)
    assert torch.equal(logits(again), full)
    hf_share.choose(model, loops=1)
    model.add_adapter("second", ShareConfig(methods=[RecursiveConfig(lora_rank=2)]))
    assert len(model.get_base_model().model.layers) == 2
    del model
    hf_share.choose(again, loops=1)
    merged = copy.deepcopy(again).merge_and_unload()
    assert len(merged.model.layers) == merged.config.num_hidden_layers == 2
    torch.testing.assert_close(logits(merged), one)
    small = hf_share.compressed(again)
    small.save_pretrained(tmp_path / "small")
    assert torch.equal(logits(type(small).from_pretrained(tmp_path / "small")), one)


def test_an_adapter_on_a_model_whose_loops_are_chosen():
    model = hf_share.choose(three_rounds(), loops=2)
    before = logits(model)
    lora = ShareLoraConfig(r=2, target_modules=["q_proj"], init_weights=False)
    adapted = get_peft_model(model, lora)
    assert adapted.get_nb_trainable_parameters()[0] == 2 * 32 + 6 * 2 * 32, "all six depths"
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
    with hf_share.chosen(adapted, loops=1):
        assert len(adapted.get_base_model().model.layers) == 2
    assert len(adapted.get_base_model().model.layers) == 4


def test_two_stacks_take_the_loops_both_have():
    methods = [
        RecursiveConfig(stack="encoder.block", num_loops=4),
        RecursiveConfig(stack="decoder.block", num_loops=2),
    ]
    model = hf_share.share(copy.deepcopy(source("t5")), ShareConfig(methods=methods))
    assert hf_share.choices(model) == {"loops": (1, 2)}
    hf_share.choose(model, loops=1)
    assert [len(stack.block) for stack in (model.encoder, model.decoder)] == [1, 2]
    with pytest.raises(Refused, match="gives its cache 1 place"):
        hf_share.materialize(model)


def test_folded_models_offer_loops_too():
    model = hf_share.share(copy.deepcopy(source("llama")), FoldConfig(groups=[[0], [1, 2, 3]]))
    assert hf_share.choices(model) == {"loops": (1, 2, 3)}
    with hf_share.chosen(model, loops=1):
        assert len(model.model.layers) == 2
    assert hf_share.choices(hf_share.share(build("llama"), FoldConfig(remove=[1]))) == {}


def tampered(folder, **values) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    step = config["quantization_config"]["plan"]["steps"][0]
    step.update(values)
    step["origin"].update(values)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("value", [0, 4, -1, True, "1", 1.5, 10**30, [1]])
def test_a_file_with_loops_that_do_not_exist_is_refused(value, tmp_path):
    model = three_rounds()
    model.save_pretrained(tmp_path)
    tampered(tmp_path, loops=value)
    with pytest.raises(PlanError, match="loops"):
        type(model).from_pretrained(tmp_path)


def test_loops_are_of_whole_layers():
    with pytest.raises(PlanError, match="loops are of whole layers"):
        Arrange(stack="layers", order=(0, 0, 1, 1), roles=("mlp",), loops=1)


@pytest.mark.parametrize("loops", [1, None])
def test_it_compiles(loops):
    model = looped("llama", rank=2)
    hf_share.choose(model, loops=1)
    hf_share.choose(model, loops=loops)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled), logits(model))


def test_a_whole_model_is_needed_from_a_cut_file(tmp_path):
    """A depth that is not active is still required: more loops chosen later must not meet random weights."""
    from safetensors.torch import load_file, save_file

    model = hf_share.choose(three_rounds(lora_rank=2), loops=1)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {k: v for k, v in load_file(file).items() if ".5.mlp" not in k}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layers.5.mlp"):
        type(model).from_pretrained(tmp_path)

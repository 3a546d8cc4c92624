# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Relaxed recursion: which layers a block is made of, what each visit's LoRA starts with, what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers as tf
from helpers import elements, unique
from peft import PeftModel, get_peft_model
from promises import source
from zoo import logits

import hf_share
from hf_share import ConfigError, MosConfig, RecursiveConfig, Refused, ShareConfig, SiteError
from hf_share.sites import stacks


def shared(arch: str, **args):
    return hf_share.share(copy.deepcopy(source(arch)), RecursiveConfig(**args))


def deep(depth: int):
    with torch.device("meta"):
        return tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=1,
                num_hidden_layers=depth,
            )
        )  # fmt: skip


def block(depth: int, **args) -> list[int]:
    """Source layers of the block, in the order of their first visit."""
    step = RecursiveConfig(**args).resolve(deep(depth)).arranges[0]
    return list(dict.fromkeys(step.order))


STEPWISE = {
    (6, 2): [0, 2, 5],
    (18, 2): [0, 2, 4, 6, 8, 11, 13, 15, 17],
    (18, 3): [0, 3, 7, 10, 14, 17],
    (22, 2): [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21],
    (16, 2): [0, 2, 4, 6, 9, 11, 13, 15],
    (4, 4): [0],
}


@pytest.mark.parametrize("depth, loops", STEPWISE)
def test_stepwise_keeps_an_even_grid(depth, loops):
    assert block(depth, num_loops=loops) == STEPWISE[depth, loops]
    assert block(depth, num_loops=loops, init="lower") == list(range(depth // loops))
    assert block(depth, num_loops=loops, init="average") == list(range(depth // loops))


ORDERS = {
    ("cycle", "lower"): [0, 1, 2, 0, 1, 2],
    ("cycle", "stepwise"): [0, 2, 5, 0, 2, 5],
    ("sequence", "lower"): [0, 0, 1, 1, 2, 2],
    ("sequence", "average"): [0, 0, 2, 2, 4, 4],
    ("sequence", "stepwise"): [0, 0, 2, 2, 5, 5],
    ("middle-cycle", "average"): [0, 1, 2, 1, 2, 5],
    ("middle-cycle", "stepwise"): [0, 1, 4, 1, 4, 5],
}


@pytest.mark.parametrize("order, init", ORDERS)
def test_orders(order, init):
    step = RecursiveConfig(order=order, init=init).resolve(deep(6)).arranges[0]
    assert list(step.order) == ORDERS[order, init]
    assert step.sources == tuple(range(6)) and step.depth == 6


def test_the_start_follows_the_ranks():
    assert RecursiveConfig().start == "stepwise"
    assert RecursiveConfig(lora_rank=4).start == "average"
    assert RecursiveConfig(rank_pattern={"q_proj": 4}).start == "average"
    assert RecursiveConfig(lora_rank=4, init="lower").start == "lower"


def test_average_is_the_mean_of_the_layers_that_share():
    model, layers = shared("llama", init="average"), source("llama").model.layers
    for name in ("mlp.up_proj", "input_layernorm"):
        mean = (layers[1].get_submodule(name).weight + layers[3].get_submodule(name).weight) / 2
        found = [model.model.layers[depth].get_submodule(name).weight for depth in (1, 3)]
        assert found[0] is found[1]
        torch.testing.assert_close(found[0], mean)


def test_random_weights_are_new_in_the_block_only():
    model, layers = shared("llama", init="random", order="middle-cycle"), source("llama").model.layers
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, layers[0].mlp.up_proj.weight)
    middle = model.model.layers[1].mlp.up_proj.weight
    assert all((middle - layer.mlp.up_proj.weight).abs().mean() > 0.01 for layer in layers)
    assert 0.015 < middle.std() < 0.025, "as the class draws them"
    scaled = shared("gpt2", init="random").transformer.h[0].mlp.c_proj.weight
    assert 0.006 < scaled.std() < 0.008, "GPT-2 divides by the root of twice its depth"
    with pytest.raises(Refused, match="random weights cannot be made again from the base model"):
        get_peft_model(copy.deepcopy(source("llama")), RecursiveConfig(init="random", lora_rank=2))


# everything but experts, routers and what Mamba's kernels read can be given back
EXACT = ["llama", "qwen2", "gemma2", "gemma3", "phi3", "gpt2", "neox", "opt", "falcon", "bert", "vit"]
WHOLE = {"lora_rank": 10**4}


@pytest.mark.parametrize("order", ["cycle", "sequence", "middle-cycle"])
@pytest.mark.parametrize("init", ["stepwise", "average", "lower", "random"])
@pytest.mark.parametrize("arch", EXACT)
def test_at_full_rank_the_logits_are_the_source_models(arch, init, order):
    model = shared(arch, init=init, order=order, **WHOLE)
    torch.testing.assert_close(logits(model), logits(source(arch)), rtol=1e-4, atol=2e-5)
    small = shared(arch, init=init, order=order, lora_rank=2)
    assert (logits(small) - logits(source(arch))).abs().max() > 1e-3


@pytest.mark.parametrize("stack", ["encoder.block", "decoder.block"])
def test_full_rank_in_one_of_two_stacks(stack):
    model = shared("t5", stack=stack, **WHOLE)
    torch.testing.assert_close(logits(model), logits(source("t5")), rtol=1e-4, atol=1e-4)


def test_full_rank_through_peft_and_back(tmp_path):
    config = RecursiveConfig(task_type="CAUSAL_LM", **WHOLE)
    model = get_peft_model(copy.deepcopy(source("llama")), config)
    torch.testing.assert_close(logits(model), logits(source("llama")), rtol=1e-4, atol=2e-5)
    model.save_pretrained(tmp_path)
    added = sum(p.numel() for n, p in model.named_parameters() if "hf_share_" in n)
    assert elements(tmp_path) == added, "the mean of the layers is made again from the base"
    again = PeftModel.from_pretrained(copy.deepcopy(source("llama")), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_norms_are_shared_without_lora_or_when_asked():
    def norms(**args) -> int:
        layers = shared("gpt2", **args).transformer.h
        return len({id(layer.ln_1.weight) for layer in layers} | {id(x.mlp.c_fc.bias) for x in layers})

    assert norms() == norms(lora_rank=2, share_norms=True) == 2 + 2
    assert norms(lora_rank=2) == norms(share_norms=False) == 4 + 4
    model = shared("llama", lora_rank=10**4, share_norms=True)
    assert (logits(model) - logits(source("llama"))).abs().max() > 1e-3, "norms differ from layer to layer"
    model = tf.LlamaForCausalLM(source("llama").config).eval()  # all of them are one
    before = logits(model)
    hf_share.share(model, RecursiveConfig(lora_rank=10**4, share_norms=True))
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=2e-5)


def test_residuals_of_two_averaged_layers_are_opposite():
    model, layers = shared("llama", lora_rank=10**4), source("llama").model.layers
    half = (layers[1].mlp.up_proj.weight - layers[3].mlp.up_proj.weight) / 2
    found = [model.model.layers[depth].mlp.up_proj.share.weight() for depth in (1, 3)]
    torch.testing.assert_close(found[0], half, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], -half, rtol=1e-4, atol=1e-6)


def test_factors_are_the_truncated_svd():
    model, layers = shared("llama", lora_rank=3), source("llama").model.layers
    lost = (layers[0].mlp.up_proj.weight - layers[2].mlp.up_proj.weight) / 2
    share = model.model.layers[0].mlp.up_proj.share
    torch.testing.assert_close(share.A @ share.A.T, torch.eye(3), rtol=1e-4, atol=1e-5)
    s = torch.linalg.svdvals(lost)
    torch.testing.assert_close(share.B.norm(dim=0), s[:3], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((lost - share.weight()).square().sum(), s[3:].square().sum())


def test_a_depth_that_kept_its_layer_starts_like_lora():
    model = shared("llama", init="stepwise", lora_rank=2)  # layers 0 and 3; depth 0 is layer 0 still
    kept, lost = (model.model.layers[depth].mlp.up_proj.share for depth in (0, 2))
    assert not kept.B.any() and kept.A.any()
    assert lost.B.any()


def test_from_zero_is_the_strict_model():
    strict = shared("llama", init="average", share_norms=False)
    zero = shared("llama", lora_rank=2, lora_init="zero")
    assert torch.equal(logits(zero), logits(strict))
    share = zero.model.layers[0].mlp.up_proj.share
    assert share.A.any() and not share.B.any()


def test_whitened_factors_need_text_and_lose_less_of_the_outputs():
    ids = [torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(2))]
    config = {"lora_rank": 4}
    model = copy.deepcopy(source("llama"))
    with pytest.raises(ConfigError, match="needs text"):
        hf_share.share(model, RecursiveConfig(lora_init="whitened", **config))
    model = copy.deepcopy(source("llama"))
    hf_share.share(model, RecursiveConfig(lora_init="whitened", **config), calibration=ids)
    x = source("llama").model.embed_tokens(ids[0])
    x = source("llama").model.layers[0].input_layernorm(x)
    errors = [
        (m.model.layers[0].self_attn.q_proj(x) - source("llama").model.layers[0].self_attn.q_proj(x)).norm()
        for m in (model, shared("llama", **config))
    ]
    assert errors[0] < errors[1]


def ranks(arch: str, **args) -> dict[str, int]:
    plan = RecursiveConfig(**args).resolve(source(arch))
    return {s.sites[0].rpartition(".")[2]: s.args["r"] for s in plan.generates}


def test_the_rank_is_capped_by_the_site():
    assert ranks("llama", lora_rank=24) == {
        "q_proj": 24, "k_proj": 16, "v_proj": 16, "o_proj": 24, "gate_proj": 24, "up_proj": 24,
        "down_proj": 24,
    }  # fmt: skip
    assert set(ranks("llama", lora_rank=10**6).values()) == {16, 32}


def test_a_fused_qkv_gets_half_as_much_again():
    assert ranks("neox", lora_rank=5)["query_key_value"] == 7
    assert ranks("gpt2", lora_rank=4)["c_attn"] == 6
    assert ranks("phi3", lora_rank=4)["qkv_proj"] == 6 and ranks("phi3", lora_rank=4)["gate_up_proj"] == 4


def test_rank_pattern():
    found = ranks("gpt2", lora_rank=4, rank_pattern={"c_proj": 2, "attn.c_proj": 3, "c_attn": 5})
    assert found == {"c_attn": 5, "c_proj": 2, "c_fc": 4} and "attn.c_proj" not in found
    steps = RecursiveConfig(rank_pattern={"c_proj": 2, "attn.c_proj": 3}).resolve(source("gpt2")).generates
    assert [(s.sites[0], s.args["r"]) for s in steps] == [("h.0.attn.c_proj", 3), ("h.0.mlp.c_proj", 2)]
    assert set(ranks("llama", lora_rank=4, rank_pattern={"q_proj": 0})) == {
        "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    with pytest.raises(SiteError, match="rank_pattern names 'q_prj', .*did you mean 'q_proj'"):
        ranks("llama", lora_rank=4, rank_pattern={"q_prj": 2})


def test_only_what_is_shared_gets_lora():
    plan = RecursiveConfig(lora_rank=2, order="middle-cycle").resolve(source("llama"))
    assert {site.split(".")[1] for step in plan.generates for site in step.sites} == {"1", "2"}
    plan = RecursiveConfig(lora_rank=2, target_modules=["v_proj"]).resolve(source("llama"))
    assert [step.sites for step in plan.generates] == [
        tuple(f"layers.{depth}.self_attn.v_proj" for depth in range(4))
    ]


BAD = {
    "depth": ({"num_loops": 3}, "num_loops=3 does not divide the 4 layers of stack 'layers'; 2, 4 fit"),
    "middle": (
        {"num_loops": 4, "order": "middle-cycle"},
        "num_loops=4 does not divide the 2 layers of stack 'layers' between the first and the last; 2 fit",
    ),
    "one loop": ({"num_loops": 1}, "num_loops is 1; a whole number of at least 2"),
    "order": ({"order": "cycel"}, "unknown order 'cycel'; did you mean 'cycle'"),
    "init": ({"init": "mean"}, "unknown init 'mean'"),
    "lora init": ({"lora_init": "svdd"}, "did you mean 'svd'"),
    "rank": ({"lora_rank": -1}, "lora_rank is -1"),
    "pattern": ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern gives 'q_proj' the rank 1.5"),
    "pattern kind": ({"rank_pattern": [4]}, "rank_pattern is"),
    "norms": ({"share_norms": "no"}, "share_norms is 'no'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    args, message = BAD[name]
    before = copy.deepcopy(source("llama").state_dict())
    with pytest.raises(ConfigError, match=message):
        hf_share.share(source("llama"), RecursiveConfig(**args))
    assert all(torch.equal(v, before[n]) for n, v in source("llama").state_dict().items())


def test_two_stacks_are_named_or_refused():
    with pytest.raises(ConfigError, match="2 stacks of layers"):
        shared("t5")
    methods = [RecursiveConfig(stack=path, lora_rank=2) for path in stacks(source("t5"))]
    model = hf_share.share(copy.deepcopy(source("t5")), ShareConfig(methods=methods))
    assert [len(set(map(id, (s.layers[0].layer[0].SelfAttention.q.weight,
                              s.layers[2].layer[0].SelfAttention.q.weight)))) for s in stacks(model).values()
            ] == [1, 1]  # fmt: skip


def test_an_adapter_on_top_of_a_relaxed_model():
    relaxed = RecursiveConfig(lora_rank=2)
    plain = hf_share.share(copy.deepcopy(source("llama")), relaxed)
    both = ShareConfig(methods=[relaxed, MosConfig(r=4, target_modules=["q_proj", "up_proj"])])
    model = hf_share.share(copy.deepcopy(source("llama")), both)
    torch.testing.assert_close(logits(model), logits(plain))
    assert unique(model) - unique(plain) == 2 * 4 * (32 + 32 + 32 + 48), "e L (in + out) of the pools"


@pytest.mark.parametrize("rank", [0, 8])
def test_shared_and_in_four_bits(rank, tmp_path):
    pytest.importorskip("bitsandbytes")
    from test_quantised import build, four_bit, linears

    model = hf_share.share(build("llama"), RecursiveConfig(lora_rank=rank))
    model.save_pretrained(tmp_path)
    config = hf_share.inner_config(tmp_path, four_bit())
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    found = linears(small)
    assert all(type(m).__name__ == "Linear4bit" for m in found.values())
    assert found["0.mlp.up_proj"].weight is found["2.mlp.up_proj"].weight
    assert (logits(small) - logits(model)).abs().max() < 0.2 * logits(model).abs().max()
    with hf_share.chosen(small, loops=1):
        one = logits(small)
    assert (one - logits(small)).abs().max() > 1e-3
    if rank:
        four = tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        build("llama").save_pretrained(tmp_path / "dense")
        base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=four)
        with pytest.raises(Refused, match="quantised"):
            get_peft_model(base, RecursiveConfig(lora_rank=rank))


def test_the_config_survives_its_file():
    config = RecursiveConfig(num_loops=2, rank_pattern={"q_proj": 2}, share_norms=False, order="sequence")
    written = json.loads(json.dumps(config.to_dict()))
    again = ShareConfig(**{k: v for k, v in written.items() if k != "peft_type"})
    assert type(again) is RecursiveConfig and again.to_dict() == config.to_dict()

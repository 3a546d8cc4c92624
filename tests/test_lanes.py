# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Elastic structure: neurons, key-value groups and layers that may be left out, or cut off."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import pytest
import torch
import transformers as tf
import zoo
from peft import get_peft_model
from torch import nn

import hf_share
from hf_share import ConfigError, ElasticConfig, FoldConfig, PlanError, Refused, ShareConfig, SharePlan
from hf_share.hub import quantizer
from hf_share.lanes import Neurons
from hf_share.modules import Share
from hf_share.sites import resolve


X = torch.randint(3, zoo.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
TEXT = [torch.randint(3, zoo.VOCAB, (4, 12), generator=torch.Generator().manual_seed(1))]
BLOCKS = {"llama": ("layers.{}.mlp", "down_proj", 48), "gpt2": ("h.{}.mlp", "c_proj", 128)}


def noisy(arch: str) -> nn.Module:
    """A model whose biases are not zero, so that a bias in the wrong place shows."""
    model, gen = zoo.build(arch).eval(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.copy_(0.3 * torch.randn(value.shape, generator=gen))
    return model


def elastic(arch: str = "llama", **args) -> nn.Module:
    return hf_share.share(noisy(arch), ElasticConfig(**{"bits": [], **args}), calibration=TEXT).eval()


@torch.no_grad()
def logits(model: nn.Module, **kwargs) -> torch.Tensor:
    return model(X, **kwargs).logits


def norms(weight: torch.Tensor, lanes: int) -> torch.Tensor:
    return weight.detach().square().sum(0).unflatten(0, (lanes, -1)).sum(1)


@pytest.mark.parametrize("order", ["l2", "activation"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "phi3", "gpt2", "opt", "neox", "falcon", "bert"])
def test_sorting_leaves_the_function(arch, order):
    before = noisy(arch)
    after = hf_share.share(
        copy.deepcopy(before), ElasticConfig(bits=[], ffn=[0.5], kv_groups=[1], order=order), calibration=TEXT
    )
    torch.testing.assert_close(logits(after.eval()), logits(before), atol=2e-5, rtol=1e-4)
    one, two = before.state_dict(), after.state_dict()
    assert any(not torch.equal(one[name], two[name]) for name in one), "lanes stood in another order before"


def test_lanes_stand_in_the_order_of_their_norms():
    model = elastic(ffn=[0.5], kv_groups=[1], order="l2")
    for layer in model.model.layers:
        for weight, lanes in ((layer.mlp.down_proj.weight, 48), (layer.self_attn.o_proj.weight, 2)):
            found = norms(weight, lanes)
            assert torch.equal(found, found.sort(descending=True).values)


def test_activation_counts_what_lanes_carry():
    """A neuron with a large weight that nothing reaches goes last."""
    model = zoo.build("llama").eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[7] = 0.0
            layer.mlp.down_proj.weight[:, 7] = 9.0
    by = {
        order: hf_share.share(
            copy.deepcopy(model), ElasticConfig(bits=[], ffn=[0.5], order=order), calibration=TEXT
        )
        for order in ("l2", "activation")
    }
    places = {order: int(m.model.layers[0].mlp.down_proj.weight[0].argmax()) for order, m in by.items()}
    assert places == {"l2": 0, "activation": 47}


def by_hand(model: nn.Module, neurons: int, groups: int) -> nn.Module:
    """A Llama with so many neurons and key-value groups, built as any other."""
    config = copy.deepcopy(model.config)
    config.intermediate_size, config.num_key_value_heads = neurons, groups
    config.head_dim, config.num_attention_heads = 8, 2 * groups
    config.__dict__.pop("quantization_config", None)
    small = tf.LlamaForCausalLM(config).eval()
    state = {k: v for k, v in model.state_dict().items() if "share" not in k}
    for name, value in small.state_dict().items():
        state[name] = state[name][tuple(slice(0, n) for n in value.shape)]
    small.load_state_dict(state)
    return small


def test_a_size_is_the_model_that_has_no_other_lanes():
    model = elastic(ffn=[0.25, 0.5], kv_groups=[1])
    assert hf_share.choices(model) == {"ffn": (0.25, 0.5, 1.0), "kv_groups": (1, 2)}
    hf_share.choose(model, ffn=0.5, kv_groups=1)
    torch.testing.assert_close(logits(model), logits(by_hand(model, 24, 1)), atol=1e-6, rtol=1e-5)
    plain = hf_share.materialize(model)
    assert (plain.config.intermediate_size, plain.config.num_key_value_heads) == (24, 1)
    torch.testing.assert_close(logits(plain), logits(by_hand(model, 24, 1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bits", [[], [2, 4]], ids=["plain weights", "codes"])
def test_one_size_by_itself(bits, tmp_path):
    """Left out, cut off in memory, read alone from the file, made plain: one function."""
    model = elastic(bits=bits, ffn=[0.5], kv_groups=[1], depth=[3], group_size=16)
    chosen = {"ffn": 0.5, "kv_groups": 1, **({"bits": 2} if bits else {})}
    hf_share.choose(model, depth=3, **chosen)
    out = logits(model)
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), out)
    config = hf_share.subnet_config(tmp_path / "whole", **chosen)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", config=config)
    # a product with fewer numbers may sum them in another order than one with zeros among them
    torch.testing.assert_close(logits(small), out, atol=1e-6, rtol=1e-5)
    assert hf_share.choices(small) == {"depth": (3, 4)}
    cut = hf_share.extract(copy.deepcopy(model))
    assert torch.equal(logits(cut), logits(small))
    for name, value in small.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]), name
    cut.save_pretrained(tmp_path / "cut")
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")), logits(small))
    sizes = [os.path.getsize(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert sizes[1] < 0.8 * sizes[0]
    for shared in (model, cut):
        plain = hf_share.materialize(shared)
        torch.testing.assert_close(logits(plain), out, atol=1e-6, rtol=1e-5)
        assert (plain.config.intermediate_size, plain.config.num_hidden_layers) == (24, 3)
        plain.save_pretrained(tmp_path / "plain")
        again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
        assert type(again) is tf.LlamaForCausalLM and not hasattr(again.config, "quantization_config")
        assert torch.equal(logits(again), logits(plain))


def test_sizes_of_layers_that_are_all_left_out():
    plan = ElasticConfig(bits=[], ffn=[0.5], depth=[3], order="none").resolve(zoo.build("llama"))
    (step,) = plan.generates
    parts = [replace(step, sites=step.sites[:3]), replace(step, sites=step.sites[3:], group="last")]
    model = hf_share.share(zoo.build("llama"), SharePlan((*plan.arranges, *parts)))
    out = logits(hf_share.choose(model, ffn=0.5, depth=3))
    plain = hf_share.materialize(model)
    torch.testing.assert_close(logits(plain), out, atol=1e-6, rtol=1e-5)
    assert (plain.config.intermediate_size, plain.config.num_hidden_layers) == (24, 3)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no list of what is mapped")
def test_of_a_tensor_that_is_cut_the_file_is_read_no_further(tmp_path, monkeypatch):
    elastic(ffn=[0.5], order="none").save_pretrained(tmp_path)
    cut, seen = quantizer.prefix_of, []

    def seeing(value, shape):
        with open("/proc/self/maps") as maps:
            spans = [line.split()[0].split("-") for line in maps if "model.safetensors" in line]
        seen.append(any(int(low, 16) <= value.data_ptr() < int(high, 16) for low, high in spans))
        return cut(value, shape)

    monkeypatch.setattr(quantizer, "prefix_of", seeing)
    config = hf_share.subnet_config(tmp_path, ffn=0.5)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config, dtype=torch.bfloat16)
    assert len(seen) == 12 and all(seen), "what is cut is the file's map, not a copy or a cast of all of it"
    assert {value.dtype for value in small.parameters()} == {torch.bfloat16}


def test_sizes_may_differ_from_layer_to_layer(tmp_path):
    model = elastic(ffn=[0.25, 0.5])
    sites = [f"layers.{i}.mlp.down_proj" for i in range(4)]
    hf_share.choose(model, ffn=dict(zip(sites, (0.25, 0.5, 0.25, 0.25), strict=True)))
    out = logits(model)
    cut = hf_share.extract(copy.deepcopy(model))
    assert [layer.mlp.up_proj.weight.shape[0] for layer in cut.model.layers] == [16, 24, 16, 16]
    torch.testing.assert_close(logits(cut), out, atol=1e-6, rtol=1e-5)
    cut.save_pretrained(tmp_path / "cut")
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")), logits(cut))
    for shared in (model, cut):  # a stock config has one size: the largest, with zeros where it is smaller
        plain = hf_share.materialize(shared)
        assert plain.config.intermediate_size == 24
        assert not plain.model.layers[0].mlp.down_proj.weight[:, 16:].any()
        torch.testing.assert_close(logits(plain), out, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral", "gemma2"])
def test_layers_of_their_own_sizes_are_plain_by_per_layer_config(arch, tmp_path):
    model = elastic(arch, ffn=[0.5], kv_groups=[1], depth=[3], order="none")
    role = model._hf_share.plan.generates[0].sites[0].partition(".0.")[2]
    hf_share.choose(model, depth=3, ffn={f"layers.1.{role}": 0.5}, kv_groups=1)
    out = logits(model)
    for shared in (model, hf_share.extract(copy.deepcopy(model))):
        plain = hf_share.materialize(shared, per_layer=True)
        torch.testing.assert_close(logits(plain), out, atol=1e-5, rtol=1e-5)
        assert [layer.mlp.up_proj.out_features for layer in plain.model.layers] == [48, 24, 48]
        assert not any(isinstance(m, Share) for m in plain.modules())
        plain.save_pretrained(tmp_path)
    config = tf.AutoConfig.from_pretrained(tmp_path)
    assert [c.intermediate_size for c in config.per_layer_config] == [48, 24, 48]
    assert [c.num_key_value_heads for c in config.per_layer_config] == [1, 1, 1]
    kind = hf_share.per_layer_class(getattr(tf, config.architectures[0]))
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(plain))
    runs = [again.generate(X, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*runs)
    with pytest.raises(RuntimeError, match="mismatch"):  # the stock class, which builds from global sizes
        tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="AutoModelForCausalLM is no model class.*LlamaForCausalLM"):
        hf_share.per_layer_class(tf.AutoModelForCausalLM)


def test_a_config_without_a_word_has_no_per_layer_form():
    model = elastic("opt", kv_groups=[1])
    hf_share.choose(model, kv_groups=1)
    with pytest.raises(Refused, match="no head_dim"):
        hf_share.materialize(model, per_layer=True)
    with pytest.raises(Refused, match="fed by a fused weight"):
        hf_share.materialize(elastic("phi3", ffn=[0.5]), per_layer=True)


@pytest.mark.parametrize("arch", ["gpt2", "opt", "phi3", "neox"])
def test_a_config_without_a_word_for_it_keeps_all_lanes_with_zeros(arch):
    model = elastic(arch, kv_groups=[1])
    hf_share.choose(model, kv_groups=1)
    plain = hf_share.materialize(model)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-6, rtol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in noisy(arch).parameters())


def test_lanes_of_a_fused_weight_are_not_cut():
    model = elastic("gpt2", kv_groups=[1])
    with pytest.raises(Refused, match="c_attn:q' is a part of a weight"):
        hf_share.extract(model, kv_groups=1)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("arch", BLOCKS)
def test_only_active_lanes_learn(arch):
    home, down, lanes = BLOCKS[arch]
    model = elastic(arch, ffn=[0.5], order="none").train()
    hf_share.choose(model, ffn=0.5)
    model(X, labels=X).loss.backward()
    block = resolve(model.base_model, home.format(1))
    weight = getattr(block, down).weight
    inputs = weight.grad.abs().sum(1) if arch == "gpt2" else weight.grad.abs().sum(0)
    assert inputs[: lanes // 2].all() and not inputs[lanes // 2 :].any()
    feed = block.c_fc.weight.grad.abs().sum(0) if arch == "gpt2" else block.up_proj.weight.grad.abs().sum(1)
    assert feed[: lanes // 2].all() and not feed[lanes // 2 :].any()


def test_depth_ranks_layers_and_counts_them(tmp_path):
    model = elastic(depth=[2, 3])
    step = model._hf_share.plan.arranges[0]
    said = step.origin
    assert said.scored_by == "bi" and len(said.scores) == 4
    assert step.drops == tuple(sorted(range(4), key=lambda depth: said.scores[depth]))[:2]
    hf_share.choose(model, depth=3)
    by_hand = noisy("llama")
    del by_hand.model.layers[step.drops[0]]
    assert torch.equal(logits(model, use_cache=False), logits(by_hand, use_cache=False))
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model)) and hf_share.choices(again)["depth"] == (2, 3, 4)
    assert hf_share.materialize(again).config.num_hidden_layers == 3


def test_sorted_preset_is_the_first_layers():
    model = hf_share.share(zoo.build("llama").eval(), ElasticConfig(preset="sorted"))
    assert hf_share.choices(model) == {"depth": (2, 3, 4)}
    hf_share.choose(model, depth=2)
    first = zoo.build("llama").eval()
    first.load_state_dict(model.state_dict(), strict=False)
    first.model.layers = first.model.layers[:2]
    assert torch.equal(logits(model), logits(first))


def test_matformer_preset_has_four_widths():
    model = hf_share.share(zoo.build("llama"), ElasticConfig(preset="matformer"))
    assert hf_share.choices(model) == {"ffn": (0.125, 0.25, 0.5, 1.0)}


def test_decoding_with_a_cache_at_every_size():
    model = elastic(ffn=[0.5], kv_groups=[1], depth=[3])
    for chosen in ({"ffn": 0.5}, {"kv_groups": 1}, {"depth": 3}):
        with hf_share.chosen(model, **chosen):
            runs = [model.generate(X, max_new_tokens=5, do_sample=False, use_cache=c) for c in (True, False)]
            assert torch.equal(*runs)
    cache = model(X, use_cache=True).past_key_values
    with hf_share.chosen(model, depth=3), pytest.raises(Refused, match="cache was filled by 4 depths"):
        model(X[:, :1], past_key_values=cache)


def folded(**args) -> nn.Module:
    config = ShareConfig(methods=[FoldConfig(group_size=2), ElasticConfig(bits=[], **args)])
    return hf_share.share(noisy("llama"), config).eval()


def test_a_tied_weight_is_sorted_once_and_cut_alike():
    before = hf_share.share(noisy("llama"), FoldConfig(group_size=2)).eval()
    model = folded(ffn=[0.5], order="l2")
    torch.testing.assert_close(logits(model), logits(before), atol=2e-5, rtol=1e-4)
    hf_share.choose(model, ffn={"layers.0.mlp.down_proj": 0.5})  # each visit may be of another size
    out = logits(model)
    with pytest.raises(PlanError, match="would keep other lanes of it"):
        hf_share.extract(copy.deepcopy(model))
    assert torch.equal(logits(model), out)
    cut = hf_share.extract(copy.deepcopy(model), ffn=0.5)
    hf_share.choose(model, ffn=0.5)
    torch.testing.assert_close(logits(cut), logits(model), atol=1e-6, rtol=1e-5)
    layers = cut.model.layers
    assert layers[0].mlp.up_proj.weight is layers[1].mlp.up_proj.weight


def test_depth_and_arranged_layers_do_not_mix():
    with pytest.raises(ConfigError, match="its loops are the choice"):
        folded(depth=[2])


@pytest.mark.parametrize("first", [[], [FoldConfig(remove=[0], group_size=2)]], ids=["alone", "after fold"])
def test_a_model_that_treats_lanes_unlike_is_put_back(first):
    class Uneven(nn.Linear):
        """Counts its first neuron twice."""

        def forward(self, x):
            return super().forward(torch.cat([2 * x[..., :1], x[..., 1:]], -1))

    model = noisy("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Uneven
    before, config = copy.deepcopy(model.state_dict()), model.config
    settings, modules = config.to_dict(), dict(model.named_modules())
    with pytest.raises(Refused, match="treats one lane unlike another"):
        hf_share.share(model, ShareConfig(methods=[*first, ElasticConfig(bits=[], ffn=[0.5])]))
    assert dict(model.named_modules()) == modules and model.config is config
    assert config.to_dict() == settings and hf_share.describe(model).plan is None
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(model.model.layers)))
    hf_share.share(model, FoldConfig(group_size=2))


def test_adapters_do_not_hold_structure():
    with pytest.raises(Refused, match="an adapter does not hold"):
        get_peft_model(zoo.build("llama"), ElasticConfig(bits=[], ffn=[0.5]))


def test_an_adapter_on_top_sees_the_active_lanes():
    config = hf_share.ShareLoraConfig(r=2, target_modules=["down_proj"], init_weights=False)
    model = get_peft_model(elastic(ffn=[0.5]), config).eval()
    whole = logits(model)
    hf_share.choose(model, ffn=0.5)
    half = logits(model)
    with torch.no_grad():  # what the other lanes carry is nobody's business
        for layer in model.base_model.model.model.layers:
            layer.mlp.up_proj.weight[24:] *= 3.0
    assert torch.equal(logits(model), half)
    hf_share.choose(model, ffn=None)
    assert not torch.allclose(logits(model), whole)


BAD = {
    "above the whole": ({"ffn": [1.5]}, "shares of the neurons, up to 1"),
    "nothing": ({"ffn": [0.0]}, "sizes above 0 fit"),
    "more groups than there are": ({"kv_groups": [3]}, "this model has 2 key-value groups"),
    "more layers than there are": ({"depth": [5]}, "this model has 4 layers"),
    "an unknown order": ({"ffn": [0.5], "order": "l1"}, "known: 'activation', 'l2', 'none'"),
    "no choice at all": ({}, "one of bits, ranks, ffn, kv_groups, depth"),
}


@pytest.mark.parametrize("args, message", BAD.values(), ids=BAD)
def test_bad_configs(args, message):
    with pytest.raises(ConfigError, match=message):
        hf_share.share(zoo.build("llama"), ElasticConfig(bits=[], **args))


def test_bad_choices():
    model = elastic(ffn=[0.5], depth=[3])
    for args, message in (
        ({"ffn": 0.7}, "ffn=0.7 is not offered"),
        ({"depth": 2}, "depth=2 is not offered"),
        ({"depth": {"layers.0": 3}}, "depth is a choice of a whole stack"),
        ({"ffn": {"layers.0.mlp.up_proj": 0.5}}, "did you mean 'layers.0.mlp.down_proj'"),
    ):
        with pytest.raises(ConfigError, match=message):
            hf_share.choose(model, **args)


def _plan(**args) -> SharePlan:
    given = {
        "lanes": 48, "sizes": [0.5, 1.0], "role": "mlp.down_proj", "feeds": ["mlp.gate_proj", "mlp.up_proj"],
        **args,
    }  # fmt: skip
    step = {"step": "generate", "rule": "neurons", "sites": ["layers.0.mlp.down_proj"], "group": "n"}
    return SharePlan.from_dict({"version": 1, "form": "source", "steps": [{**step, "args": given}]})


HOSTILE = {
    "lanes of another model": ({"lanes": 7}, "has 48 inputs, not 7 lanes"),
    "no whole": ({"sizes": [0.5]}, "is not the whole"),
    "huge": ({"lanes": 1 << 40}, "a whole number from 1 to"),
    "feeds that are not there": ({"feeds": ["mlp.gate_prj"]}, "did you mean 'layers.0.mlp.gate_proj'"),
    "cut feeds that are not there": ({"feeds": ["mlp.gate_prj"], "cut": True}, "did you mean"),
    "cut at other lanes": ({"lanes": 7, "cut": True, "ffn": 0.5}, "not 7 lanes"),
    "another role": ({"role": "mlp.up_proj"}, "is not in the role"),
    "an unknown key": ({"lane": 3}, "did you mean 'lanes'"),
    "a size that is not offered": ({"ffn": 0.3}, "ffn is 0.3; offered are"),
}


@pytest.mark.parametrize("args, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_plans_are_refused(args, message):
    model = zoo.build("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(hf_share.ShareError, match=message):
        hf_share.share(model, _plan(**args))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_limit_comes_before_what_makes_the_weight():
    model = zoo.build("llama")
    low = hf_share.Generate(rule="low_rank", sites=("layers.0.mlp.down_proj",), group="a", args={"r": 2})
    with pytest.raises(PlanError, match="limit it first"):
        hf_share.share(model, SharePlan((low, *_plan().steps)))
    with pytest.raises(PlanError, match="limited by two groups"):
        hf_share.share(model, SharePlan((*_plan().steps, replace(_plan().steps[0], group="m"))))


def test_the_limit_is_the_weight_without_the_columns():
    rule = Neurons(lanes=6, sizes=(0.5, 1.0), role="w", feeds=("a",), ffn=0.5)
    x, W = torch.randn(3, 12), torch.randn(5, 12)
    torch.testing.assert_close(rule.limit(x) @ W.T, x @ rule.weight({"W": W}).T)
    assert not rule.weight({"W": W})[:, 6:].any() and torch.equal(rule.weight({"W": W})[:, :6], W[:, :6])


@pytest.mark.parametrize(
    "args, shares, counts",
    [({"multiple_of": 8}, (0.1, 0.5, 0.9), (8, 24, 40)), ({}, (0.1, 0.5, 0.99), (5, 24, 48))],
)
def test_shares_are_whole_neurons(args, shares, counts):
    rule = Neurons(lanes=48, sizes=(*shares, 1.0), role="w", feeds=("a",), **args)
    assert tuple(map(rule.count, shares)) == counts and rule.count(1.0) == rule.count() == 48

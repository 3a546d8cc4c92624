# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Arrange: depths and lists of the config, sub-layers, and what is refused because it would not reload."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from promises import no_trace, source
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.generation import GenerationMixin
from zoo import build, inputs, logits

import hf_share
from hf_share import Arrange, SharePlan
from hf_share.modules import ZeroSublayer
from hf_share.sites import stacks
from hf_share.train.pretrain import train_tokenizer


def arranged(arch: str, **step) -> nn.Module:
    return hf_share.share(copy.deepcopy(source(arch)), SharePlan((Arrange(**step),)))


def decoded(model: nn.Module, cached: bool) -> torch.Tensor:
    prompt = {k: v for k, v in inputs(model).items() if k != "decoder_input_ids"}
    args = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True}
    out = GenerationMixin.generate(model, **prompt, **args, use_cache=cached, return_dict_in_generate=True)
    return torch.stack(out.logits)


def holds(model: nn.Module, folder) -> None:
    """Decodes with its cache as without, reloads exactly, and its plain form computes the same."""
    if isinstance(model, GenerationMixin):
        torch.testing.assert_close(decoded(model, True), decoded(model, False), rtol=1e-3, atol=1e-4)
    model.save_pretrained(folder)
    assert torch.equal(logits(type(model).from_pretrained(folder)), logits(model))
    plain = hf_share.materialize(model)
    no_trace(plain)
    torch.testing.assert_close(logits(plain), logits(model))


@pytest.mark.parametrize(
    "arch, stack, counts",
    [
        ("gpt2", "h", {"n_layer": 2}),
        ("t5", "decoder.block", {"num_layers": 4, "num_decoder_layers": 2}),
        ("whisper", "encoder.layers", {"encoder_layers": 2, "decoder_layers": 4, "num_hidden_layers": 2}),
        ("whisper", "decoder.layers", {"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4}),
        ("bart", "encoder.layers", {"encoder_layers": 2, "decoder_layers": 4}),
        ("bart", "decoder.layers", {"encoder_layers": 4, "decoder_layers": 2}),
        ("bart_decoder", "decoder.layers", {"encoder_layers": 4, "decoder_layers": 2}),
    ],
)
def test_config_counts_visits(arch, stack, counts, tmp_path):
    model = arranged(arch, stack=stack, order=(0, 2), depth=4)
    assert {name: getattr(model.config, name) for name in counts} == counts
    fresh = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    for name, module in model.named_modules():
        if "config" in module.__dict__:
            assert module.config.to_dict() == fresh[name].config.to_dict(), name
    holds(model, tmp_path)


@pytest.mark.parametrize("arch", ["t5", "whisper"])
@pytest.mark.parametrize("orders", [((0, 1, 1, 2, 2, 3), (0, 0, 3)), ((0, 2), (0, 2))])
def test_two_stacks(arch, orders, tmp_path):
    """A deeper encoder and a shallower decoder, and both cut, in one plan."""
    steps = [Arrange(stack=s, order=o, depth=4) for s, o in zip(stacks(source(arch)), orders, strict=True)]
    model = hf_share.share(copy.deepcopy(source(arch)), SharePlan(tuple(steps)))
    assert [s.depth for s in stacks(model).values()] == [len(o) for o in orders]
    holds(model, tmp_path)


def test_an_encoder_that_counts_the_cache_stays_as_deep():
    model = copy.deepcopy(source("t5"))
    with pytest.raises(
        hf_share.Refused, match="stack 'decoder.block': 4 layers, but T5Config gives its cache 2"
    ):
        hf_share.share(model, hf_share.FoldConfig(stack="encoder.block", remove=[1, 2]))
    assert [s.depth for s in stacks(model).values()] == [4, 4]


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
@pytest.mark.parametrize("order", [(1, 2), (0, 1, 1, 0), (3, 2, 1, 0)])
def test_layer_types_follow_their_layers(arch, order, tmp_path):
    kinds = source(arch).config.layer_types
    model = arranged(arch, stack="layers", order=order, depth=4)
    assert model.config.layer_types == [kinds[layer] for layer in order]
    assert [bool(layer.self_attn.sliding_window) for layer in model.model.layers] == [
        kind.startswith("sliding") for kind in model.config.layer_types
    ]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(order)))
    holds(model, tmp_path)


def test_a_depth_keeps_the_kind_of_the_layer_it_stands_for(tmp_path):
    """A tie shares weights; whether a layer slides its window is no weight."""
    model = arranged("gemma2", stack="layers", order=(0, 0, 2, 2), sources=(0, 1, 2, 3), depth=4)
    assert model.config.layer_types == source("gemma2").config.layer_types
    layers = model.model.layers
    assert [bool(layer.self_attn.sliding_window) for layer in layers] == [True, False, True, False]
    assert layers[1].mlp.up_proj.weight is layers[0].mlp.up_proj.weight
    holds(model, tmp_path)


def test_a_single_tensor_can_be_private(tmp_path):
    pairs = {"stack": "h", "order": (0, 0, 2, 2), "sources": (0, 1, 2, 3)}
    model = arranged("gpt2", **pairs, private=("attn.c_attn.bias",))
    mine, theirs = model.transformer.h[1], source("gpt2").transformer.h[1]
    assert torch.equal(mine.attn.c_attn.bias, theirs.attn.c_attn.bias)
    assert mine.attn.c_attn.weight is model.transformer.h[0].attn.c_attn.weight
    assert mine.mlp.c_fc.bias is model.transformer.h[0].mlp.c_fc.bias
    holds(model, tmp_path)
    with pytest.raises(hf_share.SiteError, match="unknown role of stack 'h' 'attn.c_attn.bais'"):
        arranged("gpt2", **pairs, private=("attn.c_attn.bais",))


def test_gpt_neo_spells_its_attention_types_anew(tmp_path):
    model = arranged("gpt_neo", stack="h", order=(0, 2, 3), depth=4)
    assert model.config.attention_layers == ["global", "global", "local"]
    holds(model, tmp_path)


@pytest.mark.parametrize("arch", ["gpt_oss", "mamba2", "falcon_old"])
def test_special_architectures_fold(arch, tmp_path):
    model = hf_share.share(copy.deepcopy(source(arch)), hf_share.FoldConfig(group_size=2))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))
    torch.testing.assert_close(logits(hf_share.materialize(model)), logits(model))
    assert sum(p.numel() for p in model.parameters()) < 0.75 * sum(
        p.numel() for p in source(arch).parameters()
    )


def test_a_list_that_may_be_one_entry_a_layer_is_refused():
    model = copy.deepcopy(source("llama"))
    model.config.my_scales = [1, 2, 3, 4]
    before = copy.deepcopy(model.config.to_dict())
    with pytest.raises(hf_share.Refused, match="'my_scales' has 4 entries"):
        hf_share.share(model, hf_share.FoldConfig(remove=[2]))
    assert model.config.to_dict() == before and len(model.model.layers) == 4
    model.config.my_scales = [1, 2, 3]
    assert len(hf_share.share(model, hf_share.FoldConfig(remove=[2])).model.layers) == 3


def test_a_depth_that_nothing_counts_cannot_change():
    model = nn.ModuleDict(
        {"h": nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3))}
    )
    model.config = source("llama").config
    with pytest.raises(hf_share.Refused, match="stack 'h': no key of LlamaConfig counts its 3 layers"):
        hf_share.rebuild.arranged_config(model, (Arrange(stack="h", order=(0, 1)),))


SUBLAYERS = [
    ("llama", "layers", "self_attn"), ("llama", "layers", "mlp"), ("gpt2", "h", "attn"), ("gpt2", "h", "mlp"),
    ("neox", "layers", "attention"), ("neox", "layers", "mlp"), ("falcon", "h", "self_attention"),
    ("falcon", "h", "mlp"), ("opt", "decoder.layers", "self_attn"), ("qwen3", "layers", "self_attn"),
    ("gemma2", "layers", "mlp"), ("vit", "layers", "attention"), ("vit", "layers", "mlp"),
    ("whisper", "decoder.layers", "encoder_attn"), ("mixtral", "layers", "self_attn"),
]  # fmt: skip


@pytest.mark.parametrize("arch, stack, role", SUBLAYERS)
def test_sublayer_removed(arch, stack, role, tmp_path):
    model = arranged(arch, stack=stack, order=(0, 1, 2, None), roles=(role,), depth=4)
    layer = stacks(model)[stack].layers[3]
    assert isinstance(layer.get_submodule(role), ZeroSublayer)
    gone = sum(p.numel() for p in stacks(source(arch))[stack].layers[3].get_submodule(role).parameters())
    assert (
        sum(p.numel() for p in source(arch).parameters()) - sum(p.numel() for p in model.parameters()) == gone
    )
    assert not torch.equal(logits(model), logits(source(arch)))
    holds(model, tmp_path)


@pytest.mark.parametrize(
    "arch, stack, role, order, place",
    [
        ("llama", "layers", "self_attn", (None, 1, 2, 3), "stack 'layers', depth 0: 'self_attn'"),
        ("gpt2", "h", "attn", (None, 1, 2, 3), "stack 'h', depth 0: 'attn'"),
        ("gemma2", "layers", "self_attn", (0, None, 2, 3), "stack 'layers', depth 1: 'self_attn'"),
        (
            "bert",
            "encoder.layer",
            "attention",
            (0, 1, 2, None),
            "stack 'encoder.layer', depth 3: 'attention'",
        ),
        ("bert", "encoder.layer", "output", (0, 1, None, 3), "stack 'encoder.layer', depth 2: 'output'"),
        ("t5", "decoder.block", "layer.1", (0, 1, None, 3), "stack 'decoder.block', depth 2: 'layer.1'"),
        ("t5", "encoder.block", "layer.0.SelfAttention", (0, 1, None, 3), "'layer.0.SelfAttention'"),
        ("opt", "decoder.layers", "fc1", (0, 1, None, 3), "stack 'decoder.layers', depth 2: 'fc1'"),
        ("mixtral", "layers", "mlp", (0, 1, None, 3), "stack 'layers', depth 2: 'mlp'"),
        ("mamba", "layers", "mixer", (0, 1, None, 3), "stack 'layers', depth 2: 'mixer'"),
    ],
)
def test_sublayer_refused(arch, stack, role, order, place):
    model = copy.deepcopy(source(arch))
    before = model.state_dict().keys()
    with pytest.raises(hf_share.Refused, match=re.escape(place)):
        hf_share.share(model, SharePlan((Arrange(stack=stack, order=order, roles=(role,), depth=4),)))
    assert model.state_dict().keys() == before


@pytest.mark.parametrize(
    "arch, stack, role",
    [
        ("llama", "layers", "mlp"),
        ("gpt2", "h", "attn"),
        ("t5", "encoder.block", "layer.1"),
        ("bert", "encoder.layer", "attention"),
    ],
)
def test_sublayer_shared(arch, stack, role, tmp_path):
    model = arranged(arch, stack=stack, order=(0, 1, 1, 3), roles=(role,), depth=4)
    one, two = (stacks(model)[stack].layers[d] for d in (1, 2))
    for name, p in one.named_parameters():
        assert (p is dict(two.named_parameters(remove_duplicate=False)).get(name)) == name.startswith(
            f"{role}."
        )
    holds(model, tmp_path)


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 0, 3)])
def test_the_owner_of_the_position_bias_stays(order):
    with pytest.raises(
        hf_share.Refused, match="layer 0 owns 'layer.0.SelfAttention.relative_attention_bias.weight'"
    ):
        arranged("t5", stack="encoder.block", order=order, depth=4)


@pytest.mark.parametrize(
    "step, says",
    [
        ({"stack": "layer", "order": (0,)}, "did you mean 'layers'"),
        ({"stack": "layers", "order": (0, 4)}, "order names layer 4, this model has layers 0 to 3"),
        ({"stack": "layers", "order": (0, 1), "depth": 5}, "the plan is for 5 layers, this model has 4"),
        ({"stack": "layers", "order": (0, 1), "private": ("norms",)}, "role of stack 'layers' 'norms'"),
        ({"stack": "layers", "order": (0, None), "roles": ("mlp",)}, "arranged within 4 depths, order has 2"),
    ],
)
def test_places_that_do_not_exist(step, says):
    with pytest.raises(hf_share.SiteError, match=re.escape(says)):
        arranged("llama", **step)


def test_block_influence_by_hand():
    model = source("llama")
    ids = [torch.randint(3, 96, (2, 6), generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    found = hf_share.block_influence(model, ids)
    for depth, layer in enumerate(model.model.layers):
        turned = []
        for batch in ids:
            states = []
            handle = layer.register_forward_hook(lambda m, a, out, states=states: states.extend([a[0], out]))
            logits(model, input_ids=batch)
            handle.remove()
            x, y = (
                states[0].flatten(0, 1),
                (states[1][0] if isinstance(states[1], tuple) else states[1]).flatten(0, 1),
            )
            turned += [1 - (a @ b) / (a.norm() * b.norm()) for a, b in zip(x, y, strict=True)]
        assert found[depth] == pytest.approx(float(torch.stack(turned).mean()), abs=1e-5)
    least = min(range(4), key=lambda d: found[d])
    plan = hf_share.FoldConfig(removal_rate=0.25).resolve(model, ids)
    assert plan.arranges[0].order == tuple(d for d in range(4) if d != least)


def test_texts_are_read_by_the_tokenizer_beside_the_model(tmp_path):
    build("llama", vocab_size=300).save_pretrained(tmp_path)
    texts = [f"def f{i}(x):\n    return x * {i}\n" for i in range(40)]
    tokenizer = train_tokenizer(texts, vocab_size=290, context=64)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = hf_share.tokenize(tokenizer, texts, length=64)
    assert hf_share.block_influence(model, texts) == hf_share.block_influence(model, tokens)

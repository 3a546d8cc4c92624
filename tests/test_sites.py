# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Stacks, roles, shapes and parts of every architecture, found by structure."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from promises import source
from renamed import RenamedLlama
from torch import nn
from zoo import FFN, MODELS, SPECIAL, WIDTH, build, inputs, logits

import hf_share
from hf_share.sites import depth_key, find_site, sites, stacks


HALF = WIDTH // 2
SQUARE, NARROW, WIDE, BACK = (WIDTH, WIDTH), (HALF, WIDTH), (FFN, WIDTH), (WIDTH, FFN)

GATED = {"mlp.gate_proj": WIDE, "mlp.up_proj": WIDE, "mlp.down_proj": BACK}
LLAMA = {
    "self_attn.q_proj": SQUARE, "self_attn.k_proj": NARROW, "self_attn.v_proj": NARROW,
    "self_attn.o_proj": SQUARE,
}  # fmt: skip
ATTENTION = {f"self_attn.{n}": SQUARE for n in ("k_proj", "v_proj", "q_proj", "out_proj")}
CROSS = {f"encoder_attn.{n}": SQUARE for n in ("k_proj", "v_proj", "q_proj", "out_proj")}
FEED = {"fc1": WIDE, "fc2": BACK}
BERT = {
    "attention.self.query": SQUARE, "attention.self.key": SQUARE, "attention.self.value": SQUARE,
    "attention.output.dense": SQUARE, "intermediate.dense": WIDE, "output.dense": BACK,
}  # fmt: skip
T5_SELF = {f"layer.0.SelfAttention.{n}": SQUARE for n in "qkvo"}
T5_CROSS = {f"layer.1.EncDecAttention.{n}": SQUARE for n in "qkvo"}
TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
BART_NORMS = ("self_attn_layer_norm", "final_layer_norm")
CROSS_NORMS = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")


def t5_feed(n: int) -> dict[str, tuple[int, int]]:
    return {f"layer.{n}.DenseReluDense.wi": WIDE, f"layer.{n}.DenseReluDense.wo": BACK}


# architecture -> stack -> (config key that counts it, norms, role -> (out, in))
GRID = {
    "llama": {"layers": ("num_hidden_layers", TWO_NORMS, {**LLAMA, **GATED})},
    "mistral": {"layers": ("num_hidden_layers", TWO_NORMS, {**LLAMA, **GATED})},
    "qwen2": {"layers": ("num_hidden_layers", TWO_NORMS, {**LLAMA, **GATED})},
    "qwen3": {"layers": ("num_hidden_layers", (*HEAD_NORMS, *TWO_NORMS), {**LLAMA, **GATED})},
    "gemma2": {"layers": ("num_hidden_layers", FOUR_NORMS, {**LLAMA, **GATED})},
    "gemma3": {"layers": ("num_hidden_layers", (*HEAD_NORMS, *FOUR_NORMS), {**LLAMA, **GATED})},
    "phi3": {"layers": ("num_hidden_layers", TWO_NORMS, {
        "self_attn.o_proj": SQUARE, "self_attn.qkv_proj": (2 * WIDTH, WIDTH), "self_attn.qkv_proj:q": SQUARE,
        "self_attn.qkv_proj:k": NARROW, "self_attn.qkv_proj:v": NARROW, "mlp.gate_up_proj": (2 * FFN, WIDTH),
        "mlp.gate_up_proj:gate": WIDE, "mlp.gate_up_proj:up": WIDE, "mlp.down_proj": BACK})},
    "gpt2": {"h": ("n_layer", ("ln_1", "ln_2"), {
        "attn.c_attn": (3 * WIDTH, WIDTH), "attn.c_attn:q": SQUARE, "attn.c_attn:k": SQUARE,
        "attn.c_attn:v": SQUARE, "attn.c_proj": SQUARE, "mlp.c_fc": (4 * WIDTH, WIDTH),
        "mlp.c_proj": (WIDTH, 4 * WIDTH)})},
    "neox": {"layers": ("num_hidden_layers", TWO_NORMS, {
        "attention.query_key_value": (3 * WIDTH, WIDTH), "attention.query_key_value:q": SQUARE,
        "attention.query_key_value:k": SQUARE, "attention.query_key_value:v": SQUARE,
        "attention.dense": SQUARE, "mlp.dense_h_to_4h": WIDE, "mlp.dense_4h_to_h": BACK})},
    "opt": {"decoder.layers": ("num_hidden_layers", BART_NORMS, {**ATTENTION, **FEED})},
    "falcon": {"h": ("num_hidden_layers", ("ln_attn", "ln_mlp"), {
        "self_attention.query_key_value": (2 * WIDTH, WIDTH), "self_attention.query_key_value:q": SQUARE,
        "self_attention.query_key_value:k": NARROW, "self_attention.query_key_value:v": NARROW,
        "self_attention.dense": SQUARE, "mlp.dense_h_to_4h": (4 * WIDTH, WIDTH),
        "mlp.dense_4h_to_h": (WIDTH, 4 * WIDTH)})},
    "bert": {"encoder.layer": ("num_hidden_layers", BERT_NORMS, BERT)},
    "roberta": {"encoder.layer": ("num_hidden_layers", BERT_NORMS, BERT)},
    "t5": {
        "encoder.block": ("num_layers", tuple(f"layer.{i}.layer_norm" for i in range(2)),
                          {**T5_SELF, **t5_feed(1)}),
        "decoder.block": ("num_decoder_layers", tuple(f"layer.{i}.layer_norm" for i in range(3)),
                          {**T5_SELF, **T5_CROSS, **t5_feed(2)})},
    "vit": {"layers": ("num_hidden_layers", ("layernorm_before", "layernorm_after"), {
        **{f"attention.{n}_proj": SQUARE for n in "qkvo"}, "mlp.fc1": WIDE, "mlp.fc2": BACK})},
    "whisper": {
        "encoder.layers": ("encoder_layers", BART_NORMS, {**ATTENTION, **FEED}),
        "decoder.layers": ("decoder_layers", CROSS_NORMS, {**ATTENTION, **CROSS, **FEED})},
    "mixtral": {"layers": ("num_hidden_layers", TWO_NORMS, {
        **LLAMA, "mlp.experts.gate_up_proj": (2 * FFN, WIDTH), "mlp.experts.down_proj": BACK})},
    "qwen_moe": {"layers": ("num_hidden_layers", (*HEAD_NORMS, *TWO_NORMS), {
        **LLAMA, "mlp.experts.gate_up_proj": (32, WIDTH), "mlp.experts.down_proj": (WIDTH, 16)})},
    "mamba": {"layers": ("num_hidden_layers", ("norm",), {
        "mixer.in_proj": (4 * WIDTH, WIDTH), "mixer.x_proj": (10, 2 * WIDTH), "mixer.dt_proj": (2 * WIDTH, 2),
        "mixer.out_proj": (WIDTH, 2 * WIDTH)})},
    "bart": {
        "encoder.layers": ("encoder_layers", BART_NORMS, {**ATTENTION, **FEED}),
        "decoder.layers": ("decoder_layers", CROSS_NORMS, {**ATTENTION, **CROSS, **FEED})},
    "bart_decoder": {"decoder.layers": ("decoder_layers", CROSS_NORMS, {**ATTENTION, **CROSS, **FEED})},
    "gpt_neo": {"h": ("num_layers", ("ln_1", "ln_2"), {
        **{f"attn.attention.{n}_proj": SQUARE for n in ("k", "v", "q")}, "attn.attention.out_proj": SQUARE,
        "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH)})},
    "gpt_oss": {"layers": ("num_hidden_layers", TWO_NORMS, {
        **LLAMA, "mlp.experts.gate_up_proj": (2 * FFN, WIDTH), "mlp.experts.down_proj": BACK})},
    "mamba2": {"layers": ("num_hidden_layers", ("norm", "mixer.norm"), {
        "mixer.in_proj": (144, WIDTH), "mixer.out_proj": (WIDTH, 2 * WIDTH)})},
    "falcon_old": {"h": ("num_hidden_layers", ("input_layernorm",), {
        "self_attention.query_key_value": (48, WIDTH), "self_attention.query_key_value:q": SQUARE,
        "self_attention.query_key_value:k": (8, WIDTH), "self_attention.query_key_value:v": (8, WIDTH),
        "self_attention.dense": SQUARE, "mlp.dense_h_to_4h": (4 * WIDTH, WIDTH),
        "mlp.dense_4h_to_h": (WIDTH, 4 * WIDTH)})},
}  # fmt: skip


@pytest.mark.parametrize("arch", [*MODELS, *SPECIAL])
def test_grid(arch):
    model = source(arch)
    found = stacks(model)
    assert list(found) == list(GRID[arch])
    for path, (key, norms, roles) in GRID[arch].items():
        stack = found[path]
        assert stack.depth == 4
        assert depth_key(model, stack) == ((), key)
        assert stack.norms == norms
        for depth in range(4):
            here = [s for s in sites(model, parts=True) if (s.stack, s.depth) == (path, depth)]
            assert {s.role: s.shape for s in here} == roles
            assert all(s.name == f"{path}.{depth}.{s.role}" for s in here)


@pytest.mark.parametrize(
    "arch, kind, names",
    [
        ("llama", "expert", ()),
        ("mixtral", "expert", ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
        ("vit", "expert", ()),
        ("gpt2", "conv1d", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        ("mamba", "read", ("mixer.x_proj", "mixer.dt_proj", "mixer.out_proj")),
        ("mamba2", "read", ("mixer.out_proj",)),
        ("t5", "read", ()),
    ],
)
def test_kinds(arch, kind, names):
    found = [s.role for s in sites(source(arch)) if s.kind == kind]
    assert tuple(dict.fromkeys(found)) == names


def test_torch_attention_is_read():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = nn.MultiheadAttention(8, 2), nn.Linear(8, 8)

    found = {s.name: s.kind for s in sites(nn.ModuleDict({"h": nn.ModuleList([Layer(), Layer()])}))}
    assert found["h.1.attn.out_proj"] == "read" and found["h.1.mlp"] == "linear"


@pytest.mark.parametrize("arch", ["mixtral", "qwen_moe", "gpt_oss", "mamba", "mamba2"])
def test_what_no_rule_can_reach_is_refused_by_name(arch):
    model = build(arch)
    site = next(s for s in sites(model) if s.kind in ("expert", "read"))
    step = hf_share.Generate(rule="low_rank", sites=(site.name,), group="g", args={"r": 2})
    with pytest.raises(hf_share.Refused, match=re.escape(repr(site.name))):
        hf_share.share(model, hf_share.SharePlan((step,)))
    config = hf_share.ShareLoraConfig(r=2, target_modules=[site.role])
    with pytest.raises(hf_share.SiteError, match=re.escape(site.role)):
        hf_share.share(model, config)
    everything = hf_share.ShareLoraConfig(r=2, target_modules="all-linear").resolve(model)
    named = {name for step in everything.generates for name in step.sites}
    assert named and not named & {s.name for s in sites(model) if s.kind in ("expert", "read")}


@pytest.mark.parametrize("arch", MODELS)
def test_default_targets_fit(arch):
    plan = hf_share.ShareLoraConfig(r=2).resolve(source(arch))
    assert plan.generates


@pytest.mark.parametrize("arch", ["phi3", "gpt2", "neox", "falcon", "falcon_old"])
def test_parts_are_the_rows_attention_uses(arch, monkeypatch):
    """Zero the rows of one part, and it is that input of attention, and no other, that becomes zero."""
    model = build(arch)
    whole = next(s.module for s in sites(model, parts=True) if s.part and s.part.name == "q")
    parts = {s.part.name: s.part for s in sites(model, parts=True) if s.part and s.module == whole}
    module = find_module(model, whole)
    seen: list[tuple[torch.Tensor, ...]] = []
    attend = F.scaled_dot_product_attention

    def spy(q, k, v, *args, **kwargs):
        seen.append((q, k, v))
        return attend(q, k, v, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    logits(model)
    usual = seen[0]
    assert set(parts) == set("qkv")
    for name, part in parts.items():
        saved = {n: p.detach().clone() for n, p in module.named_parameters()}
        with torch.no_grad():
            for p in module.parameters():
                (p.T if p.dim() == 2 and arch == "gpt2" else p)[part.rows()] = 0.0
            seen.clear()
            logits(model)
            for n, p in module.named_parameters():
                p.copy_(saved[n])
        for letter, got, was in zip("qkv", seen[0], usual, strict=True):
            assert (got.abs().max() == 0) if letter == name else torch.equal(got, was)


def test_halves_are_gate_and_up():
    model = build("phi3")
    part = {s.role: s.part for s in sites(model, parts=True)}["mlp.gate_up_proj:gate"]
    mlp, seen = model.model.layers[0].mlp, []
    mlp.activation_fn.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        mlp.gate_up_proj.weight[part.rows()] = 0.0
    logits(model)
    assert seen[0].abs().max() == 0


@pytest.mark.parametrize("arch", ["phi3", "neox", "falcon"])
def test_place_and_rows_agree(arch):
    for site in sites(source(arch), parts=True):
        if site.part is None:
            continue
        y = torch.arange(1.0, site.out_features + 1)
        whole = site.part.place(y)
        assert torch.equal(whole[site.part.rows()], y)
        assert whole.count_nonzero() == site.out_features


def find_module(model: nn.Module, path: str) -> nn.Module:
    return hf_share.sites.resolve(hf_share.sites.backbone(model), path)


def test_renamed_modules(tmp_path):
    """A class of its own, with other names for everything, is found, shared, saved and loaded."""
    model = RenamedLlama.tiny()
    (stack,) = stacks(model).values()
    assert (stack.path, stack.depth) == ("blocks", 4)
    roles = {s.role: s.shape for s in sites(model) if s.depth == 0}
    assert roles == {
        **{r.replace("self_attn.q_proj", "self_attn.wq"): s for r, s in LLAMA.items()}, **GATED
    }  # fmt: skip
    lora = hf_share.ShareLoraConfig(r=2, target_modules=["wq"], init_weights=False)
    config = hf_share.ShareConfig(methods=[hf_share.FoldConfig(remove=[1], group_size=2), lora])
    shared = hf_share.share(model, config)
    shared.save_pretrained(tmp_path)
    assert torch.equal(logits(RenamedLlama.from_pretrained(tmp_path)), logits(shared))


def test_unknown_names_suggest_the_nearest():
    model = source("llama")
    index = {s.name: s for s in sites(model)}
    with pytest.raises(hf_share.SiteError, match="did you mean 'layers.0.mlp.up_proj'"):
        find_site(index, "layers.0.mlp.up_prj")
    with pytest.raises(hf_share.SiteError, match="did you mean 'q_proj'"):
        hf_share.ShareLoraConfig(r=2, target_modules=["q_porj"]).resolve(model)
    assert inputs(model)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Golden counts of parameters, from the papers' formulas, on real shapes built on the meta device."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from functools import cache

import peft
import pytest
import torch
import transformers as tf
from torch import nn

import hf_share
from hf_share import (
    ElasticConfig,
    FoldConfig,
    MasaConfig,
    MosConfig,
    RecursiveConfig,
    ShareLoraConfig,
    SharePlan,
)


LLAMA_3 = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_3_2 = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = {
    "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
}  # fmt: skip
TINY = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4,
}  # fmt: skip
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# the paper's two matrices of 4 d are the gated three of 8/3 d; size M follows from its 20 tokens a parameter
MASA = {"vocab_size": 32000, "tie_word_embeddings": True}
MASA_S = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
MASA_M = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 24, "num_attention_heads": 16}
MASA_L = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 24}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}

SHAPES = {
    "LLaMA-2-7B": lambda: tf.LlamaForCausalLM(tf.LlamaConfig()),
    "LLaMA-3-8B": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA_3)),
    "LLaMA-3.2-3B": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA_3_2)),
    "Gemma-2B": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**GEMMA)),
    "TinyLlama-1.1B": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TINY)),
    "RoBERTa-base": lambda: tf.RobertaModel(tf.RobertaConfig(**ROBERTA)),
    "RoBERTa-large": lambda: tf.RobertaModel(tf.RobertaConfig(**ROBERTA, **LARGE)),
    "MASA S": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**MASA, **MASA_S)),
    "MASA L": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**MASA, **MASA_L)),
    "MASA S, 2 key heads": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**MASA, **MASA_S, num_key_value_heads=2)
    ),
    "MASA M, 2 key heads": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**MASA, **MASA_M, num_key_value_heads=2)
    ),
    "MASA L, 4 key heads": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**MASA, **MASA_L, num_key_value_heads=4)
    ),
    "GPT-2 medium": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
}
TOTAL = {"LLaMA-2-7B": 6_738_415_616, "Gemma-2B": 2_506_172_416, "TinyLlama-1.1B": 1_100_048_384}
ALL = {"r": 64, "target_modules": "all-linear"}
QV = {"r": 8, "target_modules": ["query", "value"]}
FUSED = {"r": 4, "target_modules": ["c_attn:q", "c_attn:v"]}
UNSPLIT = {"r": 4, "target_modules": ["c_attn"]}  # one pair for q, k and v together, as in peft's LoRA
QKV = ("q_proj", "k_proj", "v_proj")

# model, config, counts of LoRA, ShareA_qkv, ShareA, ShareB, ShareAB
SHARE_LORA = [
    ("LLaMA-2-7B", ALL, (159_907_840, 135_528_448, 89_309_184, 75_595_776, 4_997_120)),
    ("LLaMA-3-8B", ALL, (167_772_160, 143_392_768, 90_570_752, 82_444_288, 5_242_880)),
    ("RoBERTa-base", QV, (294_912, None, 159_744, 159_744, 24_576)),
    ("RoBERTa-large", QV, (786_432, None, 409_600, 409_600, 32_768)),
    ("GPT-2 medium", FUSED, (393_216, None, 204_800, 204_800, 16_384)),
    ("GPT-2 medium", UNSPLIT, (393_216, None, 299_008, None, None)),
]
VARIANTS = ("", "A_qkv", "A", "B", "AB")

# model, percent of all parameters that is gone when (layers are removed, groups share)
FOLD = [
    ("LLaMA-2-7B", {(0, 2): 48.1, (3, 1): 9.0, (9, 1): 27.0, (4, 2): 54.1, (8, 2): 60.1}),
    ("Gemma-2B", {(0, 2): 39.5, (3, 1): 13.2, (9, 1): 39.5, (4, 2): 48.3, (8, 2): 57.1}),
    ("TinyLlama-1.1B", {(0, 2): 44.0, (3, 1): 12.0, (9, 1): 36.0, (4, 2): 52.1, (8, 2): 60.1}),
]


@cache
def source(name: str) -> nn.Module:
    with torch.device("meta"):
        return SHAPES[name]()


def meta(name: str) -> nn.Module:
    return copy.deepcopy(source(name))


def unique(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def plan_of(name: str, config: dict, variant: str) -> SharePlan:
    share, _, only = variant.partition("_")
    plan = ShareLoraConfig(**config, share=share or "A", share_modules=QKV if only else None).resolve(
        source(name)
    )
    if share:
        return plan
    kept = [{k: v for k, v in step.args.items() if k != "share"} for step in plan.generates]  # plain LoRA
    return SharePlan(tuple(dataclasses.replace(s, args=a) for s, a in zip(plan.generates, kept, strict=True)))


@pytest.mark.parametrize(
    "name, config, variant, count",
    [(n, c, v, k) for n, c, counts in SHARE_LORA for v, k in zip(VARIANTS, counts, strict=True) if k],
    ids=[
        f"{n}-{v or 'LoRA'}"
        for n, _, counts in SHARE_LORA
        for v, k in zip(VARIANTS, counts, strict=True)
        if k
    ],
)
def test_share_lora(name, config, variant, count):
    model = meta(name)
    before = unique(model)
    hf_share.share(model, plan_of(name, config, variant))
    added = {n: p for n, p in model.named_parameters() if ".share." in n or "shared_stores.lora" in n}
    assert unique(model) - before == count == sum(p.numel() for p in added.values())
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name, config, counts", SHARE_LORA[2:5], ids=[row[0] for row in SHARE_LORA[2:5]])
def test_share_lora_through_peft(name, config, counts):
    for variant, count in zip(VARIANTS[2:], counts[2:], strict=True):
        model = peft.get_peft_model(meta(name), ShareLoraConfig(**config, share=variant))
        assert model.get_nb_trainable_parameters()[0] == count
        assert all(p.is_meta for p in model.parameters())


def test_the_largest_row_through_peft():
    model = peft.get_peft_model(meta("LLaMA-2-7B"), ShareLoraConfig(**ALL))
    assert model.get_nb_trainable_parameters()[0] == 89_309_184


@pytest.mark.parametrize(
    "name, removed, group, percent",
    [(name, *key, percent) for name, row in FOLD for key, percent in row.items()],
)
def test_fold(name, removed, group, percent):
    whole, private = meta(name), meta(name)
    assert unique(whole) == TOTAL[name]
    config = {"remove": list(range(5, 5 + removed)), "group_size": group}
    hf_share.share(whole, FoldConfig(**config, share_norms=True))  # the table counts whole blocks
    assert round(100 * (1 - unique(whole) / TOTAL[name]), 1) == percent
    hf_share.share(private, FoldConfig(**config))
    sets = {id(layer.mlp.up_proj.weight) for layer in private.model.layers}
    again = private.config.num_hidden_layers - len(sets)
    assert unique(private) - unique(whole) == again * 2 * private.config.hidden_size, "norms stay private"


# model, equivalent rank, count; the same for every r, p and l
MOS = [
    ("LLaMA-2-7B", 2, 4_997_120),
    ("LLaMA-2-7B", 8, 19_988_480),
    ("LLaMA-3-8B", 2, 5_242_880),
    ("LLaMA-3-8B", 8, 20_971_520),
    ("LLaMA-3.2-3B", 2, 3_039_232),
    ("LLaMA-3.2-3B", 8, 12_156_928),
]


@pytest.mark.parametrize("r, p, shards", [(8, 1, 2), (9, 0, 1), (16, 1, 4)])
@pytest.mark.parametrize("name, rank, count", MOS)
def test_mos(name, rank, count, r, p, shards):
    config = MosConfig(
        r=r, equivalent_rank=rank, private_rank=p, num_shards=shards, target_modules="all-linear"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unused shards, which is not asked here
        plan = config.resolve(source(name))
    model = meta(name)
    before = unique(model)
    hf_share.share(model, plan)
    assert unique(model) - before == count
    assert all(p.is_meta for p in model.parameters())


# model, rank, count: what MoS stands beside
LORA = [
    ("LLaMA-2-7B", 16, 39_976_960),
    ("LLaMA-3-8B", 16, 41_943_040),
    ("LLaMA-3.2-3B", 16, 24_313_856),
    ("LLaMA-3.2-3B", 64, 97_255_424),
]


@pytest.mark.parametrize("name, rank, count", LORA)
def test_lora(name, rank, count):
    model = meta(name)
    before = unique(model)
    hf_share.share(model, plan_of(name, {**ALL, "r": rank}, ""))
    assert unique(model) - before == count


# model, rank -> billions of parameters outside embeddings and head, in two loops
RECURSIVE = [
    ("Gemma-2B", {0: 0.991, 64: 1.069, 128: 1.148, 256: 1.305, 512: 1.597}),
    ("TinyLlama-1.1B", {0: 0.484, 64: 0.535, 128: 0.585, 256: 0.686, 512: 0.862}),
]
# Gemma-2B with ranks of its own for q, for k and v, for o, and for the feed-forward weights
MIXED = {
    (128, 256, 128, 256): 1.286,
    (256, 256, 256, 128): 1.177,
    (128, 128, 128, 64): 1.084,
    (64, 64, 64, 128): 1.133,
}


def inner(model: nn.Module) -> int:
    return unique(model.model.layers)


@pytest.mark.parametrize(
    "name, rank, billions", [(name, rank, b) for name, row in RECURSIVE for rank, b in row.items()]
)
def test_recursive(name, rank, billions):
    model, layers = meta(name), source(name).config.num_hidden_layers
    hf_share.share(model, RecursiveConfig(lora_rank=rank, share_norms=True))
    assert round(inner(model) / 1e9, 3) == billions
    block = inner(source(name)) // 2
    linears = [m for m in source(name).model.layers[0].modules() if isinstance(m, nn.Linear)]
    shapes = [(m.in_features, m.out_features) for m in linears]
    assert inner(model) - block == layers * sum(min(rank, *shape) * sum(shape) for shape in shapes)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name, billions", [("Gemma-2B", 1.982), ("TinyLlama-1.1B", 0.969)])
def test_what_recursion_starts_from(name, billions):
    assert round(inner(source(name)) / 1e9, 3) == billions


@pytest.mark.parametrize("q, kv, o, ffn", MIXED)
def test_recursive_with_mixed_ranks(q, kv, o, ffn):
    model = meta("Gemma-2B")
    pattern = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": o}
    hf_share.share(model, RecursiveConfig(lora_rank=ffn, rank_pattern=pattern))
    assert round(inner(model) / 1e9, 3) == MIXED[q, kv, o, ffn]


def test_recursive_through_peft():
    model = peft.get_peft_model(meta("Gemma-2B"), RecursiveConfig(lora_rank=512))
    trained = model.get_nb_trainable_parameters()[0]
    assert round((trained + inner(source("Gemma-2B")) // 2) / 1e9, 3) == 1.597


def of_attention(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n)


# size -> numbers in millions: all matrices, of them attention's
MASA_SIZES = {"MASA S": (109.5, 28.31), "MASA L": (728.6, 226.49)}


@pytest.mark.parametrize("name", MASA_SIZES)
def test_what_masa_starts_from(name):
    """The printed totals are of 12 d^2 L + 32000 d; norms come on top: 728.70 M instead of 728.63 for L."""
    matrices = sum(p.numel() for p in source(name).parameters() if p.dim() == 2)
    found = (round(matrices / 1e6, 1), round(of_attention(source(name)) / 1e6, 2))
    assert found == MASA_SIZES[name]


# size, projections, what attention stores with a third of the layers as atoms: matrices and coefficients
MASA_COUNTS = [
    ("MASA S", "qkvo", 16 * 768**2 + 192),  # 9.44 M
    ("MASA L", "qkvo", 75_498_240),  # 4 x 8 d^2 + 768
    ("MASA L", "qkv", 113_246_784),  # 3 x 8 d^2 + 24 d^2 + 576
]


@pytest.mark.parametrize("name, projections, count", MASA_COUNTS)
def test_masa(name, projections, count):
    model = meta(name)
    attention, before = of_attention(model), unique(model)
    hf_share.share(model, MasaConfig(projections=projections))
    assert attention - (before - unique(model)) == count
    assert all(p.is_meta for p in model.parameters())
    assert name != "MASA S" or round(count / 1e6, 2) == 9.44
    assert name != "MASA L" or attention == 226_492_416


# projections -> percent of size S's attention that S = 2, 4, 6, 8 atoms save
MASA_CUTS = {"qkv": (62.5, 50.0, 37.5, 25.0), "qkvo": (83.3, 66.7, 50.0, 33.3)}


@pytest.mark.parametrize("projections", MASA_CUTS)
def test_what_atoms_save(projections):
    """Of the matrices; the coefficients, at most 384 numbers, are a thousandth of a percent."""
    saved = []
    for atoms in (2, 4, 6, 8):
        model = meta("MASA S")
        attention, before = of_attention(model), unique(model)
        hf_share.share(model, MasaConfig(projections=projections, num_atoms=atoms))
        saved.append(round(100 * (before - unique(model)) / attention, 1))
    assert tuple(saved) == MASA_CUTS[projections]


@pytest.mark.parametrize("size, heads, percent", [("S", 2, 41.7), ("M", 2, 43.8), ("L", 4, 41.7)])
def test_what_fewer_key_heads_save(size, heads, percent):
    """MASA's rival at equal size: 6, 8 and 6 heads share a key and a value."""
    found = source(f"MASA {size}, {heads} key heads")
    d, layers = found.config.hidden_size, found.config.num_hidden_layers
    assert found.config.num_attention_heads // heads == {"S": 6, "M": 8, "L": 6}[size]
    assert round(100 * (1 - of_attention(found) / (4 * d * d * layers)), 1) == percent


def test_pooled_deltas_of_a_model_of_three_widths():
    """QA-LoRA's adapter for each width, r (in / g + out) a weight, over codes of 2 + 3 + 4 bits."""
    model = meta("LLaMA-2-7B")
    before = unique(model)
    linears = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    hf_share.share(model, ElasticConfig(preset="llm-qfa", base="minmax", r_private=64, group_size=32))
    deltas = {n: p.numel() for n, p in model.named_parameters() if n.endswith("bit")}
    for bits in (2, 3, 4):
        assert sum(k for n, k in deltas.items() if n.endswith(f"_{bits}bit")) == 89_309_184
    assert unique(model) - (before - linears) == 267_927_552
    planes = sum(b.numel() for n, b in model.named_buffers() if ".plane" in n)
    assert 8 * planes == 9 * linears

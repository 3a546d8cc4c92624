# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models in place of the ones peft's tests download.

The names are upstream's, letter for letter: peft's tests skip and choose targets by substrings of them. Two
layers at least, because `layers_to_transform=[0]` must leave something out; a vocabulary of 1000, because
peft's tests use token ids up to there.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
import transformers as hf


VOCABULARY = 1000

# Not 0: on the Qwen2 of seed 0, LoRA itself misses the bound of peft's test of `convert_to_lora`.
SEED = 1

# name -> (model class, config)
RECIPES = {
    "tiny-random-OPTForCausalLM": (
        hf.OPTForCausalLM,
        hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=16,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        ),
    ),
    "tiny-random-GPT2LMHeadModel": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        ),
    ),
    "tiny-random-GPTJForCausalLM": (
        hf.GPTJForCausalLM,
        hf.GPTJConfig(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            rotary_dim=4,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        ),
    ),
    "tiny-random-LlamaForCausalLM": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
    ),
    "tiny-dummy-qwen2": (
        hf.Qwen2ForCausalLM,
        hf.Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
    ),
    "tiny-random-Gemma3ForCausalLM": (
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=128,
            sliding_window=32,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        ),
    ),
    "tiny-random-T5ForConditionalGeneration-calibrated": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        ),
    ),
    "tiny-random-BartForConditionalGeneration": (
        hf.BartForConditionalGeneration,
        hf.BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=128,
            decoder_start_token_id=2,
        ),
    ),
    "tiny-random-BertModel": (
        hf.BertModel,
        hf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
        ),
    ),
    "tiny-random-RobertaModel": (
        hf.RobertaModel,
        hf.RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=140,
            pad_token_id=1,
        ),
    ),
    "tiny-random-BertForSequenceClassification": (
        hf.BertForSequenceClassification,
        hf.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
        ),
    ),
}


def local(hub_id: str) -> str | None:
    """The path of our model of that name, or None if we make none."""
    name = hub_id.rsplit("/", 1)[-1]
    return saved(name) if name in RECIPES else None


@functools.cache
def saved(name: str) -> str:
    model_class, config = RECIPES[name]
    path = folder() / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model_class(config).save_pretrained(path)
    return str(path)


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="conformance-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path

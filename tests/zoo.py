# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models from configs, one for each architecture that the tests promise. No downloads."""

from __future__ import annotations

import torch
import transformers as tf


VOCAB, WIDTH, FFN, LAYERS, HEADS = 96, 32, 48, 4, 4
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# no dropout anywhere: training mode computes what eval mode does
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_MIXED = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
_GQA = {**_COMMON, "num_key_value_heads": 2}
_MOE = {**_GQA, "head_dim": 8}
_SEQ = {"vocab_size": VOCAB, "d_model": WIDTH, "decoder_start_token_id": 0, **IDS}

# name -> (class, config class, config arguments)
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GQA, **_MIXED}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GQA, **_MIXED}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GQA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **IDS}),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _COMMON),
    "opt": ("OPTForCausalLM", "OPTConfig", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "ffn_dim": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH,
        "dropout": 0.0, **IDS}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "new_decoder_architecture": True, "num_kv_heads": 2, **IDS}),
    "bert": ("BertForMaskedLM", "BertConfig", {**_COMMON, **STILL}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {**_COMMON, **STILL, "max_position_embeddings": 80}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {
        **_SEQ, "d_kv": 8, "d_ff": FFN, "num_layers": LAYERS, "num_heads": HEADS, "dropout_rate": 0.0}),
    "vit": ("ViTForImageClassification", "ViTConfig", {
        "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "image_size": 16, "patch_size": 8, **STILL}),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {
        **_SEQ, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "num_mel_bins": 8,
        "max_source_positions": 16, "max_target_positions": 64, "suppress_tokens": None,
        "begin_suppress_tokens": None, "dropout": 0.0}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {
        **_MOE, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {
        **_MOE, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "mamba": ("MambaForCausalLM", "MambaConfig", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4, **IDS}),
}  # fmt: skip

# architectures with a peculiarity that a test asks for by name
SPECIAL = {
    "bart": ("BartForConditionalGeneration", "BartConfig", {
        **_SEQ, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN,
        "max_position_embeddings": 64, "dropout": 0.0}),
    "bart_decoder": ("BartForCausalLM", "BartConfig", {
        **_SEQ, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": FFN, "max_position_embeddings": 64, "dropout": 0.0, "is_encoder_decoder": False}),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "window_size": 4,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64, **IDS}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {
        **_MOE, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4, "expand": 2,
        "num_heads": 8, "head_dim": 8, "n_groups": 1, **IDS}),
    "falcon_old": ("FalconForCausalLM", "FalconConfig", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "new_decoder_architecture": False, "multi_query": True, **IDS}),
}  # fmt: skip


def build(name: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A tiny model called `name`, in eval mode, with weights spread enough that every layer matters."""
    cls, config_cls, args = {**MODELS, **SPECIAL}[name]
    torch.manual_seed(seed)
    config = getattr(tf, config_cls)(**{**args, **changes})
    model = getattr(tf, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # biases start at 0 and norms at 1 in all layers; make depths differ
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(model: torch.nn.Module, seed: int = 1, rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    """Inputs that fit `model`: token ids, pixels or mel features, with decoder ids where it has a decoder."""
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, length), generator=gen)
    kind = model.config.model_type
    if kind == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=gen)}
    if kind == "whisper":
        return {"input_features": torch.randn(rows, 8, 32, generator=gen), "decoder_input_ids": ids}
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": ids.flip(0)}
    return {"input_ids": ids}


@torch.no_grad()
def logits(model: torch.nn.Module, **values) -> torch.Tensor:
    return model(**(values or inputs(model))).logits

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A small Llama from nothing: tokenizer, weights, training, and a folder that `AutoModel` loads.

Its reason is the demo: sharing is only worth measuring on weights that know something, and a model
trained here from text that is on every machine needs no download. What makes a few million parameters
good in minutes:

* Muon (Jordan et al. 2024) for the matrices of the blocks: momentum B_t = mu B_{t-1} + g_t, step -eta 0.2
  sqrt(max(m, n)) NS(B_t) for W of shape (m, n), where NS drives all singular values to about one. The
  factor 0.2 sqrt(max(m, n)) gives the step the typical size of AdamW's (Liu et al. 2025,
  arXiv:2502.16982), so that one learning rate eta serves both Muon and the AdamW that trains embeddings
  and norms.
* A trapezoidal schedule (Hu et al. 2024, arXiv:2404.06395): warm up, stay, fall linearly to zero. Only
  its end depends on `steps`, so a run that is resumed with another `steps` before its fall equals a run
  that had it from the start.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..errors import ConfigError
from ..eval.perplexity import Perplexity, perplexity
from .settings import Settings
from .text import Text, Windows, load_text, target_bytes, windows


END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """All numbers of a run. The model's sizes have the names of `LlamaConfig`; lengths are in tokens."""

    text: str = "stdlib"  # what `load_text` takes
    column: str = "text"
    output: str = "runs/pretrain"
    resume: bool = False  # go on from the last checkpoint in `output`

    vocab_size: int = 2560
    context: int = 256
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 3

    steps: int = 1000
    batch: int = 8  # windows per step and process
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    warmup_steps: int = 40
    decay_steps: int = 300
    bf16: bool = True  # compute type; the weights in training are fp32
    save_steps: int = 100
    seed: int = 0

    MAY_BE_ZERO = ("seed", "warmup_steps", "decay_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps + self.decay_steps > self.steps:
            parts = f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps}"
            raise ConfigError(f"{parts} do not fit in steps={self.steps}")


def train_tokenizer(documents: Iterable[str], *, vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text has tokens, and one special token both begins and ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ConfigError(f"vocab_size={vocab_size}: bytes and the end of text take {len(alphabet) + 1}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=context
    )


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings, as wide as the tokenizer came out."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(model_config(config, len(tokenizer), **ends))


def model_config(config: PretrainConfig, vocab_size: int, **more: Any) -> LlamaConfig:
    """The shape of the model."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        **more,
    )


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the block matrices and AdamW on the rest, as one optimizer.

    Groups and state are this object's own, and the two halves work on parts of them: schedulers, gradient
    scaling and checkpoints see an ordinary optimizer with two groups.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        matrices, others = _split_parameters(model)
        self._halves: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        )
        super().__init__([group for half in self._halves for group in half.param_groups], {})
        self._link()

    def _link(self) -> None:
        for half, group in zip(self._halves, self.param_groups, strict=True):
            half.param_groups, half.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._link()  # loading replaced the groups and the state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in self._halves:
            half.step()
        return loss


class PretrainTrainer(Trainer):
    """`transformers.Trainer` with `MuonAdamW`."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = MuonAdamW(trained, **rates)
        return self.optimizer


def pretrain(config: PretrainConfig) -> Perplexity:
    """Trains, saves model, tokenizer and README to `config.output`, measures them on held-out text."""
    text = load_text(config.text, column=config.column)
    tokenizer = train_tokenizer(text.train, vocab_size=config.vocab_size, context=config.context)
    set_seed(config.seed)
    trainer = PretrainTrainer(
        model=build_model(config, tokenizer),
        args=_training_arguments(config),
        train_dataset=Windows(windows(tokenizer, text.train, config.context)),
    )
    trainer.train(resume_from_checkpoint=config.resume or None)
    model = trainer.accelerator.unwrap_model(trainer.model).to(torch.bfloat16)
    model.config.use_cache = True  # Trainer turned it off
    heldout = windows(tokenizer, text.heldout, config.context)
    measured = perplexity(model, heldout, text_bytes=target_bytes(tokenizer, heldout))
    if trainer.is_world_process_zero():
        model.save_pretrained(config.output)
        tokenizer.save_pretrained(config.output)
        card = _card(config, text, model, measured)
        (Path(config.output) / "README.md").write_text(card, encoding="utf-8")
    return measured


def _training_arguments(config: PretrainConfig) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": config.decay_steps, "decay_type": "linear"},
        warmup_steps=config.warmup_steps,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Muon is for maps between hidden states, not for embeddings, whose rows are used one by one."""
    ends = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = getattr(model, "lm_head", None)
    ends |= {id(p) for p in head.parameters()} if head is not None else set()
    matrices, others = [], []
    for parameter in model.parameters():
        hidden = parameter.ndim == 2 and id(parameter) not in ends
        (matrices if hidden else others).append(parameter)
    return matrices, others


def _card(config: PretrainConfig, text: Text, model: LlamaForCausalLM, measured: Perplexity) -> str:
    tokens = config.steps * config.batch * config.context
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
---

# A small language model for the hf_share demo

A Llama in bf16. It continues the text it was trained on and is good for nothing else; with it, sharing can be
measured without a download.

| | |
|---|---|
| parameters | {model.num_parameters():,} |
| shape | {_shape(model.config)} |
| trained on | {_source(text)} |
| command | `python recipes/pretrain.py --config recipes/pretrain.yaml` |
| steps | {config.steps:,} of {config.batch} x {config.context} tokens, {tokens / 1e6:.1f} M tokens in all |
| held-out loss | {measured.nll:.4f} nats per token over {measured.tokens:,} tokens |
| held-out perplexity | {measured.perplexity:.2f} |
| held-out bits per byte | {measured.bits_per_byte:.3f} |

Neither a training step nor the tokenizer saw the held-out text (`hf_share.train.text`). Loss and perplexity
are of the saved bf16 weights on disjoint windows of {config.context} tokens (`hf_share.eval.perplexity`).
"""


def _shape(sizes: LlamaConfig) -> str:
    heads = f"{sizes.num_attention_heads} heads over {sizes.num_key_value_heads} key-value heads"
    widths = f"hidden {sizes.hidden_size}, feed-forward {sizes.intermediate_size}"
    lengths = f"vocabulary {sizes.vocab_size}, context {sizes.max_position_embeddings}"
    return f"{sizes.num_hidden_layers} layers, {heads}, {widths}, {lengths}"


def _source(text: Text) -> str:
    if text.source != "stdlib":
        return f"`{Path(text.source).name if Path(text.source).exists() else text.source}`"
    version = platform.python_version()
    return f"the sources of the CPython {version} standard library, without tests and tables (PSF licence)"

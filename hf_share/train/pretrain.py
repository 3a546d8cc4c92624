# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A small Llama from nothing: tokenizer, weights, training, and a folder that `AutoModel` loads.

The fresh model may be shared before it trains (`share`), which is how sharing from scratch is studied: dense,
tied and atom models differ in nothing but the plan.

Its reason is the demo: sharing is only worth measuring on weights that know something, and a model
trained here from text that is on every machine needs no download. What makes a few million parameters
good in minutes:

* Muon for the matrices of the blocks and AdamW for the rest (`optim.py`).
* A trapezoidal schedule (Hu et al. 2024, arXiv:2404.06395): warm up, stay, fall linearly to zero. Only
  its end depends on `steps`, so a run that is resumed with another `steps` before its fall equals a run
  that had it from the start.

The usual recipe of papers, AdamW with a cosine, is there too: `optimizer: adamw`, `schedule: cosine`.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
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
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..config import ShareConfig
from ..errors import ConfigError, unknown
from ..eval.perplexity import Perplexity, perplexity
from ..settle import settle
from ..share import share
from .optim import MuonAdamW, adamw
from .settings import Settings
from .text import Text, Windows, load_text, target_bytes, windows


END_OF_TEXT = "<|endoftext|>"
OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("trapezoid", "cosine")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """All numbers of a run. The model's sizes have the names of `LlamaConfig`; lengths are in tokens."""

    text: str = "stdlib"  # what `load_text` takes
    column: str = "text"
    max_bytes: int = 64_000_000  # of text, held in memory
    output: str = "runs/pretrain"
    resume: bool = False  # go on from the last checkpoint in `output`

    vocab_size: int = 2560
    context: int = 256
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 3

    # the config of a method, with its name under `method`, or {plan: ...}: what the fresh model shares
    share: dict = field(default_factory=dict)

    steps: int = 1000
    batch: int = 8  # windows per pass and process
    accumulation: int = 1  # passes per step
    optimizer: str = "muon"  # or adamw
    beta2: float = 0.999  # of adamw
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of a step's gradient
    schedule: str = "trapezoid"  # or cosine, down to zero
    warmup_steps: int = 40
    decay_steps: int = 300  # of the trapezoid
    bf16: bool = True  # compute type; the weights in training are fp32
    save_steps: int = 100
    seed: int = 0

    MAY_BE_ZERO = ("seed", "warmup_steps", "decay_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known, ConfigError)
        if self.share:
            self.method()
        if self.schedule == "trapezoid" and self.warmup_steps + self.decay_steps > self.steps:
            parts = f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps}"
            raise ConfigError(f"{parts} do not fit in steps={self.steps}")

    def method(self) -> ShareConfig:
        """What `share` says, made anew."""
        return ShareConfig(**self.share)


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


class PretrainTrainer(Trainer):
    """`transformers.Trainer` with the optimizers of this folder."""

    muon: bool = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            if self.muon:
                self.optimizer = MuonAdamW(trained, **rates)
            else:
                self.optimizer = adamw(trained, beta2=self.args.adam_beta2, **rates)
        return self.optimizer


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


@dataclass(frozen=True, kw_only=True)
class Pretrained(Perplexity):
    """What a trained model pays for the held-out text, what it stores, and what a step took."""

    parameters: int  # stored
    step_seconds: float = field(compare=False)  # median over this run's steps


def pretrain(config: PretrainConfig) -> Pretrained:
    """Trains, saves model, tokenizer and README to `config.output`, measures them on held-out text."""
    text = load_text(config.text, column=config.column, max_bytes=config.max_bytes)
    tokenizer = train_tokenizer(text.train, vocab_size=config.vocab_size, context=config.context)
    set_seed(config.seed)
    model: Any = build_model(config, tokenizer)
    times = StepTimes()
    trainer = PretrainTrainer(
        model=share(model, config.method()) if config.share else model,
        args=_training_arguments(config),
        train_dataset=Windows(windows(tokenizer, text.train, config.context)),
        callbacks=[times],
    )
    trainer.muon = config.optimizer == "muon"
    trainer.train(resume_from_checkpoint=config.resume or None)
    model = _half(settle(trainer.accelerator.unwrap_model(trainer.model)))
    model.config.use_cache = True  # Trainer turned it off
    heldout = windows(tokenizer, text.heldout, config.context)
    found = perplexity(model, heldout, text_bytes=target_bytes(tokenizer, heldout))
    measured = Pretrained(
        **{f.name: getattr(found, f.name) for f in fields(found)},
        parameters=sum(p.numel() for p in model.parameters()),
        step_seconds=statistics.median(times.seconds) if times.seconds else 0.0,
    )
    if trainer.is_world_process_zero():
        model.save_pretrained(config.output)
        tokenizer.save_pretrained(config.output)
        card = _card(config, text, model, measured)
        (Path(config.output) / "README.md").write_text(card, encoding="utf-8")
    return measured


@torch.no_grad()
def _half(model: Any) -> Any:
    """The model with its weights in bf16, and its tables (rotary frequencies) as a loaded one has them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _training_arguments(config: PretrainConfig) -> TrainingArguments:
    fall = {"num_decay_steps": config.decay_steps, "decay_type": "linear"}
    trapezoid = config.schedule == "trapezoid"
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        gradient_accumulation_steps=config.accumulation,
        lr_scheduler_type="warmup_stable_decay" if trapezoid else "cosine",
        lr_scheduler_kwargs=fall if trapezoid else {},
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


def _card(config: PretrainConfig, text: Text, model: LlamaForCausalLM, measured: Perplexity) -> str:
    rows = config.batch * config.accumulation
    tokens = config.steps * rows * config.context
    plan = f"\n| shared | `{json.dumps(config.share)}` |" if config.share else ""
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
| shape | {_shape(model.config)} |{plan}
| trained on | {_source(text)} |
| command | `python recipes/pretrain.py --config recipes/pretrain.yaml` |
| steps | {config.steps:,} of {rows} x {config.context} tokens, {tokens / 1e6:.1f} M tokens in all |
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

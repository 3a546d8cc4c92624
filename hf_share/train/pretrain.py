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

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

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
from .arguments import TextRun, common_arguments
from .data import prepare, split
from .optim import MuonAdamW, adamw
from .output import save_output, say
from .pretrain_card import pretrain_card
from .run import run
from .text import target_bytes


END_OF_TEXT = "<|endoftext|>"
OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("trapezoid", "cosine")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TextRun):
    """All numbers of a run. The model's sizes have the names of `LlamaConfig`; lengths are in tokens."""

    output: str = "runs/pretrain"

    vocab_size: int = 2560
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 3

    # the config of a method, with its name under `method`, or {plan: ...}: what the fresh model shares
    share: dict = field(default_factory=dict)

    steps: int = 1000
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

    MAY_BE_ZERO = (*TextRun.MAY_BE_ZERO, "decay_steps")
    TASK: ClassVar[str] = "pretrain"

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
    config.need_output()
    parts = split(config)
    tokenizer = train_tokenizer(parts.train, vocab_size=config.vocab_size, context=config.context)
    data = prepare(config, tokenizer, parts)
    set_seed(config.seed)
    model: Any = build_model(config, tokenizer)
    times = StepTimes()
    trainer = PretrainTrainer(
        model=share(model, config.method()) if config.share else model,
        args=_training_arguments(config, evaluates=data.validation is not None),
        train_dataset=data.train,
        eval_dataset=data.validation,
        callbacks=[times],
    )
    trainer.muon = config.optimizer == "muon"
    model = _half(settle(run(trainer, config)))
    model.config.use_cache = True  # Trainer turned it off
    heldout = data.test
    found = perplexity(model, heldout, text_bytes=target_bytes(tokenizer, heldout))
    measured = Pretrained(
        **{f.name: getattr(found, f.name) for f in fields(found)},
        parameters=sum(p.numel() for p in model.parameters()),
        step_seconds=statistics.median(times.seconds) if times.seconds else 0.0,
    )
    card = pretrain_card(config, parts.source, model, measured, trainer.state.global_step)
    save_output(model, tokenizer, config.output, card)
    return measured


@torch.no_grad()
def _half(model: Any) -> Any:
    """The model with its weights in bf16, and its tables (rotary frequencies) as a loaded one has them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _training_arguments(config: PretrainConfig, evaluates: bool) -> TrainingArguments:
    fall = {"num_decay_steps": config.decay_steps, "decay_type": "linear"}
    trapezoid = config.schedule == "trapezoid"
    return TrainingArguments(
        **common_arguments(config, evaluates),
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        lr_scheduler_type="warmup_stable_decay" if trapezoid else "cosine",
        lr_scheduler_kwargs=fall if trapezoid else {},
        bf16=config.bf16,
    )


HELP = """Train a small Llama from nothing, shared from the start where `share` says so."""


def main(arguments: Sequence[str] | None = None) -> None:
    say(pretrain(PretrainConfig.from_command_line(HELP, arguments)))

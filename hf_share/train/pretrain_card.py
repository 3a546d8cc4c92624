# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a model trained from nothing: its text, its settings and its price for held-out text.

It is signed as any card of ours, so a push makes it anew with what the push is told. It names no license: who
trains on a text knows what that allows.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from accelerate import PartialState

from ..eval.perplexity import Perplexity
from ..hub.card import model_card
from ..hub.scores import plain
from ..hub.written import card_in, is_anothers


if TYPE_CHECKING:
    from .pretrain import PretrainConfig

# of the machine and the watching, or said in words
UNTOLD = ("text", "validation_text", "output", "resume", "minutes", "log_steps", "report_to")


def pretrain_card(config: PretrainConfig, source: str, model: Any, measured: Perplexity, steps: int) -> str:
    """The card, after `steps` steps; empty where a person has written one in the output folder."""
    folder = Path(config.output).resolve()
    if is_anothers(card_in(folder)):
        return ""
    scores = {"loss": measured.nll, "perplexity": measured.perplexity}
    if measured.bits_per_byte is not None:
        scores["bits_per_byte"] = measured.bits_per_byte
    read = {"tokens": measured.tokens, "window": config.context, "stride": config.context}
    results = {f"{_name(source)}, held out": {name: plain(value, read) for name, value in scores.items()}}
    notes = _notes(config, source, model, measured, steps)
    return str(model_card(model, name=folder.name, results=results, notes=notes))


def _notes(
    config: PretrainConfig, source: str, model: Any, measured: Perplexity, steps: int
) -> Iterator[str]:
    rows = config.batch * config.accumulation * PartialState().num_processes
    tokens = steps * rows * config.context
    yield (
        f"A {type(model).__name__} with {_shape(model.config)}, trained from nothing on {_source(source)}: "
        f"{steps:,} steps of {rows} x {config.context} tokens, {tokens:,} tokens in all."
    )
    yield (
        "Neither a training step nor the tokenizer saw the held-out text. The loss, in nats a token, is of "
        f"the saved bf16 weights over {measured.tokens:,} tokens in disjoint windows of {config.context}."
    )
    yield "The settings that were run, as `hf-share train pretrain --config` takes them:"
    told = {name: value for name, value in asdict(config).items() if name not in UNTOLD}
    yield f"```yaml\n{yaml.safe_dump(told, sort_keys=False, width=100).strip()}\n```"


def _shape(sizes: Any) -> str:
    heads = f"{sizes.num_attention_heads} heads over {sizes.num_key_value_heads} key-value heads"
    widths = f"hidden {sizes.hidden_size}, feed-forward {sizes.intermediate_size}"
    lengths = f"vocabulary {sizes.vocab_size}, context {sizes.max_position_embeddings}"
    return f"{sizes.num_hidden_layers} layers, {heads}, {widths}, {lengths}"


def _name(source: str) -> str:
    return Path(source).name if Path(source).exists() else source


def _source(source: str) -> str:
    if source != "stdlib":
        return f"`{_name(source)}`"
    version = platform.python_version()
    return f"the sources of the CPython {version} standard library, without tests and tables (PSF licence)"

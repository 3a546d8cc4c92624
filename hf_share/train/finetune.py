# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with an adapter of any method: the base stays as it is, the adapter learns from text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Trainer, set_seed

from ..attach import check
from ..config import ShareConfig
from ..errors import ConfigError
from ..eval.device import on_device
from ..eval.perplexity import perplexity
from .arguments import RunConfig, training_arguments
from .data import prepare, split
from .few_bits import load_frozen, require_bits
from .output import save_output, say
from .rows import Rows, check_format, finetune_rows, read_rows
from .run import run
from .stream import StreamedWindows
from .text import Windows, as_rows, target_bytes


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Numbers of a fine-tuning run. `model` is the base."""

    adapter: dict = field(default_factory=lambda: {"method": "share_lora"})  # a method's config
    bits: int = 0  # of the base's linear weights while the adapter trains, 4 or 8; 0: as they are
    output: str = "runs/finetune"
    learning_rate: float = 2e-3

    data_format: str = "auto"  # or text, or one of `FORMATS`
    completion_only: bool = True
    packing: bool = False
    chat_template: str = ""

    MAY_BE_ZERO = (*RunConfig.MAY_BE_ZERO, "bits")

    TASK: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapter_config()
        require_bits(self.bits)
        check_format(self.data_format)

    def adapter_config(self) -> ShareConfig:
        """The config that `adapter` spells out, checked."""
        if "method" not in self.adapter:
            raise ConfigError("adapter names a method and its numbers: {method: mos, r: 8}")
        return ShareConfig(**{"task_type": "CAUSAL_LM", **self.adapter})


def finetune(
    model: PreTrainedModel,
    data: Tensor | Windows | StreamedWindows,
    config: FinetuneConfig | None = None,
    validation: Tensor | Windows | None = None,
    **trainer: Any,
) -> PeftModel:
    """Train an adapter on a causal language model and return the peft model.

    Args:
        model: the base; it is wrapped, use what this returns.
        data: token ids to train on, int64 of shape (n, context), or a stream of such rows.
        validation: the same, to choose the best step by (`eval_steps`).
        trainer: more for `transformers.Trainer` (callbacks).

    Example:
        >>> adapted = finetune(model, windows(tokenizer, text.train, 256))  # doctest: +SKIP
    """
    config = config or FinetuneConfig()
    set_seed(config.seed)
    cached = getattr(model.config, "use_cache", True)
    adapted = _adapted(model, _with_text(config.adapter_config(), data))
    made = Trainer(
        model=adapted,
        args=training_arguments(config, evaluates=validation is not None),
        train_dataset=as_rows(data),
        eval_dataset=as_rows(validation),
        **trainer,
    )
    adapted = run(made, config)
    adapted.config.use_cache = cached  # Trainer turned it off
    return adapted.eval()


def _with_text(asked: ShareConfig, data: Any) -> ShareConfig:
    """Give a method that measures the base the first rows to measure it on."""
    rows = data.windows if isinstance(data, Windows) else data
    if not asked.uses_calibration or not isinstance(rows, Tensor):
        return asked
    return asked.with_calibration(list(rows[:64].split(4)))


def _require_fit(asked: ShareConfig, model: PreTrainedModel) -> None:
    """Raise what the adapter would raise, before text is read and the base measured."""
    if asked.uses_calibration:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come with the adapter
        plan = asked.resolve(model)
        check(model, plan)
    if not plan.generates:
        raise _nothing_learns(asked)


def _adapted(model: PreTrainedModel, asked: ShareConfig) -> PeftModel:
    adapted: Any = get_peft_model(model, asked)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise _nothing_learns(asked)
    return adapted


def _nothing_learns(asked: ShareConfig) -> ConfigError:
    return ConfigError(
        f"an adapter of method {asked.method!r} has nothing that trains, and so nothing to "
        "fine-tune: share the model with it (hf-share share) and train what is left (hf-share train heal)"
    )


HELP = """Train an adapter of any method on plain text, instructions (prompt and completion, Alpaca's
instruction, input and output, prompt and response, question and answer) or chats (messages), and save it
with the tokenizer. MODEL is the base, which --bits 4 or 8 quantises while it loads. Prints what held-out
text costs before and after."""


def main(arguments: Sequence[str] | None = None) -> None:
    config = FinetuneConfig.from_command_line(HELP, arguments)
    config.need_model("the model to adapt")
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    compute = torch.bfloat16 if config.bf16 else None
    model = load_frozen(config.model, config.context, config.bits, compute)
    _require_fit(config.adapter_config(), model)
    rows = read_rows(config)
    adapted = _on_text(model, tokenizer, config) if rows is None else _on_rows(model, tokenizer, rows, config)
    save_output(adapted, tokenizer, config.output)


def _on_rows(model: PreTrainedModel, tokenizer: Any, rows: Rows, config: FinetuneConfig) -> PeftModel:
    set_seed(config.seed)
    adapted = _adapted(model, config.adapter_config())
    adapted, before, after = finetune_rows(adapted, tokenizer, rows, config)
    what = "completions" if config.completion_only else "whole rows"
    say(f"loss on {what} of held-out rows: {before:.4f} before, {after:.4f} after")
    return adapted.eval()


def _on_text(model: PreTrainedModel, tokenizer: Any, config: FinetuneConfig) -> PeftModel:
    data = prepare(config, tokenizer, split(config))
    size = target_bytes(tokenizer, data.test)
    say("before:", perplexity(on_device(model), data.test, text_bytes=size))
    adapted = on_device(finetune(model, data.train, config, data.validation))
    say("after: ", perplexity(adapted, data.test, text_bytes=size))
    return adapted

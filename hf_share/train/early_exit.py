# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Early exits of a recursive model: every loop's end becomes a place to stop (arXiv 2410.20672).

    L = L_B + c sum over i < B of L_i,   c = 0.1
    L_i = (1 - w) CE(labels, p_i) + w T^2 KL(p_B || p_i)        p_B detached: the last exit teaches, unmoved

p_i is what the model's own norm and head make of the hidden state after loop i. A small c is to leave the
last exit as good as it was. This comes after uptraining, not with it, and trains all weights.
`choose(model, loops=i)` then stops at exit i.

All exits come out of one pass: a hook on the last layer puts the hidden states of all loops one below the
other, as a larger batch, so that whatever follows the layers (norm, projection, head, capping) is the model's
own code. What it gave is compared with the model's own logits once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from ..elastic import choices, chosen
from ..errors import ConfigError, Refused
from ..eval.causal import load_causal
from ..eval.device import on_device
from ..eval.perplexity import Perplexity, perplexity
from ..sites import stacks
from ..steps import Arrange
from ..ties import attached
from .arguments import training_arguments
from .data import prepare, split
from .distill import DistillTrainer, distillation_loss, require_weights
from .output import save_output, say
from .run import run
from .stored import WholeRun, as_stored
from .text import as_rows


@dataclass(frozen=True, kw_only=True)
class EarlyExitConfig(WholeRun):
    """Numbers of early-exit post-training. `model` is an uptrained recursive checkpoint."""

    output: str = "runs/early_exit"

    exit_coef: float = 0.1
    kd_weight: float = 0.5
    temperature: float = 1.0

    steps: int = 100
    learning_rate: float = 2e-4
    warmup_steps: int = 10

    TASK: ClassVar[str] = "early_exit"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(self.kd_weight, self.temperature)


@dataclass(frozen=True)
class ExitReport:
    """Perplexity of every exit, first to last, before and after."""

    before: tuple[Perplexity, ...]
    after: tuple[Perplexity, ...]

    def __str__(self) -> str:
        rows = zip(self.before, self.after, strict=True)
        lines = [
            f"  loops={i}: perplexity {a.perplexity:.2f} -> {b.perplexity:.2f}"
            for i, (a, b) in enumerate(rows, 1)
        ]
        return "\n".join(["exits, before -> after", *lines])


def ends_of_loops(model: nn.Module) -> tuple[str, list[int]]:
    """The stack whose layers come round, and the last depth of each of its active loops.

    Raises:
        Refused: if there is no such stack or more than one, or its loops do not come one after another.
    """
    record = attached(model)
    rounds = [s for s in record.plan.arranges if s.roles == "all" and s.visits > 1] if record else []
    if len(rounds) != 1:
        raise Refused(
            f"early exits need one stack whose layers come round, and this model has {len(rounds)}: "
            "share it with RecursiveConfig(num_loops=...)"
        )
    step: Arrange = rounds[0]
    ends = []
    for loops in range(1, (step.loops or step.visits) + 1):
        active = step.active(loops)
        if active != tuple(range(len(active))):
            raise Refused(
                f"stack {step.stack!r}: with {loops} loops depths {', '.join(map(str, active))} run, which "
                "are not its first ones, so no hidden state on the way is an exit; use order='cycle'"
            )
        ends.append(len(active) - 1)
    return step.stack, ends


def exit_logits(model: nn.Module, **inputs: Any) -> list[Tensor]:
    """Logits (batch, length, vocabulary) at the end of each active loop, first to last, from one pass.

    Example:
        >>> first, last = exit_logits(model, input_ids=ids)  # doctest: +SKIP
    """
    return _exits(model, model, inputs)


def _exits(plain: nn.Module, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """The same, called through what `model` wraps around `plain` (DDP)."""
    path, ends = ends_of_loops(plain)
    layers = stacks(plain)[path].layers
    met: list[Tensor] = []
    grad = torch.is_grad_enabled()

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        if torch.is_grad_enabled() != grad:
            raise Refused(
                "re-entrant gradient checkpointing runs layers without gradients, and exits would get none; "
                "use gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        met.append(_hidden(output))

    def stack_exits(module: nn.Module, args: tuple, output: Any) -> Any:
        keep(module, args, output)
        every = torch.cat(met[-len(ends) :])
        return (every, *output[1:]) if isinstance(output, tuple) else every

    handles = [layers[end].register_forward_hook(keep) for end in ends[:-1]]
    handles.append(layers[ends[-1]].register_forward_hook(stack_exits))
    try:
        logits = model(**{**inputs, "use_cache": False}).logits
    finally:
        for handle in handles:
            handle.remove()
    return list(logits.chunk(len(ends)))


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def check_exits(model: nn.Module, **inputs: Any) -> None:
    """Raise `Refused` unless each exit's logits are those of the model that stops there."""
    training = model.training
    model.eval()
    try:
        found = exit_logits(model, **inputs)
        for loops, logits in enumerate(found, 1):
            with chosen(model, loops=loops):
                own = model(**{**inputs, "use_cache": False}).logits
            close = {"rtol": 1e-3, "atol": 1e-3 * float(own.abs().max())}
            if own.shape != logits.shape or not torch.allclose(own, logits, **close):
                raise Refused(
                    f"{type(model).__name__}: the logits after loop {loops} are not those of the model with "
                    f"loops={loops}; something behind its layers works across the batch"
                )
    finally:
        model.train(training)


def early_exit_loss(
    exits: Sequence[Tensor],
    labels: Tensor,
    coef: float = 0.1,
    weight: float = 0.5,
    temperature: float = 1.0,
    count: Any = None,
) -> Tensor:
    """The loss above from the logits of all exits, first to last; `weight` is w."""
    last = exits[-1]
    loss = distillation_loss(last, None, labels, 0.0, temperature, count)
    for logits in exits[:-1]:
        loss = loss + coef * distillation_loss(logits, last.detach(), labels, weight, temperature, count)
    return loss


class EarlyExitTrainer(DistillTrainer):
    """`transformers.Trainer` with the loss of all exits.

    Args:
        exit_coef: c of the loss.
        kd_weight: w of the loss, 0 to 1: how much an early exit listens to the last one.
    """

    def __init__(self, *args: Any, exit_coef: float = 0.1, kd_weight: float = 0.5, **kwargs: Any):
        if exit_coef < 0.0:
            raise ConfigError(f"exit_coef={exit_coef} must be at least 0")
        super().__init__(*args, kd_weight=kd_weight, **kwargs)
        self.exit_coef, self.exit_weight, self.checked = exit_coef, kd_weight, False

    def evaluated(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        return self.loss_of(model, features, labels, count)  # the last exit alone is best before training

    def loss_of(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        plain = self.accelerator.unwrap_model(model)
        if not self.checked:
            check_exits(plain, **features)
            self.checked = True
        exits = _exits(plain, model, features)
        loss = early_exit_loss(exits, labels, self.exit_coef, self.exit_weight, self.temperature, count)
        return loss, {"logits": exits[-1]}


def exit_perplexities(model: PreTrainedModel, windows: Tensor, **args: Any) -> tuple[Perplexity, ...]:
    """Perplexity of `model` with 1, 2, ... loops."""
    found = []
    for loops in choices(model).get("loops", ()):
        with chosen(model, loops=loops):
            found.append(perplexity(model, windows, **args))
    return tuple(found)


def train_exits(
    model: PreTrainedModel,
    data: Any,
    config: EarlyExitConfig | None = None,
    validation: Any = None,
) -> PreTrainedModel:
    """Teach a recursive model to stop after each of its loops.

    Args:
        model: it is taken over, use what this returns.
        data: token ids to train on, int64 of shape (n, context), or a stream of such rows.
        validation: the same, to choose the best step by (`eval_steps`): the one of the lowest loss L.

    Example:
        >>> model = train_exits(model, windows(tokenizer, text.train, 256))  # doctest: +SKIP
        >>> exit_perplexities(model, heldout)  # doctest: +SKIP
    """
    config = config or EarlyExitConfig()
    set_seed(config.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    cached = getattr(model.config, "use_cache", True)
    trainer = EarlyExitTrainer(
        model=model,
        args=training_arguments(config, evaluates=validation is not None),
        train_dataset=as_rows(data),
        eval_dataset=as_rows(validation),
        exit_coef=config.exit_coef,
        kd_weight=config.kd_weight,
        temperature=config.temperature,
    )
    trained = run(trainer, config)
    trained.config.use_cache = cached  # Trainer turned it off
    return trained.eval()


HELP = """Teach an uptrained recursive model to stop after each of its loops, and report every exit's
perplexity. MODEL is the recursive checkpoint."""


def main(arguments: Sequence[str] | None = None) -> None:
    config = EarlyExitConfig.from_command_line(HELP, arguments)
    config.need_model("the recursive checkpoint")
    dtype = config.result_dtype()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = load_causal(config.model, config.context, dtype="float32")
    data = prepare(config, tokenizer, split(config))
    before = exit_perplexities(on_device(model), data.test, progress=False)
    model = train_exits(model, data.train, config, data.validation)
    model = as_stored(on_device(model), dtype)
    say(ExitReport(before, exit_perplexities(model, data.test, progress=False)))
    save_output(model, tokenizer, config.output)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Training an elastic model: each micro-step sets the subnets that a sampler gives for it.

The choice is held through the backward pass, so that gradient checkpointing recomputes the same subnet, and
taken back after it: checkpoints have the choice the model had. What a subnet does not use has
no gradient (None, not zero), so that the optimizer leaves its moments alone; under DDP that takes
`find_unused_parameters`, which is turned on.

`ElasticTrainer` trains several subnets on one batch, by weights, and may distil from the largest.
`ElasticCallback` gives any other Trainer (TRL's) the active subnet, one for each micro-step.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..elastic import bindings, choices, chosen
from ..errors import ConfigError, Refused, unknown
from .distill import DistillTrainer
from .samplers import Sampler, Space, Subnet, make_sampler


LARGEST = "largest"


def space(model: nn.Module, per: str = "site") -> Space:
    """What samplers may choose in `model`.

    Args:
        per: what takes a value by itself: each "site", each "layer", or the whole "model".
    """
    if per not in PARTS:
        raise unknown("part of a model", per, PARTS, ConfigError)
    values = choices(model)
    found: dict[str, dict[Any, dict[str, None]]] = {name: {} for name in values}
    for binding in bindings(model):
        site = binding.site
        for name in binding.rule.choices():
            found[name].setdefault(PARTS[per](site), {})[site.name] = None
    units = {name: tuple(map(tuple, parts.values())) for name, parts in found.items() if parts}
    return Space(values=values, units=units if per != "model" else {})


PARTS: dict[str, Any] = {
    "site": lambda site: site.name,
    "layer": lambda site: (site.stack, site.depth),
    "model": lambda site: None,
}


class Position(TrainerCallback):
    """Counts the micro-steps of an optimizer step."""

    micro = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.micro = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.micro += 1


class ElasticCallback(Position):
    """Sets the active subnet of each micro-step in any `transformers.Trainer`.

    A Trainer does not tell its callbacks of an exception: the model then has the last subnet, unless the
    training runs in a `with` block of the callback.

    Args:
        sampler: one that gives one subnet at a time; several take an `ElasticTrainer`.

    Example:
        >>> sampler = make_sampler("mixture", space(model))  # doctest: +SKIP
        >>> with ElasticCallback(sampler) as elastic:  # doctest: +SKIP
        ...     Trainer(model, ..., callbacks=[elastic]).train()
    """

    def __init__(self, sampler: Sampler):
        if len(sampler.subnets(sampler.warm)) > 1:
            raise Refused(
                f"sampler {sampler.name!r} trains several subnets on a batch, and a callback sees one pass; "
                "use hf_share.train.elastic_trainer.ElasticTrainer"
            )
        self.sampler, self.active = sampler, ExitStack()

    def __enter__(self) -> ElasticCallback:
        return self

    def __exit__(self, *error: Any) -> None:
        self.active.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_begin(args, state, control)
        self._choose(state.global_step, kwargs["model"])

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_substep_end(args, state, control)
        self._choose(state.global_step, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.active.close()

    def _choose(self, step: int, model: nn.Module) -> None:
        self.active.close()
        (subnet,) = self.sampler.subnets(step, self.micro)
        self.active.enter_context(chosen(model, **subnet.choices))


class ElasticTrainer(DistillTrainer):
    """`DistillTrainer` of subnets.

    Args:
        sampler: which subnets a micro-step trains.
        teacher: a frozen model, None, or "largest": the largest subnet of the model itself, which learns
            from the labels alone while the others listen to it (in-place distillation).
    """

    def __init__(
        self, *args: Any, sampler: Sampler, teacher: nn.Module | str | None = None, kd_weight: float = 0.5,
        **kwargs: Any,
    ):  # fmt: skip
        if isinstance(teacher, str) and teacher != LARGEST:
            raise unknown("teacher", teacher, (LARGEST,), ConfigError)
        other = teacher if isinstance(teacher, nn.Module) else None
        super().__init__(*args, teacher=other, kd_weight=kd_weight, **kwargs)
        self.in_place, self.listens, self.sampler = teacher == LARGEST, kd_weight, sampler
        self.each = make_sampler("every", sampler.space).subnets(0)
        self.position = Position()
        self.add_callback(self.position)
        self._subnet: Subnet | None = None
        self._heard: tuple[Any, Any] | None = None  # what the teacher says of this batch
        _find_unused(self.accelerator.ddp_handler)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        subnets = self.sampler.subnets(self.state.global_step, self.position.micro)
        plain, losses = self.accelerator.unwrap_model(model), []
        try:
            for k, subnet in enumerate(subnets, 1):
                self._subnet = subnet
                sync = nullcontext() if k == len(subnets) else self.accelerator.no_sync(model)
                with chosen(plain, **subnet.choices), sync:
                    losses.append(super().training_step(model, dict(inputs), num_items_in_batch))
        finally:
            self._subnet = self._heard = None
        return torch.stack(losses).sum()

    def loss_of(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        subnet = self._subnet
        if self.in_place:
            self.kd_weight = 0.0 if subnet is None or subnet.largest else self.listens
        if self.in_place and self.kd_weight and self._heard is None:
            self._heard = self._of_largest(model, features)
        loss, outputs = super().loss_of(model, features, labels, count)
        if subnet is None:
            return loss, outputs
        if self.in_place and subnet.largest:
            self._heard = outputs.logits.detach(), None
        return subnet.weight * loss, outputs

    def evaluated(
        self, model: nn.Module, features: dict[str, Any], labels: Tensor, count: Any
    ) -> tuple[Tensor, Any]:
        """What the best step is chosen by: mean cross-entropy of the subnets of one value everywhere. The
        outputs are the largest one's.
        """
        plain, found = self.accelerator.unwrap_model(model), []
        for subnet in self.each:
            with chosen(plain, **subnet.choices):
                loss, outputs = super().evaluated(model, dict(features), labels, count)
            found.append((subnet.weight * loss, outputs))
        return torch.stack([loss for loss, _ in found]).sum(), found[0][1]

    @torch.no_grad()
    def _of_largest(self, model: nn.Module, features: dict[str, Any]) -> tuple[Any, Any]:
        with chosen(self.accelerator.unwrap_model(model), **self.sampler.space.end(-1)):
            return model(**features).logits, None

    def _taught(self, features: dict[str, Any], index: Tensor | None) -> tuple[Any, Any]:
        """One pass of the teacher serves all subnets of a batch."""
        if self._subnet is None:
            return super()._taught(features, index)
        if self._heard is None:
            self._heard = super()._taught(features, index)
        return self._heard


def _find_unused(handler: Any) -> None:
    """What a subnet does not use must not be waited for by DDP."""
    if handler is not None:
        handler.find_unused_parameters, handler.broadcast_buffers = True, False  # codes are no news

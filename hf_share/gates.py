# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Learnable gates: how much a model would miss each layer, measured for all layers at once.

Block influence looks at one layer at a time. Here every layer i gets a scalar phi_i and a gate

    g_i = phi_i^2 / (phi_i^2 + eps)                      0 at phi = 0, about 1 for |phi| >> sqrt(eps)
    x_{i+1} = x_i + g_i (layer_i(x_i) - x_i)             g = 0 removes the layer, g = 1 leaves it

and with all weights frozen, phi alone is trained on calibration text to minimise

    LM loss + lambda max(0, sum_i g_i F_i / sum_i F_i - (1 - rho))^2     F_i: FLOPs of layer i, rho: removed

while eps falls geometrically (smoothed L0, as in GDP). Layers compete for the FLOPs that stay, so that two
layers which stand in for each other are not both judged dispensable. Gradient descent is plain: a gate's own
slope, (dg/dphi)^2 = 4 g (1 - g)^3 / eps, lets open gates be and pushes closing ones, which Adam's normalised
steps undo. The learning rate falls with eps, so that a step in g stays as long, and a step halves or doubles
phi at most, so that none jumps over 0.

This is a reconstruction: FoldGPT (arXiv 2407.00928) says that its gates are learnt under a FLOPs constraint
with an optimisation that polarises; the formula, the schedule and the numbers here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .errors import ConfigError, Refused
from .importance import batches, evaluating, only_stack
from .sites import Stack, sites, stacks


def gate(phi: Tensor, eps: float) -> Tensor:
    """g(phi) = phi^2 / (phi^2 + eps)."""
    return phi.square() / (phi.square() + eps)


def layer_gates(
    model: nn.Module,
    calibration: Sequence[Any],
    removal_rate: float,
    stack: str | None = None,
    *,
    steps: int = 100,
    lr: float = 0.3,
    epsilon_schedule: Sequence[float] = (0.1, 1e-4),
    flops_weight: float = 30.0,
) -> list[float]:
    """The gate of every layer of `stack` after training, 0 (can go) to 1. The model is left as it was.

    The same model and text give the same gates: nothing is drawn. A layer that owns a tensor for the whole
    stack cannot go, and its gate stays 1.

    Args:
        calibration: as `block_influence` takes it. A causal language model learns to predict its tokens; for
            any other model give batches with `labels`.
        removal_rate: rho, the share of the FLOPs to remove.
        steps: training steps, one batch each, over and over.
        lr: learning rate of phi at the start.
        epsilon_schedule: first and last eps.
        flops_weight: lambda.
    """
    found = stacks(model)[only_stack(model, stack)]
    shares = flops(model, found)
    device = next(model.parameters()).device
    phi = torch.ones(found.depth, device=device, requires_grad=True)
    free = torch.ones(found.depth, dtype=torch.bool, device=device)
    free[list(found.owners)] = False
    data = [_with_labels(model, batch) for batch in batches(model, calibration)]
    first, last = epsilon_schedule
    eps = last
    with evaluating(model), _frozen(model), _gated(found) as gates, torch.enable_grad():
        for step, batch in enumerate(tqdm(islice(cycle(data), steps), "layer gates", steps, leave=False)):
            eps = first * (last / first) ** (step / max(steps - 1, 1))
            g = torch.where(free, gate(phi, eps), 1.0)
            gates[:] = g.unbind()
            excess = ((g * shares.to(device)).sum() - (1.0 - removal_rate)).clamp_min(0.0)
            loss = _loss(model, batch) + flops_weight * excess.square().to(device)
            (slope,) = torch.autograd.grad(loss, phi)
            with torch.no_grad():
                phi.copy_((phi - lr * eps / first * slope).clamp(phi / 2, 2 * phi))
    return torch.where(free, gate(phi, eps), 1.0).tolist()


def flops(model: nn.Module, stack: Stack) -> Tensor:
    """F_i / sum F: each layer's share of a token's multiplications with weights; of experts one counts."""
    counts = [0] * stack.depth
    for site in sites(model):
        if site.stack == stack.path and site.depth is not None:
            counts[site.depth] += site.in_features * site.out_features
    return torch.tensor(counts, dtype=torch.float32) / max(sum(counts), 1)


def _with_labels(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    if "labels" in batch:
        return batch
    generates = hasattr(model, "can_generate") and model.can_generate()
    if not generates or getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"gates are learnt from the model's own loss, and {type(model).__name__} is no causal language "
            "model that text alone teaches; give calibration batches with 'labels', or rank by 'bi'"
        )
    labels = batch["input_ids"]
    if "attention_mask" in batch:
        labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    try:
        loss = getattr(model(**batch), "loss", None)
    except TypeError as error:
        raise ConfigError(f"{type(model).__name__} does not take {sorted(batch)}: {error}") from None
    if loss is None:
        raise ConfigError(f"{type(model).__name__} gives no loss for labels, so it has nothing to learn from")
    return loss.float()


@contextmanager
def _frozen(model: nn.Module):
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _gated(stack: Stack):
    """Hooks that gate each layer's output by the tensors in the list this yields."""
    gates: list[Any] = [None] * stack.depth

    def gated(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            if after.shape != before.shape:
                raise Refused(
                    f"layer {index} of stack {stack.path!r} turns {tuple(before.shape)} into "
                    f"{tuple(after.shape)}; what cannot be skipped has no gate"
                )
            step = gates[index].to(after.device) * (after.float() - before.float())
            mixed = (before.float() + step).to(after.dtype)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return hook

    handles = [
        layer.register_forward_hook(gated(i), with_kwargs=True) for i, layer in enumerate(stack.layers)
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Divergences against their formulas: values, gradients by autograd, the limits, what clipping changes."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from helpers import rows
from zoo import build

from hf_share import ConfigError
from hf_share.train.distill import DistillTrainer, distillation_loss
from hf_share.train.divergences import KL, Alpha, make_divergence


FREE = float("inf")


def logits(seed: int, tokens: int = 6, scale: float = 1.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return scale * torch.randn(tokens, 11, generator=gen, dtype=torch.float64)


def formula(own: torch.Tensor, theirs: torch.Tensor, a: float) -> torch.Tensor:
    """D_a of each token."""
    q, p = own.softmax(-1), theirs.softmax(-1)
    if a == 1.0:
        return (p * (p / q).log()).sum(-1)
    if a == 0.0:
        return (q * (q / p).log()).sum(-1)
    return (q * ((p / q) ** a - 1.0)).sum(-1) / (a * (a - 1.0))


def value_and_gradient(divergence, own: torch.Tensor, theirs: torch.Tensor):
    own = own.clone().requires_grad_(True)
    value = divergence(own.log_softmax(-1), theirs.log_softmax(-1))
    return value.detach(), torch.autograd.grad(value, own)[0]


@pytest.mark.parametrize("a", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
def test_without_clipping_value_and_gradient_are_the_formulas(a):
    own, theirs = logits(1), logits(2)
    value, gradient = value_and_gradient(Alpha(low=a, high=a, clip=FREE), own, theirs)
    leaf = own.clone().requires_grad_(True)
    expected = formula(leaf, theirs, a).sum()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0])


def test_limits_are_the_two_kullback_leiblers():
    own, theirs = logits(1), logits(2)
    for a, near in ((1.0, 1.002), (0.0, 0.002)):
        exact = value_and_gradient(Alpha(low=a, high=a, clip=FREE), own, theirs)
        close = value_and_gradient(Alpha(low=near, high=near, clip=FREE), own, theirs)
        torch.testing.assert_close(exact, close, rtol=0.02, atol=1e-3)
    forward = value_and_gradient(KL, own, theirs)
    torch.testing.assert_close(forward, value_and_gradient(Alpha(low=1.0, high=1.0, clip=FREE), own, theirs))


def test_each_token_takes_the_worse_of_two():
    own, theirs = logits(3, tokens=40), logits(4, tokens=40)
    low, high = formula(own, theirs, -1.0), formula(own, theirs, 1.0)
    assert 0 < int((low > high).sum()) < 40
    value, gradient = value_and_gradient(Alpha(clip=FREE), own, theirs)
    torch.testing.assert_close(value, torch.maximum(low, high).sum())
    for token in range(40):
        a = -1.0 if low[token] > high[token] else 1.0
        only = value_and_gradient(Alpha(low=a, high=a, clip=FREE), own[[token]], theirs[[token]])[1]
        torch.testing.assert_close(gradient[[token]], only)


def test_clipping_bounds_the_gradient_by_the_ratio():
    own, theirs = logits(5, scale=6.0), logits(6, scale=6.0)
    for a in (-1.0, 1.0):
        free = value_and_gradient(Alpha(low=a, high=a, clip=FREE), own, theirs)[1]
        clipped = value_and_gradient(Alpha(low=a, high=a), own, theirs)[1]
        assert clipped.abs().max() <= 5.0
        assert a == 1.0 or free.abs().max() > 50.0
        q, ratio = own.softmax(-1), ((theirs.log_softmax(-1) - own.log_softmax(-1)) * a).exp()
        weight = q * ratio.clamp(max=5.0) / a
        by_hand = q * weight.sum(-1, keepdim=True) - weight  # through the softmax
        torch.testing.assert_close(clipped, by_hand)
    mild = logits(1, scale=0.1), logits(2, scale=0.1)
    free = value_and_gradient(Alpha(clip=FREE), *mild)
    torch.testing.assert_close(value_and_gradient(Alpha(), *mild), free)


def test_equal_distributions_have_no_distance_and_no_gradient():
    own = logits(7)
    value, gradient = value_and_gradient(Alpha(), own, own.clone())
    assert float(value) == pytest.approx(0.0, abs=1e-12) and float(gradient.abs().max()) < 1e-12


def test_the_trainer_takes_a_divergence(tmp_path):
    student, teacher = build("llama").train(), build("llama", hidden_size=64)
    ids = torch.stack([row["input_ids"] for row in rows(3, 9)])
    arguments = tf.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    run = DistillTrainer(
        model=student, args=arguments, teacher=teacher, kd_weight=0.4, temperature=2.0, divergence=Alpha()
    )
    loss = run.compute_loss(student, {"input_ids": ids, "labels": ids}, num_items_in_batch=10)
    own, theirs = (m(input_ids=ids).logits for m in (student, teacher))
    ce = distillation_loss(own, None, ids, 0.4, 2.0, 10)
    halves = (x[:, :-1].reshape(-1, x.shape[-1]).div(2.0).log_softmax(-1) for x in (own, theirs))
    torch.testing.assert_close(loss, ce + 0.4 * 4.0 * Alpha()(*halves) / 10)


def test_divergences_by_name():
    assert make_divergence("kl") == KL and make_divergence("alpha", low=0.0) == Alpha(low=0.0)
    bad = {
        "unknown divergence 'alfa'; did you mean 'alpha'": ("alfa", {}),
        "unknown number of divergence 'kl' 'clip'": ("kl", {"clip": 1.0}),
        "clip='x' is not a number": ("alpha", {"clip": "x"}),
        "low=2.0 must not exceed high=1.0": ("alpha", {"low": 2.0}),
        "clip=0 must be above 0": ("alpha", {"clip": 0}),
    }
    for message, (kind, numbers) in bad.items():
        with pytest.raises(ConfigError, match=message):
            make_divergence(kind, **numbers)

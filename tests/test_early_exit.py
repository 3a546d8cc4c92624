# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Early exits: one pass gives the logits of each number of loops, and the loss leaves the last exit alone."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import pointers
from promises import source
from torch.nn import functional as F
from zoo import inputs, logits

import hf_share
from hf_share import ConfigError, RecursiveConfig, Refused
from hf_share.train.early_exit import (
    EarlyExitConfig,
    EarlyExitTrainer,
    ExitReport,
    check_exits,
    early_exit_loss,
    ends_of_loops,
    exit_logits,
    exit_perplexities,
    train_exits,
)


def looped(arch: str, loops: int = 2, **args):
    return hf_share.share(copy.deepcopy(source(arch)), RecursiveConfig(num_loops=loops, **args))


# gemma2 caps its logits, opt projects them, bert has a head of its own
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    "arch", ["llama", "gpt2", "gemma2", "gemma3", "opt", "neox", "bert", "mamba", "mixtral"]
)
def test_one_pass_gives_every_exit(arch, rank):
    model = looped(arch, loops=4, lora_rank=rank)
    batch = inputs(model)
    with torch.no_grad():
        exits = exit_logits(model, **batch)
    assert len(exits) == 4
    for loops, found in enumerate(exits, 1):
        with hf_share.chosen(model, loops=loops):
            torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-5)
    assert (exits[0] - exits[-1]).abs().max() > 1e-2
    check_exits(model, **batch)
    assert torch.equal(logits(model), logits(copy.deepcopy(model))), "no hook is left"


def test_a_mask_goes_with_its_rows():
    model = looped("llama")
    batch = inputs(model)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, :3] = 0
    check_exits(model, **batch)


def test_exits_follow_the_loops_that_are_chosen():
    model = looped("llama", loops=4)
    hf_share.choose(model, loops=3)
    assert ends_of_loops(model) == ("layers", [0, 1, 2])
    exits = exit_logits(model, **inputs(model))
    assert len(exits) == 3
    torch.testing.assert_close(exits[-1], logits(model), rtol=1e-4, atol=1e-5)


def test_what_has_no_exits_is_refused():
    for order, depths in (("sequence", "0, 2"), ("middle-cycle", "0, 1, 3")):
        with pytest.raises(Refused, match=f"with 1 loops depths {depths} run, which are not its first ones"):
            exit_logits(looped("llama", order=order), **inputs(source("llama")))
    with pytest.raises(Refused, match="this model has 0: share it with RecursiveConfig"):
        exit_logits(source("llama"), **inputs(source("llama")))


def test_a_model_that_mixes_rows_behind_its_layers_is_refused():
    model = looped("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output - output.mean(0, keepdim=True))
    with pytest.raises(Refused, match="LlamaForCausalLM: the logits after loop 1 are not those of the model"):
        check_exits(model, **inputs(model))


def test_the_loss_is_the_formula():
    gen = torch.Generator().manual_seed(0)
    first, last = (torch.randn(2, 5, 11, generator=gen, requires_grad=True) for _ in range(2))
    labels = torch.randint(0, 11, (2, 5), generator=gen)
    labels[0, :2] = -100
    kept = labels[:, 1:] != -100

    def ce(x):
        return F.cross_entropy(x[:, :-1][kept], labels[:, 1:][kept])

    p, q = (x[:, :-1][kept].log_softmax(-1) for x in (last.detach(), first))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    expected = ce(last) + 0.1 * (0.7 * ce(first) + 0.3 * kl)
    loss = early_exit_loss([first, last], labels, coef=0.1, weight=0.3)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    alone = torch.autograd.grad(ce(last), last)[0]
    torch.testing.assert_close(last.grad, alone, msg="the last exit teaches the others, unmoved")
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing_changes_nothing(rank):
    batch = inputs(source("llama"))

    def gradients(**how):
        model = looped("llama", lora_rank=rank).train()
        if how:
            model.gradient_checkpointing_enable(how)
        early_exit_loss(exit_logits(model, **batch), batch["input_ids"]).backward()
        return {n: p.grad for n, p in model.named_parameters()}

    plain = gradients()
    assert all(g is not None for g in plain.values())
    for reentrant in (False, True):
        for name, gradient in gradients(use_reentrant=reentrant).items():
            torch.testing.assert_close(gradient, plain[name])


def test_layers_that_run_without_gradients_are_refused():
    """As re-entrant checkpointing around a whole layer runs them."""
    model = looped("llama").train()
    model.model.layers[1].register_forward_pre_hook(lambda *args: torch._C._set_grad_enabled(False))
    try:
        with pytest.raises(Refused, match="exits would get none"):
            exit_logits(model, **inputs(model))
    finally:
        torch.set_grad_enabled(True)


def random_windows(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 96, (count, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_helps_the_first_exit_and_keeps_the_sharing(tmp_path):
    model = looped("llama", lora_rank=2)
    sharing = pointers(model)
    cycle = (torch.arange(16)[None] + torch.arange(8)[:, None]) % 8 + 5  # what comes next is plain to see
    config = EarlyExitConfig(
        output=str(tmp_path), steps=30, batch=4, learning_rate=1e-2, warmup_steps=0, context=16
    )
    before = exit_perplexities(model, cycle, progress=False)
    model = train_exits(model, cycle, config)
    report = ExitReport(before, exit_perplexities(model, cycle, progress=False))
    assert len(report.before) == len(report.after) == 2
    assert all(b.perplexity < 0.5 * a.perplexity for a, b in zip(report.before, report.after, strict=True))
    assert "loops=1: perplexity" in str(report) and "loops=2: perplexity" in str(report)
    assert pointers(model) == sharing and model.config.use_cache
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "saved")), logits(model))


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="exit_coef=-1"):
        EarlyExitTrainer(model=looped("llama"), exit_coef=-1.0)

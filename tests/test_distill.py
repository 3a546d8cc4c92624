# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of the last layers: the loss by hand, exact averages over accumulated batches, nothing at
weight 0; and healing that trains norms.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as tf
import zoo
from helpers import rows
from torch import nn

import hf_share
from hf_share import ConfigError, FoldConfig
from hf_share.train.distill import DistillTrainer, distillation_loss, hidden_loss, tail_loss
from hf_share.train.heal import HealConfig, heal
from hf_share.train.text import Windows


def folded(teacher: nn.Module, **args) -> nn.Module:
    config = {"group_size": 2, **args}
    return hf_share.share(copy.deepcopy(teacher).requires_grad_(True), FoldConfig(**config))


def batch(count: int = 3, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows(count, length)])
    labels = ids.clone()
    labels[0, 4:] = -100
    labels[2, :3] = -100
    return ids, labels


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("remove", [None, [1]])
def test_the_tail_is_its_formula(layers, remove):
    teacher = zoo.build("llama")
    student = folded(teacher, remove=remove)
    ids, labels = batch()
    own, theirs = (m(input_ids=ids, output_hidden_states=True).hidden_states for m in (student, teacher))
    errors = []
    for row in range(3):
        for t in range(8):
            if labels[row, t + 1] != -100:
                pairs = ((own[-i][row, t], theirs[-i][row, t]) for i in range(1, layers + 1))
                errors += [float((mine - other).square().mean()) for mine, other in pairs]
    kept = len(errors) // layers
    assert kept == int((labels[:, 1:] != -100).sum()) < 24
    assert float(tail_loss(own, theirs, labels, layers)) == pytest.approx(sum(errors) / kept, rel=1e-5)
    assert float(tail_loss(own, theirs, labels, layers, count=5)) == pytest.approx(sum(errors) / 5, rel=1e-5)


@torch.no_grad()
def test_the_last_hidden_state_is_what_the_head_reads():
    model = zoo.build("llama")
    ids, _ = batch()
    out = model(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == 5 and model.lm_head(out.hidden_states[-1]).equal(out.logits)


def trainer(student: nn.Module, teacher: nn.Module | None, folder, **args) -> DistillTrainer:
    loss = {k: args.pop(k) for k in ("kd_weight", "tail_weight", "tail_layers") if k in args}
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **args}
    arguments = tf.TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, logging_steps=1, save_strategy="no",
        disable_tqdm=True, seed=7, lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    ids = torch.stack([row["input_ids"] for row in rows(8, 9)])
    return DistillTrainer(
        model=student, args=arguments, train_dataset=Windows(ids), teacher=teacher, **loss
    )


def losses(run: DistillTrainer) -> list[float]:
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("depths, places", [((4, 4), [1, 2, 3, 4]), ((2, 4), [2, 4]), ((3, 4), [1, 3, 4])])
def test_hidden_states_are_paired_by_depth(depths, places):
    gen = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(2, 5, 6, generator=gen) for _ in range(n + 1)] for n in depths)
    labels = torch.randint(0, 11, (2, 5), generator=gen)
    labels[0, :2] = -100
    kept = labels[:, 1:] != -100
    pairs = zip(student[1:], [teacher[i] for i in places], strict=True)
    errors = [(a - b)[:, :-1][kept].square().mean() for a, b in pairs]
    torch.testing.assert_close(hidden_loss(student, teacher, labels), torch.stack(errors).mean())


def test_the_trainers_loss_is_the_sum_of_its_parts(tmp_path):
    teacher = zoo.build("llama")
    student = folded(teacher).train()  # a step of evaluation measures cross-entropy alone
    ids, labels = batch()
    run = trainer(student, teacher, tmp_path, kd_weight=0.3, tail_weight=0.7, tail_layers=2)
    loss = run.compute_loss(student, {"input_ids": ids, "labels": labels}, num_items_in_batch=11)
    own, theirs = (m(input_ids=ids, output_hidden_states=True) for m in (student, teacher))
    logits = distillation_loss(own.logits, theirs.logits, labels, 0.3, 1.0, 11)
    tail = tail_loss(own.hidden_states, theirs.hidden_states, labels, 2, 11)
    torch.testing.assert_close(loss, logits + 0.7 * tail)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_accumulated_batches_average_over_all_tokens(tmp_path):
    teacher = zoo.build("llama")
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    whole = losses(trainer(folded(teacher), teacher, tmp_path, tail_weight=2.0))
    parts = losses(trainer(folded(teacher), teacher, tmp_path, tail_weight=2.0, **split))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_at_weight_nought_nothing_changes(tmp_path):
    teacher = zoo.build("llama")
    plain, nought = folded(teacher), folded(teacher)
    assert losses(trainer(plain, teacher, tmp_path)) == losses(
        trainer(nought, teacher, tmp_path, tail_weight=0.0, tail_layers=3)
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), nought.parameters(), strict=True))


def test_a_short_run_brings_the_last_layers_together(tmp_path):
    teacher = zoo.build("llama")
    student = folded(teacher)
    ids, labels = batch()

    @torch.no_grad()
    def distance() -> float:
        models = (student.eval(), teacher)
        own, theirs = (m(input_ids=ids, output_hidden_states=True).hidden_states for m in models)
        return float(tail_loss(own, theirs, labels, 2))

    before = distance()
    args = {"tail_weight": 5.0, "tail_layers": 2, "max_steps": 30, "learning_rate": 3e-3}
    losses(trainer(student, teacher, tmp_path, **args))
    assert distance() < 0.7 * before


@pytest.mark.parametrize(
    "args, message",
    [
        ({"tail_weight": -1.0}, "tail_weight=-1.0 must be finite and not below 0"),
        ({"tail_weight": float("inf")}, "tail_weight=inf"),
        ({"tail_layers": 0}, "tail_layers=0 above 0"),
    ],
)
def test_numbers_are_checked(args, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trainer(zoo.build("llama"), zoo.build("llama"), tmp_path, **args)
    with pytest.raises(ConfigError, match="a teacher's; give one"):
        trainer(zoo.build("llama"), None, tmp_path, tail_weight=1.0)


@torch.no_grad()
def test_layers_that_cannot_be_compared_are_refused():
    ids, labels = batch()
    models = (zoo.build("llama"), zoo.build("llama", hidden_size=64))
    own, wide = (m(input_ids=ids, output_hidden_states=True).hidden_states for m in models)
    with pytest.raises(ConfigError, match="differ in width"):
        tail_loss(own, wide, labels, 1)
    with pytest.raises(ConfigError, match="tail_layers=5; student and teacher have 1 to 4"):
        tail_loss(own, own, labels, 5)


@pytest.mark.parametrize("norms", [False, True])
def test_healing_trains_norms_where_asked(norms, tmp_path):
    teacher = zoo.build("llama")
    student = folded(teacher)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    config = HealConfig(
        steps=3, batch=2, warmup_steps=0, context=9, r=2, output=str(tmp_path), tail_weight=1.0, norms=norms
    )
    ids = torch.stack([row["input_ids"] for row in rows(8, 9)])
    healed = heal(student, ids, teacher, config)
    moved = {n for n, p in healed.named_parameters() if n in before and not torch.equal(p, before[n])}
    kinds = ("input_layernorm", "post_attention_layernorm")
    assert moved == ({f"model.layers.{i}.{k}.weight" for i in range(4) for k in kinds} if norms else set())
    healed.save_pretrained(tmp_path / "healed")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "healed")
    assert zoo.logits(again).equal(zoo.logits(healed))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Progressive replacement: the teacher's layers stand in for the student's, fewer each step."""

from __future__ import annotations

import copy

import pytest
import torch
from promises import source
from zoo import inputs, logits

import hf_share
from hf_share import ConfigError, FoldConfig, Refused
from hf_share.train.heal import HealConfig, heal
from hf_share.train.replace import Replacement


def pair(arch: str, **fold):
    teacher = copy.deepcopy(source(arch))
    return hf_share.share(copy.deepcopy(source(arch)), FoldConfig(**fold)), teacher


ALL = {"start": 1e-9, "steps": 10**9}  # nobody draws below


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "neox", "opt", "mixtral", "bert", "t5"])
def test_with_every_layer_replaced_the_student_is_the_teacher(arch):
    student, teacher = pair(arch, group_size=2, stack="decoder.block" if arch == "t5" else None)
    replacement = Replacement(student, teacher, **ALL)
    assert replacement.drawn(0) == list(range(len(replacement.pairs)))
    batch = {**inputs(student), "use_cache": False} if arch != "bert" else inputs(student)
    before = logits(student)
    with torch.no_grad(), replacement.at(0):
        found = student(**batch).logits
    torch.testing.assert_close(found, logits(teacher), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(student), before), "no hook is left"
    assert (before - found).abs().max() > 1e-3


def test_fewer_layers_stand_for_blocks():
    student, teacher = pair("llama", remove=[3])  # 3 for 4
    replacement = Replacement(student, teacher, **ALL)
    theirs = list(teacher.model.layers)
    places = [[theirs.index(layer) for layer in block] for _, block in replacement.pairs]
    assert sum(places, []) == [0, 1, 2, 3]
    with torch.no_grad(), replacement.at(0):
        found = student(**inputs(student), use_cache=False).logits
    torch.testing.assert_close(found, logits(teacher), rtol=1e-4, atol=1e-5)


def test_layers_of_several_kinds_need_the_same_depth():
    student, teacher = pair("gemma2", remove=[3])
    with pytest.raises(Refused, match="of several kinds .full_attention, sliding_attention., and 4 of them"):
        Replacement(student, teacher, start=0.5, steps=2)


def test_gradients_pass_through_the_teacher_and_leave_it():
    student, teacher = pair("llama", group_size=2)
    teacher.requires_grad_(False)
    replacement = Replacement(student, teacher, start=0.5, steps=10**9)
    step = next(s for s in range(999) if replacement.drawn(s) == [2, 3])
    ids = inputs(student)["input_ids"]
    with replacement.at(step):
        student(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradient = student.model.layers[0].mlp.up_proj.weight.grad
    assert gradient.abs().sum() > 0 and student.model.layers[2].mlp.up_proj.weight.grad is None
    assert all(p.grad is None for p in teacher.parameters())


def test_the_schedule_is_the_formula():
    student, teacher = pair("llama", group_size=2)
    replacement = Replacement(student, teacher, start=0.2, steps=10, seed=3)
    assert [replacement.probability(t) for t in (0, 5, 10, 99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    counts = [len(replacement.drawn(t)) for t in range(10)]
    assert sum(counts[:5]) > sum(counts[5:]) and replacement.drawn(10) == replacement.drawn(50) == []
    assert [replacement.drawn(t) for t in range(10)] == [replacement.drawn(t) for t in range(10)]
    other = Replacement(student, teacher, 0.2, 10, seed=4)
    assert [replacement.drawn(t) for t in range(10)] != [other.drawn(t) for t in range(10)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("train", ["adapter", "full"])
def test_healing_with_replacement(train, tmp_path):
    windows = torch.randint(3, 96, (16, 16), generator=torch.Generator().manual_seed(1))
    student, teacher = pair("llama", group_size=2)

    def distance(model):
        with torch.no_grad():
            ours, theirs = (m(input_ids=windows).logits.log_softmax(-1) for m in (model, source("llama")))
        return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    before = distance(student)
    config = HealConfig(
        output=str(tmp_path), train=train, steps=40, batch=4, context=16, warmup_steps=0, kd_weight=1.0,
        learning_rate={"adapter": 5e-3, "full": 1e-3}[train], replace_start=0.5, hidden_weight=0.1,
    )  # fmt: skip
    assert distance(heal(student, windows, teacher, config)) < 0.7 * before


def test_hidden_states_are_of_what_went_on_where_layers_are_replaced():
    """One for each layer and the end, in the first pass and in later ones, when hooks collect them."""
    student, teacher = pair("llama", group_size=2)
    ids = torch.randint(3, 96, (2, 8), generator=torch.Generator().manual_seed(1))

    def states(model):
        with torch.no_grad():
            return model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states

    own, wanted = states(student), states(teacher)
    with Replacement(student, teacher, **ALL).at(0):
        for _ in range(2):
            found = states(student)
            assert len(found) == len(wanted) == 5
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (own[2] - wanted[2]).abs().max() > 1e-3


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    student, teacher = pair("llama", group_size=2)
    with pytest.raises(ConfigError, match="replace_start=0.0 must lie in"):
        Replacement(student, teacher, 0.0, 5)
    with pytest.raises(ConfigError, match="lets a teacher's layers stand in; give one"):
        heal(student, torch.zeros(4, 8).long(), None, HealConfig(output=str(tmp_path), replace_start=0.5))
    cached = HealConfig(output=str(tmp_path), replace_start=0.5, teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="needs the teacher's layers, not a cache"):
        heal(pair("llama")[0], torch.zeros(4, 8).long(), teacher, cached)

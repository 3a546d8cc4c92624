# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A teacher's logits on disk: all of them to the bit, or the largest with the rest as one outcome."""

from __future__ import annotations

import copy
import errno
import os

import pytest
import torch
from promises import source
from torch.nn import functional as F

import hf_share
from hf_share import ConfigError
from hf_share.train.distill import distillation_loss
from hf_share.train.heal import HealConfig, heal
from hf_share.train.teacher_cache import TeacherCache, TopLogits, weights_name


def logits(seed: int, rows: int = 3, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, 5, 11, generator=torch.Generator().manual_seed(seed))


LABELS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
LABELS[0, :2] = -100


def test_all_logits_come_back_to_the_bit(tmp_path):
    asked = []

    def ask(rows):
        asked.append(rows)
        return logits(1)[rows]

    cache = TeacherCache(tmp_path, 3, 5, 11)
    assert torch.equal(cache.get([2, 0], lambda: ask([2, 0])), logits(1)[[2, 0]])
    again = TeacherCache(tmp_path, 3, 5, 11)
    assert torch.equal(again.get([0, 2], lambda: ask([0, 2])), logits(1)[[0, 2]]) and len(asked) == 1
    assert torch.equal(again.get([1, 2], lambda: ask([1, 2])), logits(1)[[1, 2]]) and len(asked) == 2


def test_the_top_logits_are_the_formula(tmp_path):
    cache = TeacherCache(tmp_path, 3, 5, 11, top_k=4, temperature=2.0)
    top = cache.get([0, 1, 2], lambda: logits(1))
    own = logits(2).requires_grad_()
    loss = distillation_loss(own, top, LABELS, 1.0, 2.0)
    kept = LABELS[:, 1:] != -100
    p, q = ((x[:, :-1][kept] / 2.0).softmax(-1) for x in (logits(1), own))
    _, places = p.topk(4)
    p_top, q_top = p.gather(-1, places), q.gather(-1, places)
    p_rest, q_rest = 1 - p_top.sum(-1), 1 - q_top.sum(-1)
    kl = (p_top * (p_top / q_top).log()).sum(-1) + p_rest * (p_rest / q_rest).log()
    torch.testing.assert_close(loss, 4.0 * kl.mean(), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert own.grad.isfinite().all() and own.grad.abs().sum() > 0


def test_more_logits_come_nearer_to_the_whole():
    own = logits(2)
    whole = distillation_loss(own, logits(1), LABELS, 1.0, 1.0)
    found = [
        float(distillation_loss(own, TopLogits.of(logits(1), k, 1.0), LABELS, 1.0, 1.0)) for k in range(1, 12)
    ]
    assert found == sorted(found) and found[0] < float(whole) - 0.1, "never more than the whole"
    assert found[-1] == pytest.approx(float(whole), rel=1e-5)


def test_a_peaked_teacher_leaves_no_rest():
    sure = 200.0 * F.one_hot(LABELS.clamp(min=0), 11).float()
    own = logits(2).requires_grad_()
    loss = distillation_loss(own, TopLogits.of(sure, 2, 1.0), LABELS, 1.0, 1.0)
    torch.testing.assert_close(loss, distillation_loss(own, sure, LABELS, 1.0, 1.0))
    loss.backward()
    assert own.grad.isfinite().all()


def test_a_full_disk_leaves_no_record_that_counts(tmp_path, monkeypatch):
    cache = TeacherCache(tmp_path, 3, 5, 11)
    real = os.pwrite

    def full(file, data, at):
        if file == cache.records and at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        cache.get([0, 1], lambda: logits(1)[:2])
    monkeypatch.undo()
    asked = []
    again = TeacherCache(tmp_path, 3, 5, 11)
    assert torch.equal(again.get([0], lambda: asked.append(0)), logits(1)[:1]) and not asked
    assert torch.equal(again.get([1], lambda: asked.append(1) or logits(1)[1:2]), logits(1)[1:2]) and asked


def test_the_cache_of_others_is_refused(tmp_path):
    TeacherCache(tmp_path, 3, 5, 11, of="a")
    with pytest.raises(ConfigError, match=r"another teacher.*\(different: of\)"):
        TeacherCache(tmp_path, 3, 5, 11, of="b")
    with pytest.raises(ConfigError, match="different: top_k"):
        TeacherCache(tmp_path, 3, 5, 11, top_k=2, of="a")
    with pytest.raises(ConfigError, match="teacher_top_k=12: the vocabulary has 11"):
        TeacherCache(tmp_path / "other", 3, 5, 11, top_k=12)
    with pytest.raises(ConfigError, match="teacher_top_k=2 is of a cache"):
        HealConfig(teacher_top_k=2)
    one, two = source("llama"), copy.deepcopy(source("llama"))
    with torch.no_grad():
        two.model.norm.weight[0] += 1
    assert weights_name(one) == weights_name(copy.deepcopy(one)) != weights_name(two)
    wide = hf_share.share(copy.deepcopy(one), hf_share.ElasticConfig(group_size=16))
    names = {weights_name(hf_share.choose(wide, bits=bits)) for bits in (2, 3, 4)}
    assert len(names) == 3, "one model at three widths is three teachers"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_healing_from_the_cache_is_healing_from_the_teacher(tmp_path):
    windows = torch.randint(3, 96, (8, 16), generator=torch.Generator().manual_seed(1))

    def healed(name: str, **more):
        model = hf_share.share(copy.deepcopy(source("llama")), hf_share.FoldConfig(group_size=2))
        config = HealConfig(
            output=str(tmp_path / name), steps=8, batch=4, context=16, warmup_steps=0, kd_weight=1.0, **more
        )
        return heal(model, windows, copy.deepcopy(source("llama")), config).state_dict()

    online, cached = healed("online"), healed("cached", teacher_cache=str(tmp_path / "full"))
    for name in online:
        torch.testing.assert_close(cached[name], online[name], rtol=1e-4, atol=1e-5)
    again = healed("again", teacher_cache=str(tmp_path / "full"))
    assert all(torch.equal(again[name], cached[name]) for name in cached)
    top = healed("top", teacher_cache=str(tmp_path / "top"), teacher_top_k=96)
    for name in online:
        torch.testing.assert_close(top[name], online[name], rtol=1e-2, atol=1e-3)
    assert (tmp_path / "full" / "records.bin").stat().st_size == 8 * 16 * 96 * 4
    with pytest.raises(ConfigError, match="hidden_weight=1.0 needs the teacher's hidden states"):
        healed("bad", teacher_cache=str(tmp_path / "full"), hidden_weight=1.0)

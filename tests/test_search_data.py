# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a search measures on and hands on: disjoint splits, divergence, fingerprints, latency, fronts."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from torch.nn import functional as F

from hf_share.errors import ConfigError
from hf_share.search import front
from hf_share.search.latency import latency_cost, measure_latency
from hf_share.search.objective import Divergence, fingerprint, text_hash
from hf_share.search.space import Cost, Decision, Space
from hf_share.search.splits import require_disjoint, run_length, windows_of


def tokens(count: int = 4, length: int = 32, seed: int = 0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(3, zoo.VOCAB, (count, length), generator=gen)


# splits


@pytest.mark.parametrize("shift", [0, 1, 13, 31, 47])
def test_overlapping_splits_are_refused_at_every_offset(shift):
    stream = tokens(12).flatten()
    search = stream[: 4 * 32].view(4, 32)
    report = stream[3 * 32 - 32 + shift : 3 * 32 - 32 + shift + 6 * 32].view(6, 32)
    with pytest.raises(ConfigError, match=f"runs of {run_length(search, report)} tokens"):
        require_disjoint(search, report)
    with pytest.raises(ConfigError, match="overlap"):
        require_disjoint(report, search)


def test_disjoint_splits_pass_though_they_share_phrases():
    one, two = tokens(), tokens(seed=1)
    require_disjoint(one, two)
    two[0, 5:20] = one[2, 3:18]  # 15 tokens in a row, fewer than a run of half a window
    require_disjoint(one, two)
    two[0, 0:32] = one[2]
    with pytest.raises(ConfigError, match="32 of 128 tokens .* in runs of 16 .* in window 2"):
        require_disjoint(one, two)


@pytest.mark.parametrize("start", [0, 1, 7, 15, 16])
@pytest.mark.parametrize("to", [0, 5, 16])
def test_any_run_of_half_a_window_is_found_and_none_shorter(start, to):
    one, two = tokens(), tokens(seed=1) + zoo.VOCAB
    for length, overlaps in ((15, False), (16, True)):
        two[1, to : to + length] = one[2, start : start + length]
        if not overlaps:
            require_disjoint(one, two)
            continue
        with pytest.raises(ConfigError, match="overlap: 16 of 128 tokens .* in window 2"):
            require_disjoint(one, two)


def test_windows_that_are_shifted_by_a_token_overlap():
    one = tokens(32, 64)
    two = torch.cat([one[:, 1:63], tokens(32, 2, seed=1) + zoo.VOCAB], 1)
    with pytest.raises(ConfigError, match=f"overlap: {32 * 62} of {32 * 64} tokens"):
        require_disjoint(one, two)


def test_splits_from_tensors_lists_and_batches():
    model, ids = zoo.build("llama"), tokens()
    for given in (ids, list(ids), list(ids.split(3)), [{"input_ids": ids}]):
        assert torch.equal(windows_of(model, given, "search"), ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the search split is empty"),
        ([], "the search split is empty"),
        (torch.zeros(0, 8, dtype=torch.long), "the search split is empty"),
        (torch.zeros(3, 1, dtype=torch.long), "predict nothing"),
        ([torch.ones(1, 8).long(), torch.ones(1, 6).long()], "6 to 8 tokens"),
        (["text"], "no tokenizer"),
    ],
)
def test_bad_splits(given, message):
    with pytest.raises(ConfigError, match=message):
        windows_of(zoo.build("llama"), given, "search")


# the objective


class Noisy:
    """A model whose first weights have more or less noise: level 2 has none."""

    def __init__(self):
        self.model = zoo.build("llama")
        self.weights = [self.model.model.layers[i].mlp.down_proj.weight for i in range(2)]
        self.clean = [w.detach().clone() for w in self.weights]
        self.noise = [torch.randn(w.shape, generator=torch.Generator().manual_seed(5)) for w in self.weights]

    @torch.no_grad()
    def __call__(self, candidate):
        for w, clean, noise, level in zip(self.weights, self.clean, self.noise, candidate, strict=True):
            w.copy_(clean + 0.1 * (2 - level) * noise)


def test_divergence_is_the_mean_over_tokens_of_kl_to_the_full_model():
    noisy, ids = Noisy(), tokens(5, 16)
    measure = Divergence(noisy.model, noisy, (2, 2), ids, batch=2)
    assert measure((2, 2)) < 1e-6
    noisy((0, 1))
    q = zoo.logits(noisy.model, input_ids=ids).double().log_softmax(-1)
    noisy((2, 2))
    p = zoo.logits(noisy.model, input_ids=ids).double().log_softmax(-1)
    by_hand = float((p.exp() * (p - q)).sum(-1).mean())
    assert abs(measure((0, 1)) - by_hand) < 1e-6 and by_hand > 1e-4
    assert measure((0, 0)) > measure((1, 1)) > 0
    part = (p.exp() * (p - q)).sum(-1)[:3].mean()  # 3 of 5 windows, across batches of 2
    assert abs(measure((0, 1), 0.5) - float(part)) < 1e-6


def test_batches_and_what_is_kept_do_not_change_the_divergence():
    noisy, ids = Noisy(), tokens(5, 16)
    values = [
        Divergence(noisy.model, noisy, (2, 2), ids, batch=batch, kept_bytes=kept)((0, 1))
        for batch in (1, 2, 8) for kept in (0, 2**31)
    ]  # fmt: skip
    assert max(values) - min(values) < 1e-6


def test_a_teacher_may_be_another_model():
    noisy, ids = Noisy(), tokens(3, 16)
    teacher = zoo.build("llama", seed=1)
    found = Divergence(noisy.model, noisy, (2, 2), ids, teacher=teacher)((2, 2))
    p, q = (zoo.logits(m, input_ids=ids).log_softmax(-1) for m in (teacher, noisy.model))
    by_hand = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert abs(found - float(by_hand)) < 1e-5 and found > 0.01


def test_fingerprints_change_with_weights_and_text_alone():
    model, ids = zoo.build("llama"), tokens()
    first = fingerprint(ids, model, None)
    assert first == fingerprint(ids.clone(), zoo.build("llama"), None)
    changed = zoo.build("llama")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    other = ids.clone()
    other[0, 0] = 3 + (int(other[0, 0]) - 2) % 50
    assert len({first, fingerprint(ids, changed, None), fingerprint(other, model, None),
                fingerprint(ids, model, changed)}) == 4  # fmt: skip
    assert text_hash(ids) == text_hash(ids.int()) != text_hash(other)


# latency


def space_of(noisy: Noisy) -> Space:
    names = [f"layers.{i}.mlp.down_proj" for i in range(2)]
    decisions = tuple(Decision(kind="level", name=name, options=(0, 1, 2)) for name in names)
    return Space(decisions=decisions, costs={"bytes": Cost(options=((1, 2, 3),) * 2)})


def test_a_measured_latency_is_a_cost_that_adds_up():
    noisy = Noisy()
    space = space_of(noisy)
    modules = {d.name: noisy.model.model.get_submodule(d.name) for d in space.decisions}
    table = measure_latency(noisy.model, space, noisy, modules, tokens(1, 4), repeats=3)
    cost = latency_cost(space.decisions, json.loads(json.dumps(table)))
    assert cost.fixed > 0 and all(ms > 0 for row in cost.options for ms in row)
    assert cost.of((0, 2)) == pytest.approx(table["rest"] + cost.options[0][0] + cost.options[1][2])
    del table["layers.1.mlp.down_proj"][2]
    with pytest.raises(ConfigError, match=r"level=2 at 'layers.1.mlp.down_proj'"):
        latency_cost(space.decisions, table)


# fronts


def row(name: str = "3.0-bits", size: int = 1000, nll: float | None = 1.5) -> dict:
    choices = {"bits": {"layers.0.mlp.up_proj": 3}}
    return {"name": name, "choices": choices, "bytes": size, "mean_bits": 3.0, "nll": nll, "split": "report"}


def test_rows_in_a_folder_are_replaced_by_name(tmp_path):
    front.write(tmp_path, [row(), row("4.0-bits", 2000, 1.4)])
    path = front.write(tmp_path, [row(nll=1.3), row("2.0-bits", 500, None)])
    rows = json.loads(path.read_text())
    assert [(r["name"], r["nll"]) for r in rows] == [("2.0-bits", None), ("3.0-bits", 1.3), ("4.0-bits", 1.4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.md", "front.png", "subnets.json"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "front.md").read_text().splitlines()[2:] == [
        "| 2.0-bits | 3.000 | 500 | - |", "| 3.0-bits | 3.000 | 1,000 | 1.3000 |",
        "| 4.0-bits | 3.000 | 2,000 | 1.4000 |",
    ]  # fmt: skip


def test_a_front_of_nothing_measured(tmp_path):
    with pytest.raises(ConfigError, match="no front"):
        front.plot_front([row(nll=None)], tmp_path / "none.png")

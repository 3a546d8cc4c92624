# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan for a number of bytes: the file keeps to it, the nearest plan wins, and the model is left alone."""

from __future__ import annotations

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

import hf_share
from hf_share import ConfigError, Refused, layout
from hf_share.filesize import file_size, parse_target
from hf_share.layout import neighbours, words


GB, GIB = 10**9, 2**30
TEXT = [torch.randint(3, zoo.VOCAB, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "bert"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["dense", "fold", "lora"])
def test_the_size_is_that_of_the_file(arch, tied, kind, tmp_path):
    model = zoo.build(arch, tie_word_embeddings=tied)
    if kind == "fold":
        model = hf_share.share(model, hf_share.FoldConfig(group_size=2))
    if kind == "lora":
        model = hf_share.share(model, hf_share.ShareLoraConfig(r=2, target_modules="all-linear"))
    model.save_pretrained(tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert abs(file_size(model) - written) <= 16, "offsets in the header may have a digit more"


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("0.6", 600), (0.6, 600), ("60%", 600), ("1", 1000), ("4GB", 4 * GB), ("4 gb", 4 * GB),
     ("4GiB", 4 * GIB), ("1.5kB", 1500), ("700B", 700)],
)  # fmt: skip
def test_targets(text, bytes):
    assert parse_target(text, 1000) == bytes


@pytest.mark.parametrize("text", ["", "much", "0", "-1", "1.5", "7000", "4XB", "120%", "nan", "inf", "GB"])
def test_what_is_no_target(text):
    with pytest.raises(ConfigError, match="fits nothing"):
        parse_target(text, 1000)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_file_keeps_to_the_target_and_uses_it(arch, tmp_path):
    model = zoo.build(arch)
    dense = file_size(model)
    made = hf_share.propose(model, 0.7, TEXT)
    assert len({t.stored for t in made.trials}) == 1 and made.limit == int(0.7 * dense)
    assert made.chosen.distance == min(t.distance for t in made.trials)
    hf_share.share(model, made.plan).save_pretrained(tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert abs(written - made.chosen.bytes) <= 16 and written <= made.limit
    layer = sum(p.numel() * 4 for p in model.base_model.get_submodule("layers" if arch == "llama" else "h")[0]
                .parameters())  # fmt: skip
    assert written > made.limit - 1.1 * layer, "one layer more would not fit"


def test_distances_are_those_of_the_shared_model():
    model = zoo.build("llama")
    for trial in hf_share.propose(model, 0.7, TEXT).trials:
        shared = hf_share.share(zoo.build("llama"), trial.plan)
        told = []
        for ids in TEXT:
            p, q = (zoo.logits(m, input_ids=ids).log_softmax(-1) for m in (model, shared))
            told.append(float((p.exp() * (p - q)).sum(-1).mean()))
        assert trial.distance == pytest.approx(sum(told) / len(told), rel=1e-4)
        assert trial.layout.count("gone") == 4 - trial.visits


def test_no_exchange_of_two_layers_comes_nearer():
    model = zoo.build("llama", num_hidden_layers=5)
    made = hf_share.propose(model, 0.7, TEXT)
    tried = {t.layout: t.distance for t in made.trials}
    for other in neighbours(made.chosen.layout, made.influence, ()):
        assert tried[other] >= made.chosen.distance
    first = hf_share.propose(model, 0.7, TEXT, trials=2)
    assert [t.layout for t in first.trials] == list(tried)[:2]
    assert first.chosen.distance >= made.chosen.distance
    told = f"3 of 5 layers can be stored; of {len(made.trials)} ways tried {made.chosen} is nearest"
    assert made.why.startswith(told)


def test_exchanges_find_what_block_influence_does_not():
    """A layer that turns nothing but scales its input changes no direction: block influence 0, and yet all
    depends on it, for the layers after it add to what it scaled.
    """
    model = zoo.build("llama", num_hidden_layers=4)

    class Scaling(type(model.model.layers[1])):
        def forward(self, hidden_states, **kwargs):
            return hidden_states * 8.0

    model.model.layers[1].__class__ = Scaling
    by_influence, found = (hf_share.propose(model, 0.75, TEXT, trials=n) for n in (2, 64))
    assert min(range(4), key=by_influence.influence.__getitem__) == 1
    assert all(t.layout[1] != "stored" for t in by_influence.trials)
    assert found.chosen.distance < 0.5 * by_influence.chosen.distance


@pytest.mark.parametrize(
    ("order", "gone", "stored", "groups"),
    [
        ([3, 2, 1, 0], 0, 2, [[0], [1, 2, 3]]),
        ([3, 2, 1, 0], 2, 2, [[0], [1]]),
        ([0, 2, 1, 3], 1, 2, [[1, 2], [3]]),
        ([1, 2], 1, 2, [[0, 2], [3]]),
        ([], 0, 4, [[0], [1], [2], [3]]),
    ],
)
def test_layouts_by_an_order(order, gone, stored, groups):
    assert layout.groups(layout.by_order(4, order, gone, stored)) == groups


def test_neighbours_store_as_much_and_begin_with_a_stored_layer():
    one = ("stored", "shared", "stored", "gone")
    found = neighbours(one, (0.9, 0.5, 0.2, 0.1), fixed=[0])
    assert ("stored", "gone", "stored", "gone") in found and ("stored", "stored", "gone", "gone") in found
    assert all(other[0] == "stored" and other.count("stored") == 2 and other != one for other in found)
    assert len(found) == len(set(found)) == 2 + 2 * 2, "two flips, and each unstored with layer 2, twice"
    best = {("stored", "stored", "shared", "gone"), ("stored", "stored", "gone", "gone")}
    assert set(found[:2]) == best, "the most score stored for the least comes first"
    free = neighbours(("stored", "gone", "gone", "stored"), (0.0,) * 4, fixed=())
    assert ("gone", "stored", "gone", "stored") in free and all(other[0] != "shared" for other in free)


def test_layouts_in_words():
    assert words(("gone", "stored", "gone", "gone", "shared")) == "remove 0, 2-3, share 4"
    assert words(("stored",) * 3) == "store all"


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_low_rank_factors_are_tried_where_they_are_asked_for(arch, tmp_path):
    model = zoo.build(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, made = (hf_share.propose(model, 0.7, TEXT, low_rank=wanted) for wanted in (False, True))
    assert made.trials[:-1] == plain.trials
    found = made.trials[-1]
    assert str(found).startswith("low-rank, ratio 0.") and str(found) in made.why
    assert 0.97 * made.limit < found.bytes <= made.limit
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small = hf_share.share(model, found.plan, TEXT)
    small.save_pretrained(tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert abs(written - found.bytes) <= 16
    told = [zoo.logits(m, input_ids=ids).log_softmax(-1) for ids in TEXT for m in (zoo.build(arch), small)]
    kl = sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(told[::2], told[1::2], strict=True))
    assert found.distance == pytest.approx(kl / len(TEXT), rel=1e-3)
    with pytest.raises(ConfigError, match="out of reach"):
        hf_share.propose(zoo.build(arch), 0.01, TEXT, low_rank=True)


def test_the_model_is_left_alone():
    model, fresh = zoo.build("llama").train(), zoo.build("llama")
    hf_share.propose(model, "60%", TEXT)
    assert model.training and model.config.to_dict() == fresh.config.to_dict()
    assert hf_share.describe(model).plan is None
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_out_of_reach_names_the_smallest():
    with pytest.raises(ConfigError, match="out of reach.*smallest file has") as error:
        hf_share.propose(zoo.build("llama"), 0.01, TEXT)
    smallest = float(str(error.value).split(" of the dense")[0].rsplit(" ", 1)[1])
    assert hf_share.propose(zoo.build("llama"), smallest, TEXT).chosen.stored == 1


def test_what_cannot_be_proposed_for():
    with pytest.raises(ConfigError, match="asks for no less"):
        hf_share.propose(zoo.build("llama"), 1.0, TEXT)
    with pytest.raises(ConfigError, match="trials is 0"):
        hf_share.propose(zoo.build("llama"), 0.8, TEXT, trials=0)
    with pytest.raises(ConfigError, match="already"):
        hf_share.propose(hf_share.share(zoo.build("llama"), hf_share.FoldConfig(group_size=2)), 0.5, TEXT)
    with pytest.raises(ConfigError, match="stack"):
        hf_share.propose(zoo.build("t5"), 0.8, TEXT)
    with pytest.raises(Refused, match="with its head"):
        hf_share.propose(zoo.build("llama").base_model, 0.8, TEXT)


def test_an_owner_of_the_stack_stays():
    made = hf_share.propose(zoo.build("t5"), 0.8, TEXT, stack="encoder.block")
    assert all(0 in t.plan.arranges[0].members for t in made.trials)
    assert {t.layout.count("gone") for t in made.trials} == {0}, (
        "T5 counts its decoder's cache by the encoder"
    )


def test_a_proposal_is_plain_json_and_its_plan_reads_back(tmp_path):
    import json

    made = hf_share.propose(zoo.build("llama"), 0.7, TEXT)
    told = json.loads(json.dumps(made.to_dict()))
    assert hf_share.SharePlan.from_dict(told["plan"]) == made.plan
    assert told["bytes"]["got"] <= told["bytes"]["asked"] < told["bytes"]["dense"]
    shared = hf_share.share(zoo.build("llama"), made.plan)
    shared.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(zoo.logits(again), zoo.logits(shared))

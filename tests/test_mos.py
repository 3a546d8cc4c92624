# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""MoS: the paper's assembly of factors from shards, its switches and its special cases."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model

import hf_share
from hf_share import ConfigError, MosConfig, PlanError, ShareError
from hf_share.hub.layer import ShareLayer
from hf_share.methods.mos import Shards, largest_rank
from hf_share.rules import make_rule
from hf_share.sites import Site, sites


LINEAR = {"module": "", "part": None, "kind": "linear", "in_features": 12, "out_features": 8}
GROUP = [Site(name=f"layers.{i}.up", **{**LINEAR, "module": f"layers.{i}.up"}) for i in range(4)]


def adapted(**args):
    model = get_peft_model(zoo.build("llama"), MosConfig(target_modules=["q_proj", "up_proj"], **args))
    return model.eval()


def test_the_assembly_of_the_paper():
    """Row j, segment i of A[k] is shard I[j l + i]; the last p rows are the layer's own."""
    shards = Shards(r=3, e=2, l=2, p=1, scale=0.5)
    A, B = torch.randn(2 * 4 * 2, 6), torch.randn(2 * 4 * 2, 4)
    for k, site in enumerate(GROUP):
        t = {"A": A, "B": B, **shards.constants(site, GROUP)}
        assert t["I_A"].shape == t["I_B"].shape == (3 * 2,)
        own = list(range(8 + 2 * k, 8 + 2 * k + 2))
        for letter, pool, size in (("A", A, 12), ("B", B, 8)):
            index = t[f"I_{letter}"].tolist()
            assert index[-2:] == own and max(index[:-2]) < 8 and len(set(index)) == 6
            by_hand = torch.stack([torch.cat([pool[index[j * 2 + i]] for i in range(2)]) for j in range(3)])
            formed = shards.form(t)[letter]
            assert by_hand.shape == (3, size)
            assert torch.equal(formed if letter == "A" else formed.mT, by_hand)
        assert t["I_A"].tolist() != t["I_B"].tolist()
        A_k, B_k = shards.factors(shards.form(t))
        torch.testing.assert_close(B_k @ A_k, shards.weight(shards.form(t)))


def test_each_switch_off_is_the_papers_ablation():
    on = Shards(r=3, e=2, l=2, p=1)
    pairs = dataclasses.replace(on, dissociate=False).constants(GROUP[0], GROUP)
    assert torch.equal(pairs["I_A"], pairs["I_B"])
    public = dataclasses.replace(on, p=0)
    assert public.constants(GROUP[3], GROUP)["I_A"].max() < 2 * 4 * 2
    assert dataclasses.replace(on, l=1).shared(GROUP) == {"A": (8, 12), "B": (8, 8)}
    pure = Shards(r=8, e=2, select=False)  # one pool of rank e L, the same in every layer
    found = [pure.constants(site, GROUP)["I_A"].tolist() for site in GROUP]
    assert found == [list(range(8))] * 4


def test_indices_follow_from_seed_and_name_only():
    shards = Shards(r=4, e=2, l=2)
    index = shards.constants(GROUP[1], GROUP)["I_A"].tolist()
    renamed = [dataclasses.replace(s, name=s.name + "_") for s in GROUP]
    assert shards.constants(GROUP[1], [GROUP[1], *GROUP[2:], GROUP[0]])["I_A"].tolist() == index
    assert shards.constants(renamed[1], renamed)["I_A"].tolist() != index
    assert dataclasses.replace(shards, seed=1).constants(GROUP[1], GROUP)["I_A"].tolist() != index
    state = torch.get_rng_state()
    shards.constants(GROUP[2], GROUP)
    assert torch.get_rng_state().equal(state)
    # a file's meaning hangs on these numbers: they may never change
    assert index == [12, 13, 1, 11, 7, 15, 2, 4]


def test_with_p_e_r_equal_it_is_lora():
    """The same values in a stock LoRA of rank e give the same function, bit for bit."""
    args = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}
    ours = get_peft_model(
        zoo.build("llama"), MosConfig(**args, equivalent_rank=2, private_rank=2, init_weights=False)
    ).eval()
    lora = get_peft_model(zoo.build("llama"), LoraConfig(**args)).eval()
    modules = dict(lora.named_modules())
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, ShareLayer):
                t = layer.tensors(layer.bindings["default"][0], "default")
                modules[name].lora_A["default"].weight.copy_(t["A"])
                modules[name].lora_B["default"].weight.copy_(t["B"])
    assert ours.get_nb_trainable_parameters() == lora.get_nb_trainable_parameters()
    inputs = zoo.inputs(ours.get_base_model())
    torch.testing.assert_close(zoo.logits(ours, **inputs), zoo.logits(lora, **inputs), rtol=0, atol=1e-6)
    ids = inputs["input_ids"]
    for model in (ours, lora):
        model(input_ids=ids, labels=ids).loss.backward()
    whole = torch.cat([p.grad.flatten() for p in lora.parameters() if p.grad is not None])
    pools = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
    torch.testing.assert_close(pools.square().sum(), whole.square().sum())


def test_starting_values():
    """B is zero; A is uniform with the bound of the whole input, not of a shard."""
    model = adapted(r=4, equivalent_rank=2, num_shards=4)
    pools = {n: p for n, p in model.named_parameters() if "hf_share_" in n}
    assert len(pools) == 4 and not any(p.any() for n, p in pools.items() if "_B." in n)
    for name, pool in pools.items():
        if "_A." in name:
            bound = (4 * pool.shape[1]) ** -0.5
            assert 0.9 * bound < pool.abs().max() <= bound


@pytest.mark.parametrize(
    "args, message",
    [
        ({"r": 9, "equivalent_rank": 2, "private_rank": 0}, "at most r = 8"),
        ({"r": 3, "equivalent_rank": 2, "private_rank": 2}, "at most r = 2"),
        ({"r": 5, "subset_selection": False, "private_rank": 0}, "r = 8, and without subset selection"),
        ({"r": 4, "num_shards": 5}, "5 shards do not divide its input of 32; 1, 2, 4, 8, 16, 32 fit"),
        ({"r": 2, "private_rank": 3}, "private_rank=3 is more than equivalent_rank=2 or r=2"),
        ({"r": 4, "equivalent_rank": 0}, "equivalent_rank is 0"),
        ({"r": 4, "pair_dissociation": "no"}, "pair_dissociation is 'no'"),
        ({"r": 4, "equivalent_rnk": 2}, "did you mean 'equivalent_rank'"),
    ],
)
def test_bad_input(args, message):
    model = zoo.build("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ShareError, match=message):
        get_peft_model(model, MosConfig(target_modules="all-linear", **args))
    after = model.state_dict()
    assert after.keys() == before.keys() and all(after[n].equal(v) for n, v in before.items())


@pytest.mark.parametrize(
    "args",
    [{"r": 0, "e": 1}, {"r": 2, "e": 1, "p": 2}, {"r": 1, "e": 1, "l": True}, {"r": 1, "e": 1, "init": "x"}],
)
def test_the_rule_checks_its_arguments(args):
    with pytest.raises(PlanError, match="shards"):
        make_rule("shards", args)


def test_a_pool_that_is_hardly_used_is_warned_of_with_the_number():
    with pytest.warns(UserWarning, match=r"3\d% of the public shards are selected by no layer"):
        adapted(r=2, equivalent_rank=2, private_rank=0, num_shards=4)
    expected = (1 - 2 / (2 * 4)) ** 4
    rule = Shards(r=2, e=2, l=4)
    met = sum(rule.unused(GROUP, m) for m in "AB") / 2
    assert abs(met - expected) < 0.15
    assert largest_rank(2, 1, 32) == 33


def test_as_plain_lora_it_is_the_same_function(tmp_path):
    model = adapted(r=4, init_weights=False)
    config, state = hf_share.to_lora(model, tmp_path)
    assert config.r == 4 and len(state) == 2 * 8
    lora = PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()
    inputs = zoo.inputs(lora.get_base_model())
    torch.testing.assert_close(zoo.logits(lora, **inputs), zoo.logits(model, **inputs))


def _held(binding):
    (kept,) = binding._kept.values()
    return kept.value["A"]


def test_factors_are_kept_while_nothing_trains_and_follow_the_pools():
    model = adapted(r=4, init_weights=False)
    layer = next(m for m in model.modules() if isinstance(m, ShareLayer))
    binding = layer.bindings["default"][0]
    inputs = zoo.inputs(model.get_base_model())
    before = zoo.logits(model, **inputs)
    kept = _held(binding)
    assert torch.equal(zoo.logits(model, **inputs), before) and _held(binding) is kept
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "hf_share_A" in n).mul_(2.0)
    after = zoo.logits(model, **inputs)
    assert _held(binding) is not kept and not torch.equal(after, before)
    other = copy.deepcopy(model)
    assert next(m for m in other.modules() if isinstance(m, ShareLayer)).bindings["default"][0]._kept == {}
    model.train()(**inputs).logits.sum().backward()
    assert not binding._kept, "nothing is kept for a training step"


def test_an_adapter_that_is_loaded_and_not_trained_is_put_together_once(tmp_path, monkeypatch):
    trained = adapted(r=4, init_weights=False)
    trained.save_pretrained(tmp_path)
    formed, form = [], Shards.form
    monkeypatch.setattr(Shards, "form", lambda rule, t: formed.append(rule) or form(rule, t))
    model = PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()
    sites = sum(len(m.bindings["default"]) for m in model.modules() if isinstance(m, ShareLayer))
    ids = zoo.inputs(model.get_base_model())["input_ids"]
    with torch.inference_mode():
        model(ids)
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    for _ in range(3):  # with gradients on, and through the adapter to its input
        out = model(inputs_embeds=inputs).logits
    assert len(formed) == sites
    out.square().sum().backward()
    other = trained.get_input_embeddings()(ids).detach().requires_grad_()
    trained(inputs_embeds=other).logits.square().sum().backward()
    assert len(formed) == 2 * sites
    torch.testing.assert_close(inputs.grad, other.grad)
    pools = [p for n, p in model.named_parameters() if "hf_share_" in n]
    for pool in pools:
        pool.requires_grad_()
    model(inputs_embeds=inputs).logits.square().sum().backward()
    assert len(formed) == 3 * sites and all(p.grad is not None and p.grad.any() for p in pools)


def test_the_file_holds_pools_and_no_indices(tmp_path):
    from helpers import stored

    model = adapted(r=4)
    model.save_pretrained(tmp_path)
    found = stored(tmp_path)
    assert len(found) == 4 and all(key.rpartition(".")[2] in ("hf_share_A", "hf_share_B") for key in found)


def test_config_needs_numbers():
    with pytest.raises(ConfigError, match="r is 0"):
        MosConfig(r=0)
    plan = MosConfig(r=4, target_modules=["q_proj"]).resolve(zoo.build("llama"))
    assert plan.generates[0].args == {"r": 4, "e": 2, "l": 2, "p": 1, "scale": 2.0}
    assert {s.name for s in sites(zoo.build("llama"))} >= set(plan.generates[0].sites)

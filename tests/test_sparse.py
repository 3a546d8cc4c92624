# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Pruning leaves exactly what it was asked for, and deltas over pruned weights never fill a zero: in a model,
in an adapter, merged, and after training.
"""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from helpers import pointers, trainer
from peft import PeftModel, get_peft_model
from test_quantised import quantised_base
from torch import nn

import hf_share
from hf_share import (
    ConfigError,
    ElasticConfig,
    FoldConfig,
    Generate,
    MasaConfig,
    PlanError,
    Refused,
    ShareConfig,
    SharePlan,
    SiteError,
)
from hf_share.masks import keep_mask
from hf_share.modules import linear_weight
from hf_share.sites import resolve, sites
from hf_share.train.elastic import choose_trained


Q = tuple(f"layers.{i}.self_attn.q_proj" for i in range(4))
NLS = {"preset": "nls", "ranks": [2, 3, 4]}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Dense weight (out, in) of every linear in the layers."""
    found = [s for s in sites(model) if s.kind in ("linear", "conv1d") and s.name != "lm_head"]
    return {s.name: linear_weight(resolve(model.base_model, s.module)).detach() for s in found}


def texts(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [zoo.inputs(model, seed=seed, rows=3) for seed in (5, 6)]


def spread(model: nn.Module) -> nn.Module:
    """As if its rules had been trained."""
    gen = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".share." in name or "hf_share_" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return model


def same_zeros(model: nn.Module, pruned: dict[str, torch.Tensor]) -> None:
    now = weights(model)
    assert all(torch.equal(now[name] == 0, W == 0) for name, W in pruned.items())
    assert any(not torch.equal(now[name], W) for name, W in pruned.items())


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("calibrated", [False, True])
def test_what_stays_has_the_highest_scores_of_its_row(sparsity, calibrated):
    torch.manual_seed(0)
    W, x = torch.randn(6, 30), torch.randn(40, 30) * torch.rand(30)
    kept = keep_mask(W, sparsity, x.square().mean(0) if calibrated else None)
    score = W.abs() * (x.norm(dim=0) if calibrated else 1)
    assert ((~kept).sum(1) == round(30 * sparsity)).all()
    for row, stays in zip(score, kept, strict=True):
        assert not stays.logical_not().any() or row[~stays].max() <= row[stays].min()


def test_equal_scores_are_cut_to_the_share_that_was_asked():
    assert keep_mask(torch.zeros(3, 8), 0.5).sum(1).tolist() == [4, 4, 4]
    W = torch.tensor([[0.0, 5.0, 0.0, 4.0, 3.0, 2.0]])
    kept = keep_mask(W, 0.5)
    assert kept.tolist() == [[False, True, False, True, True, False]], "zeros that were there go first"


@pytest.mark.parametrize("pattern, stay, of", [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_a_pattern_keeps_n_of_every_m_neighbours(pattern, stay, of):
    torch.manual_seed(0)
    W = torch.randn(5, 24)
    kept = keep_mask(W, 1 - stay / of, pattern=pattern).unflatten(1, (-1, of))
    assert (kept.sum(-1) == stay).all()
    groups = W.abs().unflatten(1, (-1, of))
    assert torch.equal(kept, groups >= groups.sort(descending=True).values[..., stay - 1 : stay])


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5"])
def test_pruning_in_place(arch):
    model = zoo.build(arch)
    before, objects = copy.deepcopy(model), [id(p) for p in model.parameters()]
    report = hf_share.prune(model, 0.25)
    assert set(report) == set(weights(model)) and set(report.values()) == {0.25}
    assert [id(p) for p in model.parameters()] == objects
    for name, W in weights(model).items():
        dense = weights(before)[name]
        assert torch.equal(W, dense * keep_mask(dense, 0.25))
    others = {n: p for n, p in model.named_parameters() if p.dim() == 1 or "emb" in n or "head" in n}
    assert others and all(torch.equal(p, before.get_parameter(n)) for n, p in others.items())


def test_wanda_is_by_the_inputs_of_the_text():
    model, seen = zoo.build("llama"), []
    dense, module = copy.deepcopy(model), model.model.layers[2].mlp.down_proj
    hook = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    for batch in texts(model):
        zoo.logits(model, **batch)
    hook.remove()
    hf_share.prune(model, 0.5, calibration=texts(model), target_modules=["down_proj"])
    W = dense.model.layers[2].mlp.down_proj.weight
    kept = keep_mask(W, 0.5, torch.cat(seen).square().mean(0))
    assert torch.equal(module.weight, W * kept) and not torch.equal(kept, keep_mask(W, 0.5))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, dense.model.layers[0].mlp.up_proj.weight)


def test_a_part_of_a_fused_weight_is_pruned_alone():
    model = zoo.build("gpt2")
    dense = weights(copy.deepcopy(model))
    assert set(hf_share.prune(model, 0.5, target_modules=["c_attn:v"]).values()) == {0.5}
    W, own = weights(model)["h.1.attn.c_attn"], dense["h.1.attn.c_attn"]
    assert torch.equal(W[:64], own[:64]) and torch.equal(W[64:], own[64:] * keep_mask(own[64:], 0.5))


@pytest.mark.parametrize("how", ["prune", "share"])
def test_a_tied_weight_is_pruned_once_for_the_inputs_of_all_its_visits(how):
    model = zoo.build("llama")
    step = FoldConfig(group_size=2)
    nls = ElasticConfig(**NLS, sparsity=0.5, target_modules=["down_proj"])
    if how == "prune":
        hf_share.share(model, step)
        report = hf_share.prune(model, 0.5, calibration=texts(model), target_modules=["down_proj"])
        assert len(report) == 4 and set(report.values()) == {0.5}
    else:
        hf_share.share(model, ShareConfig(methods=[step, nls]), calibration=texts(model))
    layers = model.model.layers
    assert layers[0].mlp.down_proj.weight is layers[1].mlp.down_proj.weight
    assert ((layers[1].mlp.down_proj.weight == 0).sum(1) == 24).all()
    assert pointers(model) == pointers(hf_share.share(zoo.build("llama"), step))


@pytest.mark.parametrize(
    "args, error, message",
    [
        ({"sparsity": 1.0}, ConfigError, "0 <= sparsity < 1"),
        ({"sparsity": True}, ConfigError, "sparsity is True"),
        ({"pattern": "4:2"}, ConfigError, "such as '2:4' fits"),
        ({"pattern": "1:4"}, ConfigError, "'1:4' is of sparsity 0.75, not 0.5"),
        ({"pattern": "16:32"}, ConfigError, "layers.0.mlp.down_proj' has 48 inputs"),
        ({"target_modules": ["q_prj"]}, SiteError, "did you mean"),
        ({"calibration": []}, ConfigError, "calibration is empty"),
        ({"calibration": [{"input_ids": torch.full((1, 4), 10_000)}]}, IndexError, "out of range"),
    ],
)
def test_what_cannot_be_pruned_is_left_as_it_was(args, error, message):
    model = zoo.build("llama")
    before = zoo.logits(model)
    with pytest.raises(error, match=message):
        hf_share.prune(model, **args)
    assert zoo.logits(model).equal(before)


def test_models_with_rules_or_adapters_are_pruned_before(tmp_path):
    lora = hf_share.ShareLoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="carries adapters"):
        hf_share.prune(get_peft_model(zoo.build("llama"), lora))
    with pytest.raises(Refused, match="q_proj': its weight cannot be pruned, since rules make or change it"):
        hf_share.prune(hf_share.share(zoo.build("llama"), lora))
    with pytest.raises(Refused, match="quantised"):
        hf_share.prune(quantised_base("nf4", tmp_path))
    with torch.device("meta"):
        shapes = type(zoo.build("llama"))(zoo.build("llama").config)
    with pytest.raises(Refused, match="meta device"):
        hf_share.prune(shapes)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "phi3"])
@pytest.mark.parametrize("how", ["magnitude", "wanda", "2:4"])
def test_a_pruned_elastic_model(arch, how, tmp_path):
    """Pruned as `prune` does, exact at start, its choices by hand, saved, and as sparse when it is plain."""
    plain = zoo.build(arch)
    text = texts(plain) if how == "wanda" else None
    pattern = "2:4" if how == "2:4" else None
    config = ElasticConfig(**NLS, sparsity=0.5, pattern=pattern)
    model = hf_share.share(copy.deepcopy(plain), config, calibration=text)
    hf_share.prune(plain, 0.5, calibration=text, pattern=pattern)
    pruned = weights(plain)
    assert all(((W == 0).sum(1) == W.shape[1] // 2).all() for W in pruned.values())
    assert all(W.equal(pruned[name]) for name, W in weights(model).items())
    assert zoo.logits(model).equal(zoo.logits(plain))
    step = model._hf_share.plan.generates[0]
    assert step.rule == "sparse_delta" and step.args["sparsity"] == 0.5
    assert step.args.get("mask", "magnitude") == ("wanda" if text else "magnitude")

    spread(model)
    name = next(iter(pruned))
    hf_share.choose(model, rank={name: 3})
    share = resolve(model.base_model, name).share
    made = share.weight(pruned[name]) + pruned[name]
    delta = 2.0 * share.B[:, :3] @ share.A[:3] * (pruned[name] != 0)
    torch.testing.assert_close(made, pruned[name] + delta)
    out = zoo.logits(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert zoo.logits(again).equal(out)
    for rank in (2, None):
        with hf_share.chosen(again, rank=rank):
            wanted, dense = zoo.logits(again), hf_share.materialize(copy.deepcopy(again))
        torch.testing.assert_close(zoo.logits(dense), wanted)
        same_zeros(dense, pruned)


def test_only_the_factors_train_and_no_zero_is_filled(tmp_path):
    model = hf_share.share(zoo.build("llama"), ElasticConfig(**NLS, sparsity=0.5))
    pruned = copy.deepcopy(weights(model))
    choose_trained(model)
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trained} == {"A", "B"}
    trainer(model, tmp_path, steps=3).train()
    assert all(W.equal(pruned[name]) for name, W in weights(model).items())
    assert all(not torch.equal(model.get_parameter(n), p) for n, p in trained.items())
    same_zeros(hf_share.materialize(model.cpu()), pruned)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_a_sparse_adapter_on_a_pruned_base(arch, tmp_path):
    plain = zoo.build(arch)
    hf_share.prune(plain)
    pruned, before = copy.deepcopy(weights(plain)), zoo.logits(plain)
    model = get_peft_model(copy.deepcopy(plain), ElasticConfig(**NLS, sparse=True))
    assert zoo.logits(model).equal(before)
    names = {n.rpartition("hf_share_")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"A.default", "B.default"}
    hf_share.choose(spread(model), rank=3)
    out = zoo.logits(model)
    model.save_pretrained(tmp_path)
    assert zoo.logits(PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)).equal(out)
    with model.disable_adapter():
        assert zoo.logits(model).equal(before)
    with pytest.raises(Refused, match="'sparse_delta' is not low-rank, so it is no LoRA; merge"):
        hf_share.to_lora(model)
    small = hf_share.compressed(copy.deepcopy(model))
    torch.testing.assert_close(zoo.logits(small), out)
    merged = model.merge_and_unload()
    torch.testing.assert_close(zoo.logits(merged), out)
    same_zeros(merged, pruned)


def test_an_adapter_does_not_prune_its_base():
    model = zoo.build("llama")
    before = zoo.logits(model)
    fold = FoldConfig(group_size=2)
    for config in (
        ElasticConfig(**NLS, sparsity=0.5),
        ShareConfig(methods=[fold, ElasticConfig(**NLS, sparsity=0.5)]),
    ):
        with pytest.raises(Refused, match="would prune the base.*hf_share.prune.*save the base first"):
            get_peft_model(model, config)
        assert zoo.logits(model).equal(before)


def test_a_quantised_weight_has_no_zeros_to_keep(tmp_path):
    model = get_peft_model(quantised_base("nf4", tmp_path), ElasticConfig(**NLS, sparse=True))
    with pytest.raises(Refused, match="function of the weight, which is quantised"):
        zoo.logits(model)


@pytest.mark.parametrize(
    "config, error, message",
    [
        (ElasticConfig(**NLS, sparsity=0.5, mask="wanda"), ConfigError, "needs text"),
        (ElasticConfig(**NLS, sparsity=0.5, pattern="16:32"), PlanError, "has 48 inputs"),
        (
            ShareConfig(methods=[MasaConfig(num_atoms=2), ElasticConfig(**NLS, sparsity=0.5)]),
            Refused,
            "cannot set a weight that another rule makes",
        ),
    ],
)
def test_an_error_leaves_the_dense_model(config, error, message):
    model = zoo.build("llama")
    before = zoo.logits(model)
    with pytest.raises(error, match=message):
        hf_share.share(model, config)
    assert zoo.logits(model).equal(before) and not hasattr(model, "_hf_share")


@pytest.mark.parametrize(
    "args, message",
    [
        ({"sparsity": 0.5}, "a code of few bits keeps no exact zero"),
        ({"sparse": True}, "a code of few bits keeps no exact zero"),
        ({**NLS, "sparsity": 0.5, "sparse": False}, "call hf_share.prune"),
        ({**NLS, "sparsity": -0.1}, "0 <= sparsity < 1"),
        ({**NLS, "sparsity": 0.5, "mask": "wnda"}, "did you mean 'wanda'"),
        ({**NLS, "mask": "wanda"}, "no sparsity to reach"),
        ({**NLS, "pattern": "2:4"}, "is of sparsity 0.5, not 0"),
        ({**NLS, "sparse": 1}, "True or False fits"),
    ],
)
def test_configs_that_do_not_fit(args, message):
    with pytest.raises(ConfigError, match=message):
        ElasticConfig(**args)


def test_what_pruning_took_may_be_fitted_by_a_rule_on_top():
    """Pruned values are new tensors: what a later rule takes for the source's weights is what they were."""
    plain = zoo.build("llama")
    steps = (
        Generate(rule="sparse_delta", sites=Q, group="sparse", args={"r": 2, "sparsity": 0.5}),
        Generate(rule="low_rank", sites=Q, group="rest", args={"r": 32, "init": "svd"}),
    )
    model = hf_share.share(copy.deepcopy(plain), SharePlan(steps))
    assert (weights(model)[Q[0]] == 0).float().mean() == 0.5
    torch.testing.assert_close(zoo.logits(model), zoo.logits(plain))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Methods after a structural one look at the model that it will leave, before anything is changed."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

import hf_share
from hf_share import Arrange, FoldConfig, MasaConfig, ShareConfig, SharePlan, SvdConfig
from hf_share.sites import stacks
from hf_share.view import view


REMOVE, TIE = FoldConfig(remove=[2]), FoldConfig(group_size=2)
AFTER = {
    "ratio": (REMOVE, MasaConfig(ratio=0.6)),
    "drift": (REMOVE, MasaConfig(groups="kl", num_atoms=1)),
    "svd": (REMOVE, SvdConfig(ratio=0.6)),
    "drift of tied layers": (TIE, MasaConfig(groups="kl", num_atoms=1)),
}


def llama() -> nn.Module:
    return zoo.build("llama", num_hidden_layers=6)


def tokens(model: nn.Module) -> list[torch.Tensor]:
    return [zoo.inputs(model, seed=i)["input_ids"] for i in range(3)]


@pytest.mark.parametrize("arch", zoo.MODELS)
def test_a_view_computes_what_the_arranged_model_will(arch):
    model = zoo.build(arch)
    path, stack = next(iter(stacks(model).items()))
    step = Arrange(stack=path, order=(0, 1, 1, 3), sources=(0, 1, 2, 3), private=stack.norms)
    found, before = view(model, (step,)).eval(), zoo.logits(model)
    assert {id(p) for p in found.parameters()} <= {id(p) for p in model.parameters()}, "no weight is copied"
    inputs = zoo.inputs(model)
    now = zoo.logits(found, **inputs)
    assert torch.equal(zoo.logits(model), before)
    assert torch.equal(now, zoo.logits(hf_share.share(model, SharePlan((step,))), **inputs))


def test_what_is_not_there_yet_has_shapes_alone():
    model, order = zoo.build("llama"), {"stack": "layers", "order": (0, 0, 2, 3), "sources": (0, 1, 2, 3)}
    assert all(p.is_meta for p in view(model, (Arrange(**order, merge="mean"),)).parameters())
    gone = Arrange(stack="layers", order=(0, 1, None, 3), roles=("mlp",))
    assert all(p.is_meta for p in view(model, (gone,)).parameters())
    hf_share.share(model, hf_share.ShareLoraConfig(r=2))  # a fresh build would not have its deltas
    assert all(p.is_meta for p in view(model, (Arrange(**order),)).parameters())


@pytest.mark.parametrize("name", AFTER)
def test_one_config_measures_what_two_calls_measure(name):
    first, second = AFTER[name]
    model = llama()
    texts, before = tokens(model), zoo.logits(model)
    plan = ShareConfig(methods=[first, second]).resolve(model, texts)
    assert torch.equal(zoo.logits(model), before)
    assert plan.generates == second.resolve(hf_share.share(model, first), texts).generates


def error(model: nn.Module, source: nn.Module) -> float:
    """Of every attention weight, to the layer that its depth stands for."""
    dense, weights = hf_share.materialize(model).state_dict(), source.state_dict()
    return sum(float((W - weights[n]).square().sum()) for n, W in dense.items() if "self_attn" in n)


def test_one_config_fits_to_the_source_layers_and_two_calls_to_the_folded():
    source = llama()
    texts, masa = tokens(source), MasaConfig(num_atoms=2, residual_rank=4)
    one = hf_share.share(copy.deepcopy(source), ShareConfig(methods=[TIE, masa]), texts)
    two = hf_share.share(hf_share.share(copy.deepcopy(source), TIE), masa, texts)
    assert error(one, source) < 0.8 * error(two, source)

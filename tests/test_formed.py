# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Weights made of atoms: when they are formed and kept, how they start, and what is left after training."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

import hf_share
from hf_share import ConfigError, MasaConfig, SharePlan
from hf_share.atoms import Atoms
from hf_share.modules import Share, SharedLinear


@pytest.fixture
def formed(monkeypatch) -> list[int]:
    """Counts how often a weight is formed of atoms."""
    count = [0]
    form = Atoms.form

    def counted(self, t):
        count[0] += 1
        return form(self, t)

    monkeypatch.setattr(Atoms, "form", counted)
    return count


@pytest.mark.parametrize("rank", [None, 2])
def test_modes_compute_the_same_and_form_as_they_say(formed, rank):
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=2, residual_rank=rank)).eval()
    streamed = zoo.logits(model)
    formed[0] = 0
    for mode, first, again in (
        ({"mode": "streamed"}, 16, 16),
        ({"mode": "streamed", "layers": 3}, 16, 4),
        ({"mode": "materialised"}, 16, 0),
    ):
        hf_share.form_weights(model, **mode)
        for times in (first, again, again):
            torch.testing.assert_close(zoo.logits(model), streamed)
            assert formed[0] == times, mode
            formed[0] = 0
    model(**zoo.inputs(model)).logits.sum().backward()
    assert formed[0] == 16, "in the graph where a gradient is wanted"


def test_generation_forms_no_kept_weight_again(formed):
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=2)).eval()
    ids = zoo.inputs(model)["input_ids"]
    hf_share.form_weights(model, "streamed", layers=4)
    formed[0] = 0
    model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert formed[0] == 16
    hf_share.form_weights(model, "streamed")
    formed[0] = 0
    model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert formed[0] == 5 * 16


def test_a_kept_weight_follows_what_it_is_made_of():
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=2, residual_rank=2)).eval()
    hf_share.form_weights(model, "materialised")
    before = zoo.logits(model)
    for name in ("shared_stores.masa_layers_self_attn_q_proj.D", "layers.1.self_attn.v_proj.share.B"):
        with torch.no_grad():
            model.model.get_parameter(name).mul_(1.5)
        after, twin = zoo.logits(model), copy.deepcopy(model)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, zoo.logits(hf_share.form_weights(twin)))
        before = after


def test_modes_compile_to_one_graph_and_are_checked():
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=2)).eval()
    before = zoo.logits(model)
    for mode in ("streamed", "materialised"):
        torch._dynamo.reset()
        compiled = torch.compile(hf_share.form_weights(model, mode), fullgraph=True, backend="eager")
        torch.testing.assert_close(zoo.logits(compiled, **zoo.inputs(model)), before)
    with pytest.raises(ConfigError, match="did you mean 'streamed'"):
        hf_share.form_weights(model, "streamd")
    with pytest.raises(ConfigError, match="leave out layers"):
        hf_share.form_weights(model, "materialised", layers=2)
    with pytest.raises(ConfigError, match="no rule of this model makes a weight"):
        hf_share.form_weights(zoo.build("llama"))


def test_atoms_start_with_the_models_spread_and_coefficients_of_length_one():
    model = zoo.build("llama", initializer_range=0.05)
    torch.manual_seed(0)
    hf_share.share(model, MasaConfig(init="random", num_atoms=3))
    named = dict(model.named_parameters())
    D = named["model.shared_stores.masa_layers_self_attn_q_proj.D"]
    assert D.std().item() == pytest.approx(0.05, rel=0.1)
    lengths = [v.norm().item() for n, v in named.items() if n.endswith("share.c")]
    assert lengths == pytest.approx([1.0] * 16)
    torch.manual_seed(0)
    model = zoo.build("llama", initializer_range=0.05)
    mlp = hf_share.share(model, MasaConfig(coef_param="mlp", num_atoms=3))
    stds = [m.weight.std().item() for m in mlp.modules() if isinstance(m, SharedLinear)]
    assert all(0.025 < std < 0.1 for std in stds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_settle_leaves_coefficients_alone(dtype, tmp_path):
    model = hf_share.share(zoo.build("llama").to(dtype), MasaConfig(coef_param="mlp", num_atoms=2))
    before = zoo.logits(model)
    count = sum(p.numel() for p in model.parameters())
    assert hf_share.settle(model) is model
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(zoo.logits(model), before, **close)
    names = {name.rpartition(".")[2] for name in stored_names(model)}
    assert names == {"D", "c"}
    per_type = 2 * (64 * 64 + 64) + 2 * 64 + 2 + 4 * 64 - 4 * 2
    assert count - sum(p.numel() for p in model.parameters()) == 4 * per_type
    plan = model._hf_share.plan
    assert all("coef" not in step.args for step in plan.generates)
    assert SharePlan.from_dict(model.config.quantization_config.plan) == plan
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert zoo.logits(loaded.to(dtype)).equal(zoo.logits(model))  # `to` also casts the rotary table
    loss = model(**zoo.inputs(model), labels=zoo.inputs(model)["input_ids"]).loss
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".share." in n)
    assert hf_share.settle(model)._hf_share.plan == plan, "again is harmless"
    assert hf_share.settle(zoo.build("gpt2")) is not None


def stored_names(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_parameters() if ".share." in n or "shared_stores" in n]


def test_sums_are_taken_in_fp32_under_autocast():
    model = hf_share.share(zoo.build("llama"), MasaConfig(num_atoms=2))
    share = next(m for m in model.modules() if isinstance(m, Share))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = share.tensors(share.bindings[0])["W"]
    assert inside.dtype == torch.float32
    assert inside.equal(share.tensors(share.bindings[0])["W"])

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of kind `map`, a function of the module's own weight: exact at start, after nothing but a replace,
below what is added, in checkpoints, adapters and over quantised weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

import atoms  # noqa: F401 - registers test_atoms and test_squash
import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import hf_share
from hf_share import Generate, PlanError, Refused, ShareConfig, SharePlan
from hf_share.modules import SharedLinear
from hf_share.sites import resolve, sites


Q = tuple(f"layers.{i}.self_attn.q_proj" for i in range(4))
ADD = Generate(rule="low_rank", sites=Q, group="add", args={"r": 2, "init": "random"})
SCALE = Generate(rule="scale", sites=Q, group="scale")
SQUASH = Generate(rule="test_squash", sites=Q, group="squash")
ATOMS = Generate(rule="test_atoms", sites=Q, group="atoms", args={"atoms": 2})


def everywhere(model: nn.Module, parts: bool = False) -> Generate:
    """Scales on every linear weight, or on every part of a fused one."""
    found = [s for s in sites(model, parts=parts) if s.kind in ("linear", "conv1d") and (s.part or not parts)]
    return Generate(rule="scale", sites=tuple(s.name for s in found), group="scale")


def spread(model: nn.Module, only: str = "") -> nn.Module:
    gen = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if (".share." in name or "hf_share_" in name) and only in name:
                p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "arch, parts", [("llama", False), ("qwen2", False), ("gpt2", False), ("gpt2", True), ("neox", True)]
)
def test_scales_of_one_change_no_bit(arch, parts, dtype):
    """Also under biases, whose output is not `y - b + b`."""
    plain = zoo.build(arch).to(dtype)
    step = everywhere(plain, parts)
    before = zoo.logits(plain)
    shared = hf_share.share(copy.deepcopy(plain), SharePlan((step,)))
    assert zoo.logits(shared).equal(before)
    adapted = get_peft_model(copy.deepcopy(plain), ShareConfig(plan=SharePlan((step,))))
    assert zoo.logits(adapted).equal(before)
    assert not zoo.logits(spread(shared)).equal(before) and zoo.logits(shared).dtype == dtype


def test_a_scale_leaves_the_bias_alone():
    plain = zoo.build("qwen2")
    model = spread(hf_share.share(copy.deepcopy(plain), SharePlan((SCALE,))))
    mine, own = resolve(model.base_model, Q[1]), resolve(plain.base_model, Q[1])
    x = torch.randn(3, own.in_features)
    y = x @ (mine.share.s[:, None] * own.weight).T + own.bias
    torch.testing.assert_close(mine(x), y)
    gradient = torch.autograd.grad(mine(x).sum(), (mine.share.s, mine.bias, mine.weight))
    wanted = torch.autograd.grad(y.sum(), (mine.share.s, own.bias, own.weight))
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    "steps, message",
    [
        ((ADD, SCALE), "group 'scale' would map the weight that group 'add' adds to; map it first"),
        ((SCALE, SQUASH), "'layers.0.self_attn.q_proj' is mapped by two groups, 'scale' and 'squash'"),
        ((SCALE, ATOMS), "group 'atoms' would replace the weight that group 'scale' maps; replace it first"),
    ],
)
def test_a_weight_is_made_then_mapped_then_added_to(steps, message):
    model = zoo.build("llama")
    before = zoo.logits(model)
    with pytest.raises(PlanError, match=message):
        hf_share.share(model, SharePlan(steps))
    assert zoo.logits(model).equal(before)
    hf_share.share(model, SharePlan(steps[:1]))
    with pytest.raises(PlanError, match=message):
        hf_share.share(model, SharePlan(steps[1:]))
    with pytest.raises(PlanError, match=message):
        get_peft_model(model, ShareConfig(plan=SharePlan(steps[1:])))


def test_two_parts_are_mapped_each_and_a_whole_only_once():
    parts = [Generate(rule="scale", sites=(f"h.0.attn.c_attn:{p}",), group=p) for p in "qv"]
    whole = Generate(rule="scale", sites=("h.0.attn.c_attn",), group="whole")
    assert hf_share.share(zoo.build("gpt2"), SharePlan(tuple(parts)))
    for steps in ((whole, parts[0]), (parts[0], whole)):
        with pytest.raises(PlanError, match="is mapped by two groups"):
            hf_share.share(zoo.build("gpt2"), SharePlan(steps))


@pytest.mark.parametrize("step", [SCALE, SQUASH], ids=["scale", "squash"])
@pytest.mark.parametrize("over", ["own", "made"])
@torch.no_grad()
def test_map_and_add_in_one_model(over, step, tmp_path):
    """f(W) + delta, W the module's own or one that a rule makes, by hand; saved, reloaded and made plain."""
    plain = zoo.build("llama")
    steps = (*((ATOMS,) if over == "made" else ()), step, ADD)
    model = spread(hf_share.share(copy.deepcopy(plain), SharePlan(steps)))
    module = resolve(model.base_model, Q[2])
    assert isinstance(module, SharedLinear) == (over == "made")
    tensors = {b.group: module.share.tensors(b) for b in module.share.bindings}
    bindings = {b.group: b for b in module.share.bindings}
    W = bindings["atoms"].dense(tensors["atoms"]) if over == "made" else module.weight
    t = tensors[step.group]
    mapped = t["s"][:, None] * W if step is SCALE else torch.tanh(t["c"] * W)
    whole = mapped + bindings["add"].dense(tensors["add"])
    x = torch.randn(2, 3, module.in_features)
    torch.testing.assert_close(module(x), x @ whole.T)
    if over == "made":
        torch.testing.assert_close(module.weight, whole)
    out = zoo.logits(model)
    model.save_pretrained(tmp_path)
    assert zoo.logits(type(model).from_pretrained(tmp_path)).equal(out)
    made = hf_share.materialize(model)
    torch.testing.assert_close(resolve(made.base_model, Q[2]).weight, whole)
    torch.testing.assert_close(zoo.logits(made), out)
    description = hf_share.describe(model)
    assert description.used == sum(p.numel() for p in plain.parameters()) + sum(
        g.used for g in description.groups if g.name != "atoms"
    )


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_adapters_that_map(arch, tmp_path):
    plain = zoo.build(arch)
    first = next(s for s in sites(plain) if s.kind in ("linear", "conv1d")).role
    names = tuple(s.name for s in sites(plain) if s.role == first)
    plan = SharePlan(
        (
            Generate(rule="scale", sites=names, group="scale"),
            Generate(rule="low_rank", sites=names, group="add", args={"r": 2, "init": "random"}),
        )
    )
    before = zoo.logits(plain)
    model = spread(get_peft_model(copy.deepcopy(plain), ShareConfig(plan=plan)))
    out = zoo.logits(model)
    model.save_pretrained(tmp_path)
    assert zoo.logits(PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)).equal(out)
    with model.disable_adapter():
        assert zoo.logits(model).equal(before)
    model.merge_adapter()
    torch.testing.assert_close(zoo.logits(model), out)
    model.unmerge_adapter()
    assert zoo.logits(model).equal(out)

    batch = zoo.inputs(model.eval())
    with torch.no_grad():
        mixed = model(**batch, adapter_names=["default", "__base__"]).logits
    torch.testing.assert_close(mixed[0], out[0])
    torch.testing.assert_close(mixed[1], before[1])

    model.add_adapter("other", ShareConfig(plan=plan))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(Refused, match="adapters 'default' and 'other' are both functions of the weight"):
        zoo.logits(model)
    model.set_adapter("default")
    compact = hf_share.compressed(copy.deepcopy(model), "default")
    torch.testing.assert_close(zoo.logits(compact), out)
    torch.testing.assert_close(zoo.logits(model.merge_and_unload()), out)


def test_merging_into_a_mapped_base_is_refused():
    base = spread(hf_share.share(zoo.build("llama"), SharePlan((SCALE,))))
    lora = hf_share.ShareLoraConfig(r=2, target_modules=["q_proj"], init_weights=False)
    model = get_peft_model(base, lora)
    out = zoo.logits(model)
    with pytest.raises(Refused, match="rule 'scale' of the base is a function of the weight"):
        model.merge_adapter()
    assert zoo.logits(model).equal(out)
    torch.testing.assert_close(zoo.logits(hf_share.compressed(model)), out)


def test_scales_are_no_lora():
    model = get_peft_model(zoo.build("llama"), ShareConfig(plan=SharePlan((SCALE,))))
    with pytest.raises(Refused, match="rule 'scale' is not low-rank"):
        hf_share.to_lora(model)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_offloaded_weights(arch, tmp_path):
    """By the time of the hook a bias has been offloaded again; the product is exact all the same."""

    def offloaded(step: Generate, folder: Path) -> nn.Module:
        spread(hf_share.share(zoo.build(arch), SharePlan((step,)))).save_pretrained(folder)
        places = {"model": "disk", "lm_head": "cpu"}
        return AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=folder / "off")

    again = offloaded(SCALE, tmp_path / "scale")
    assert resolve(again.base_model, Q[0]).weight.is_meta
    assert zoo.logits(again).equal(zoo.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "scale")))
    with pytest.raises(Refused, match="quantised or offloaded"):
        zoo.logits(offloaded(SQUASH, tmp_path / "squash"))

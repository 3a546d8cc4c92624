# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Learnable gates against their formula, the constraint on FLOPs, and a layer that does nothing; FoldConfig
by gates and by block influence; rank correlation.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers as tf
import zoo
from torch import nn

import hf_share
from hf_share import ConfigError, FoldConfig, SharePlan, block_influence, layer_gates, rank_correlation
from hf_share.gates import _gated, flops, gate
from hf_share.sites import stacks


def text(rows: int = 2, batches: int = 3, length: int = 12) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return [torch.randint(3, zoo.VOCAB, (rows, length), generator=gen) for _ in range(batches)]


def idle(model: nn.Module, depth: int) -> nn.Module:
    """Layer `depth` adds nothing to the residual stream; of what the others say, the model is very sure."""
    layer = model.model.layers[depth]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.mul_(40.0)
    return model


def strong(arch: str = "llama") -> nn.Module:
    """Layers that turn their input much more than those of a fresh model."""
    model = zoo.build(arch)
    with torch.no_grad():
        for layer in stacks(model)["layers"].layers:
            for p in layer.parameters():
                if p.dim() == 2:
                    p.mul_(6.0)
    return model


@torch.no_grad()
def own_words(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Text with what the model itself says as labels, so that every layer that does something is missed."""
    found = []
    for ids in text(rows=4):
        said = model(input_ids=ids).logits.argmax(-1)
        found.append({"input_ids": ids, "labels": torch.cat([ids[:, :1], said[:, :-1]], 1)})
    return found


def test_the_gate_is_its_formula():
    phi = torch.tensor([0.0, 0.01, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
    eps = 1e-3
    g = gate(phi, eps)
    torch.testing.assert_close(g.tolist(), [p**2 / (p**2 + eps) for p in phi.tolist()])
    (gradient,) = torch.autograd.grad(g.sum(), phi)
    torch.testing.assert_close(gradient.tolist(), [2 * p * eps / (p**2 + eps) ** 2 for p in phi.tolist()])
    assert g[0] == 0 and torch.autograd.gradcheck(lambda p: gate(p, eps), phi)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert"])
def test_gates_of_one_leave_the_model_and_gates_of_nought_remove_a_layer(arch):
    model = zoo.build(arch)
    stack = next(iter(stacks(model).values()))
    for removed in (None, 2):
        with _gated(stack) as gates:
            gates[:] = torch.tensor([float(i != removed) for i in range(4)]).unbind()
            out = zoo.logits(model)
        short = copy.deepcopy(model)
        if removed is not None:
            hf_share.share(short, FoldConfig(remove=[removed]))
        torch.testing.assert_close(out, zoo.logits(short))
    assert not any(layer._forward_hooks for layer in stack.layers)


def test_flops_are_those_of_the_weights():
    model = zoo.build("llama")
    stack = stacks(model)["layers"]
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 480, bias=False)
    linears = ([m for m in layer.modules() if isinstance(m, nn.Linear)] for layer in stack.layers)
    sizes = [sum(m.weight.numel() for m in found) for found in linears]
    torch.testing.assert_close(flops(model, stack), torch.tensor(sizes) / sum(sizes))


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_constraint_pulls_the_gates_to_the_target(rate):
    gates = layer_gates(strong(), text(), rate, steps=200, lr=0.1, flops_weight=300.0)
    assert sum(gates) / 4 == pytest.approx(1 - rate, abs=0.05)
    free = layer_gates(strong(), text(), rate, steps=20, flops_weight=1e-6)
    assert sum(free) > sum(gates)


@pytest.mark.parametrize("importance", ["gate", "bi"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_layer_that_does_nothing_goes_first(importance, depth):
    model = idle(strong(), depth)
    before = zoo.logits(model)
    config = FoldConfig(removal_rate=0.25, importance=importance)
    plan = config.resolve(model, own_words(model))
    step = plan.arranges[0]
    assert step.order == tuple(d for d in range(4) if d != depth)
    assert step.scored_by == importance and len(step.scores) == 4
    assert min(range(4), key=step.scores.__getitem__) == depth
    assert SharePlan.from_json(plan.to_json()) == plan and f"scored_by={importance}" in repr(plan)
    torch.testing.assert_close(zoo.logits(hf_share.share(model, plan)), before)


@pytest.mark.parametrize("layers, least", [(4, 0.25), (5, 0.2), (6, 0.167), (7, 0.143)])
def test_a_rate_that_removes_no_layer_is_refused(layers, least):
    model, texts = zoo.build("llama", num_hidden_layers=layers), text()
    with pytest.raises(ConfigError, match=f"removal_rate=0.1 of {layers} layers.*from {least} on, one is$"):
        hf_share.share(model, FoldConfig(removal_rate=0.1, importance="gate", group_size=2), texts)
    hf_share.share(model, FoldConfig(removal_rate=least), texts)
    assert model.config.num_hidden_layers == layers - 1


def test_removal_follows_the_smallest_gates(monkeypatch):
    asked = {}

    def fixed(model, calibration, rate, stack, **kwargs):
        asked.update(kwargs, rate=rate, stack=stack)
        return [0.12345678, 0.1, 1.0, 0.1]

    monkeypatch.setattr("hf_share.methods.fold.layer_gates", fixed)
    config = FoldConfig(
        removal_rate=0.5, importance="gate", gate_steps=7, gate_lr=0.4, epsilon_schedule=(0.5, 0.01)
    )
    step = config.resolve(zoo.build("llama"), text()).arranges[0]
    assert step.order == (0, 2) and step.scores == (0.123457, 0.1, 1.0, 0.1)
    numbers = {"steps": 7, "lr": 0.4, "epsilon_schedule": [0.5, 0.01], "flops_weight": config.flops_weight}
    assert asked == {**numbers, "rate": 0.5, "stack": "layers"}


def test_the_owner_of_the_position_bias_stays():
    model = zoo.build("t5")
    batch = [{"input_ids": ids, "labels": ids.flip(1)} for ids in text()]
    gates = layer_gates(model, batch, 0.5, "encoder.block", steps=30, flops_weight=1000.0)
    assert gates[0] == 1.0 and sum(gates) < 3.2
    config = FoldConfig(removal_rate=0.75, importance="gate", gate_steps=5, stack="encoder.block")
    assert config.resolve(model, batch).arranges[0].order == (0,)


def state(model: nn.Module):
    named = list(model.named_parameters())
    values = {n: t.clone() for n, t in model.state_dict().items()}
    return values, [(n, p.requires_grad, p.grad) for n, p in named], [m.training for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = strong().train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before, seed = state(model), torch.get_rng_state()
    if fails:
        with pytest.raises(Exception, match="index out of range"):
            layer_gates(model, [*text(), torch.full((1, 4), 10**6)], 0.25, steps=9)
    else:
        with torch.no_grad():  # it learns all the same
            gates = layer_gates(model, text(), 0.25, steps=9)
        assert len(set(gates)) == 4
    after = state(model)
    assert all(torch.equal(v, after[0][n]) for n, v in before[0].items())
    assert before[1:] == after[1:] and torch.equal(seed, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_same_text_gives_the_same_gates():
    one, two = (layer_gates(strong(), text(), 0.25, steps=12) for _ in range(2))
    assert one == two != layer_gates(strong(), text()[:1], 0.25, steps=12)


@pytest.mark.parametrize("arch", ["bert", "roberta", "t5"])
def test_models_that_text_alone_does_not_teach_want_labels(arch):
    model = zoo.build(arch)
    path = next(iter(stacks(model)))
    with pytest.raises(ConfigError, match=f"{type(model).__name__} is no causal language model.*labels"):
        layer_gates(model, text(), 0.25, path)
    batch = [{"input_ids": ids, "labels": ids.masked_fill(ids % 2 == 0, -100)} for ids in text()]
    assert len(layer_gates(model, batch, 0.25, path, steps=2)) == 4


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ConfigError, match="LlamaModel is no causal language model"):
        layer_gates(zoo.build("llama").model, text(), 0.25)
    with pytest.raises(ConfigError, match="LlamaModel does not take|LlamaModel gives no loss"):
        layer_gates(zoo.build("llama").model, [{"input_ids": i, "labels": i} for i in text()], 0.25)


def test_padding_is_not_learnt_from():
    ids = text(batches=1)[0]
    mask = torch.ones_like(ids)
    mask[:, 9:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    padded = [{"input_ids": ids, "attention_mask": mask}]
    wanted = [{"input_ids": ids, "attention_mask": mask, "labels": labels}]
    assert layer_gates(strong(), padded, 0.25, steps=5) == layer_gates(strong(), wanted, 0.25, steps=5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"importance": "gates"}, "unknown importance 'gates'; did you mean 'gate'"),
        ({"relax": "lorra"}, "unknown relax 'lorra'; did you mean 'lora'"),
        ({"gate_steps": 0}, "gate_steps is 0"),
        ({"gate_lr": 0.0}, "gate_lr is 0.0; a number above 0"),
        ({"gate_lr": "fast"}, "gate_lr is 'fast'"),
        ({"flops_weight": float("nan")}, "flops_weight is nan"),
        ({"flops_weight": True}, "flops_weight is True"),
        ({"epsilon_schedule": [0.1]}, "epsilon_schedule is .0.1.; the first and the last"),
        ({"epsilon_schedule": [1e-4, 0.1]}, "the last no larger"),
        ({"epsilon_schedule": [0.1, 0.0]}, r"epsilon_schedule\[1\] is 0.0"),
        ({"epsilon_schedule": 0.1}, "epsilon_schedule is 0.1; a list fits"),
        ({"epsilon_schedule": None}, "the first and the last"),
        ({"relax_rank": 0}, "relax_rank is 0"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        FoldConfig(**fields)


def test_a_config_survives_json():
    config = FoldConfig(removal_rate=0.25, importance="gate", epsilon_schedule=(0.2, 0.01), relax="scale")
    written = json.loads(json.dumps(config.to_dict()))
    again = hf_share.ShareConfig(**{k: v for k, v in written.items() if k != "peft_type"})
    assert type(again) is FoldConfig and again.to_dict() == config.to_dict()


@pytest.mark.parametrize("adapter", [False, True])
def test_scores_are_saved_and_read_back(adapter, tmp_path):
    from peft import PeftModel, get_peft_model

    plain = strong()
    config = FoldConfig(removal_rate=0.25, importance="gate", gate_steps=8, group_size=2)
    plan = config.resolve(plain, text())
    if adapter:
        get_peft_model(copy.deepcopy(plain), hf_share.ShareConfig(plan=plan)).save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
        assert loaded.peft_config["default"]._plan == plan
        return
    hf_share.share(copy.deepcopy(plain), config, calibration=text()).save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    found = hf_share.describe(loaded).plan
    assert found is not None and found.source() == plan
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["plan"]["steps"][0][
        "origin"
    ]["scored_by"] == "gate"


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == 1.0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == 0.8  # 1 - 6 * 2 / (4 * 15)
    tied = rank_correlation([1, 1, 2], [5, 6, 7])  # ranks .5 .5 2 and 0 1 2
    assert tied == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    scipy = pytest.importorskip("scipy.stats")
    one, two = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)).round(decimals=1).tolist()
    assert rank_correlation(one, two) == pytest.approx(scipy.spearmanr(one, two).statistic)
    for bad in (([1], [1]), ([1, 2], [1]), ([1, 1], [1, 2])):
        with pytest.raises(ConfigError, match="rank"):
            rank_correlation(*bad)


def test_scores_differ_as_measures_do():
    model = strong()
    bi, gates = block_influence(model, text()), layer_gates(model, text(), 0.25, steps=10)
    assert -1.0 <= rank_correlation(bi, gates) <= 1.0

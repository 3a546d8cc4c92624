# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf_share.quantize`: codes of few bits for weights of a model's own and for what its rules store."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import zoo
from helpers import error_of, run
from peft import get_peft_model

import hf_share
from hf_share import (
    ConfigError,
    ElasticConfig,
    FoldConfig,
    MasaConfig,
    PlanError,
    RecursiveConfig,
    Refused,
    ShareConfig,
    SvdConfig,
)
from hf_share.coded import Coded, CodedDelta
from hf_share.elastic import bindings
from hf_share.modules import SharedLinear
from hf_share.planes import read
from hf_share.rules import step_rule


def texts():
    return list(torch.randint(3, zoo.VOCAB, (2, 2, 16), generator=torch.Generator().manual_seed(5)))


STRUCTURES = {
    "dense": None,
    "svd": SvdConfig(ratio=0.8),
    "masa": MasaConfig(num_atoms=2, residual_rank=2),
    "masa, trained coefficients": MasaConfig(coef_param="mlp", num_atoms=2),
    "fold": FoldConfig(group_size=2),
    "fold with scales": FoldConfig(group_size=2, relax="scale"),
    "relaxed": RecursiveConfig(num_loops=2, lora_rank=4),
    "fold, then masa": ShareConfig(methods=[FoldConfig(remove=[1]), MasaConfig(num_atoms=2)]),
}


def shared(name: str, arch: str = "llama", **more) -> torch.nn.Module:
    torch.manual_seed(0)
    model = zoo.build(arch, **more)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    config = STRUCTURES[name]
    return model if config is None else hf_share.share(model, copy.deepcopy(config), texts())


def matrices(model) -> int:
    """Parameters of two dimensions that are neither embeddings nor the head."""
    left = ("embed", "wte", "wpe", "head")
    return sum(p.dim() > 1 for n, p in model.named_parameters() if not any(part in n for part in left))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_everything_is_coded_saved_and_loaded_exactly(name, arch, tmp_path):
    if arch == "gpt2" and "masa" in name:
        pytest.skip("masa is of separate projections")
    model = shared(name, arch)
    batch = zoo.inputs(model)
    before = zoo.logits(model, **batch)
    assert hf_share.quantize(model, bits=8, group_size=16) is model
    now = zoo.logits(model, **batch)
    assert matrices(model) == 0, "nothing but codes is left of the linear weights"
    assert 0 < (now - before).norm() < 0.05 * before.norm()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(zoo.logits(loaded, **batch), now)
    assert loaded._hf_share.plan == model._hf_share.plan
    plain = zoo.logits(hf_share.materialize(loaded), **batch)
    assert (plain - now).norm() <= 1e-5 * now.norm()


@pytest.mark.parametrize("bits, most", [(3, 0.30), (4, 0.34)])
def test_the_file_has_as_many_bits_as_are_asked_for(bits, most, tmp_path):
    sizes = {}
    for quantized in (False, True):
        model = shared("svd", hidden_size=64, intermediate_size=128, vocab_size=zoo.VOCAB)
        if quantized:
            hf_share.quantize(model, bits=bits, group_size=16)
        model.save_pretrained(tmp_path / str(quantized))
        sizes[quantized] = hf_share.describe(model).bytes
        on_disk = (tmp_path / str(quantized) / "model.safetensors").stat().st_size
        assert 0 <= on_disk - sizes[quantized] < 60_000  # the header
    assert sizes[True] < most * sizes[False]


def test_more_bits_lose_less():
    lost = []
    for bits in (2, 3, 4, 6, 8):
        model = shared("svd")
        batch = zoo.inputs(model)
        before = zoo.logits(model, **batch)
        now = zoo.logits(hf_share.quantize(model, bits, group_size=8), **batch)
        lost.append(float((now - before).norm()))
    assert lost == sorted(lost, reverse=True) and lost[0] > 8 * lost[-1]


def test_neighbours_of_codes_are_numbers_of_one_rank():
    """Columns of B are as large as their singular values; codes of rows of B would mix them."""
    torch.manual_seed(0)
    sizes = torch.logspace(0, -3, 16)
    stored = {"A": torch.randn(16, 64) * sizes[:, None], "B": torch.randn(48, 16) * sizes}
    rule = Coded(inner={"rule": "factors", "args": {"r": 16}}, group_size=16)
    formed = rule.form({**rule.coded(stored), **_constants(rule)})
    for name, value in stored.items():
        columns = (formed[name] - value).norm(dim=0 if name == "B" else 1)
        assert (columns <= 0.12 * value.norm(dim=0 if name == "B" else 1)).all(), name


def _constants(rule):
    site = replace(next(b.site for b in bindings(shared("svd"))), in_features=64, out_features=48)
    return rule.constants(site, [site])


def test_shared_atoms_are_coded_once_and_vectors_are_kept_exactly():
    model = shared("masa")
    kept = {b.site.name: model_vector(model, b) for b in bindings(model) if b.rule.name == "atoms"}
    hf_share.quantize(model)
    found = [b for b in bindings(model) if isinstance(b.rule, Coded) and b.rule.made.name == "atoms"]
    assert found and len({id(b.store) for b in found}) < len(found)
    for binding in found:
        assert torch.equal(model_vector(model, binding), kept[binding.site.name])
    assert any(isinstance(b.rule, CodedDelta) for b in bindings(model)), "the residual is coded, too"


def model_vector(model, binding):
    """The coefficients c of a site, as its rule reads them."""
    layers = (m for m in model.modules() if isinstance(m, SharedLinear))
    share = next(layer.share for layer in layers if binding in layer.share.bindings)
    stored = share.stored(binding)
    if isinstance(binding.rule, Coded):
        return read(stored["c_bytes"])
    return stored["c"].detach().clone()


def test_a_weight_at_several_depths_keeps_one_code():
    model = hf_share.quantize(shared("relaxed"))
    steps = [s for s in model._hf_share.plan.generates if s.rule == "nested"]
    assert steps and all(s.args.get("tied") for s in steps)
    # what makes a weight stands before what adds to it, as it is loaded
    kinds = [step_rule(s).kind for s in model._hf_share.plan.generates]
    assert kinds == sorted(kinds, key=("replace", "add").index)


def test_adapters_train_beside_codes_and_leave_them_alone():
    model = hf_share.quantize(shared("svd"))
    before = {id(t): t.clone() for n, t in model.named_buffers() if "plane" in n}
    peft = get_peft_model(model, hf_share.ShareLoraConfig(r=2, target_modules=["q_proj"]))
    peft(**zoo.inputs(model)).logits.square().mean().backward()
    assert all(p.grad is not None for p in peft.parameters() if p.requires_grad)
    after = {id(t): t for t in peft.buffers()}
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_half_precision_models_are_coded_and_run():
    model = shared("svd").to(torch.bfloat16)
    batch = zoo.inputs(model)
    before = zoo.logits(model, **batch).float()
    now = zoo.logits(hf_share.quantize(model, bits=8, group_size=8), **batch)
    assert now.dtype == torch.bfloat16
    assert (now.float() - before).norm() < 0.05 * before.norm()


def test_gptq_reads_text_for_weights_of_the_models_own():
    plain, told = shared("dense"), shared("dense")
    with pytest.raises(ConfigError, match="text"):
        hf_share.quantize(copy.deepcopy(plain), base="gptq")
    hf_share.quantize(plain)
    hf_share.quantize(told, base="gptq", calibration=texts())
    batch = zoo.inputs(plain)
    assert not torch.equal(zoo.logits(plain, **batch), zoo.logits(told, **batch))


@pytest.mark.parametrize("given, text", [
    ({"bits": 9}, "bits|widths"), ({"bits": 0}, "bits|widths"), ({"group_size": 0}, "group_size"),
    ({"base": "minimax"}, "minmax"), ({"affine": "fp8"}, "fp16"), ({"target_modules": ["q_prj"]}, "q_prj"),
])  # fmt: skip
def test_bad_numbers_are_refused_and_change_nothing(given, text):
    model = shared("relaxed")
    plan, names = model._hf_share.plan, [n for n, _ in model.named_parameters()]
    with pytest.raises(hf_share.ShareError, match=text):
        hf_share.quantize(model, **given)
    assert model._hf_share.plan == plan and [n for n, _ in model.named_parameters()] == names


def test_what_is_in_codes_already_is_refused():
    model = hf_share.quantize(shared("svd"))
    with pytest.raises(ConfigError, match="already"):
        hf_share.quantize(model)
    with pytest.raises(Refused, match="extract"):
        hf_share.quantize(hf_share.share(zoo.build("llama"), ElasticConfig(group_size=16)))
    with pytest.raises(Refused, match="compressed"):
        hf_share.quantize(get_peft_model(zoo.build("llama"), hf_share.ShareLoraConfig(r=2)))


@pytest.mark.parametrize("args, text", [
    ({"inner": {"rule": "coded", "args": {}}}, "around another"),
    ({"inner": {"rule": "by_width", "args": {}}}, "around another"),
    ({"inner": {"rule": "nested", "args": {"widths": [4]}}}, "no numbers"),
    ({"inner": {"rule": "low_rank", "args": {"r": 2}}}, "no numbers"),
    ({"inner": {"rule": "factor", "args": {"r": 2}}}, "factors"),
    ({"inner": {"rule": "factors", "args": {"r": 10**9}}}, "rank"),
    ({"inner": {"rule": "factors"}}, "needs r"),
    ({"inner": "factors"}, "fits"),
    ({"inner": {"rule": "factors", "args": {"r": 2}}, "bits": 64}, "bits"),
])  # fmt: skip
def test_a_hostile_plan_is_refused(args, text):
    step = hf_share.Generate(rule="coded", sites=("layers.0.mlp.up_proj",), group="g", args=args)
    with pytest.raises(PlanError, match=text):
        hf_share.share(zoo.build("llama"), hf_share.SharePlan((step,)))


def test_the_command_writes_what_the_function_makes(tmp_path, monkeypatch, capsys):
    model = shared("svd")
    model.save_pretrained(tmp_path / "a")
    options = ("--bits", 3, "--group-size", 16)
    told = json.loads(run("quantize", tmp_path / "a", *options, "-o", tmp_path / "b", "--json"))
    loaded = type(model).from_pretrained(tmp_path / "b")
    expected = zoo.logits(hf_share.quantize(model, 3, group_size=16))
    assert torch.equal(zoo.logits(loaded), expected)
    assert told == json.loads(json.dumps(hf_share.describe(loaded).to_dict()))
    error = error_of(monkeypatch, capsys, "quantize", tmp_path / "b", "-o", tmp_path / "c")
    assert "already" in error and not (tmp_path / "c").exists()


def test_a_quantized_shared_model_is_exported(tmp_path):
    model = hf_share.quantize(shared("svd", hidden_size=64, intermediate_size=128), group_size=32)
    model.save_pretrained(tmp_path / "small")
    batch = zoo.inputs(model)
    here = zoo.logits(model, **batch)
    hf_share.export(str(tmp_path / "small"), "dense", tmp_path / "dense")
    plain = type(model).from_pretrained(tmp_path / "dense")
    assert (zoo.logits(plain, **batch) - here).norm() <= 1e-5 * here.norm()
    pytest.importorskip("compressed_tensors")
    hf_share.export(str(tmp_path / "small"), "compressed-tensors", tmp_path / "packed")
    packed = type(model).from_pretrained(tmp_path / "packed")  # factors are dense weights there
    assert (zoo.logits(packed, **batch) - here).norm() < 0.2 * here.norm()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Sharing and quantisation at once: a shared checkpoint in 4 or 8 bits, and adapters over a quantised base.

Quantisation is asserted by module class and by the tensor's own type, ties by the object: logits alone would
not show a layer that was skipped.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
import zoo
from helpers import elements, pointers, rows, shared, stored
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from zoo import logits

import hf_share
from hf_share.guards import never_repack


def build(name: str) -> nn.Module:
    """As wide as a block of bitsandbytes, which some CPUs want."""
    return zoo.build(name, hidden_size=64, intermediate_size=128)


def four_bit():
    return tf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def four_bit_twice():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def eight_bit():
    return tf.BitsAndBytesConfig(load_in_8bit=True)


def int8():
    torchao = pytest.importorskip("torchao.quantization")
    return tf.TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))


INNERS = {"nf4": four_bit, "nf4_double": four_bit_twice, "8bit": eight_bit, "int8": int8}
inner_kinds = pytest.mark.parametrize("inner", INNERS)


def is_quantised(module: nn.Module) -> bool:
    kind = type(module).__name__, type(module.weight).__name__
    return kind in {("Linear4bit", "Params4bit"), ("Linear8bitLt", "Int8Params"), ("Linear", "Int8Tensor")}


def linears(model) -> dict[str, nn.Module]:
    return {
        f"{i}.{name}": module
        for i, layer in enumerate(model.base_model.layers)
        for name, module in layer.named_modules()
        if name.endswith("_proj")
    }


def load(folder, inner, **kwargs):
    return tf.AutoModelForCausalLM.from_pretrained(
        folder, config=hf_share.inner_config(folder, INNERS[inner]()), **kwargs
    )


@inner_kinds
@pytest.mark.parametrize("kind", ["fold", "both"])
def test_tied_layers_are_quantised_and_tied(kind, inner, tmp_path):
    model = shared(build("llama"), kind)
    model.save_pretrained(tmp_path / "full")
    quantised = load(tmp_path / "full", inner, device_map="auto" if kind == "both" else None)
    found = linears(quantised)
    assert len(found) == 21 and all(map(is_quantised, found.values()))
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        assert found[f"0.{name}"].weight is found[f"1.{name}"].weight
        assert found[f"2.{name}"].weight is not found[f"0.{name}"].weight
    assert quantised.base_model.layers[0].input_layernorm.weight is not found["1.mlp.up_proj"].weight

    logits(quantised)  # a file written after it has the same codes
    quantised.save_pretrained(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert set(config) == {"quant_method", "plan", "inner"} and config["inner"]["pre_quantized"] is True
    tied = [k for k in stored(tmp_path / "small") if ".layers.1.self_attn.q_proj." in k]
    assert [k for k in tied if ".share." not in k] == []
    assert [k for k in tied if ".share." in k] == [k for k in tied if kind == "both"]

    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    refound = linears(again)
    assert all(map(is_quantised, refound.values()))
    assert refound["0.mlp.down_proj"].weight is refound["1.mlp.down_proj"].weight
    again.save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == stored(tmp_path / "small")
    assert torch.equal(logits(again), logits(quantised))
    assert (logits(quantised) - logits(model)).abs().max() < 0.2 * logits(model).abs().max()


def test_what_rules_store_is_in_the_type_of_the_model(tmp_path):
    """Not in the one that bitsandbytes multiplies in."""
    shared(build("llama"), "both").bfloat16().save_pretrained(tmp_path / "full")
    quantised = load(tmp_path / "full", "nf4")
    quantised.save_pretrained(tmp_path / "small")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    for model in (quantised, again):
        assert {p.dtype for name, p in model.named_parameters() if ".share" in name} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(quantised))


@inner_kinds
def test_described_are_the_numbers_and_the_bytes_of_the_file(inner, tmp_path):
    model = shared(build("llama"), "fold")
    model.save_pretrained(tmp_path / "full")
    quantised = load(tmp_path / "full", inner)
    told = hf_share.describe(quantised)
    assert (told.stored, told.used) == (hf_share.describe(model).stored, hf_share.describe(model).used)
    quantised.save_pretrained(tmp_path / "small")
    stock = quantised_base(inner, tmp_path / "stock")
    logits(stock)  # bitsandbytes may repack at the first pass
    before = logits(stock)
    assert hf_share.describe(stock).bytes and torch.equal(logits(stock), before)
    assert told.bytes == sum(t.nbytes for t in load_file(tmp_path / "small" / "model.safetensors").values())


@inner_kinds
def test_only_ties_are_different_from_the_stock_quantisation(inner, tmp_path):
    """The dense model of the same weights, quantised by stock transformers, computes the same."""
    model = shared(build("llama"), "fold")
    model.save_pretrained(tmp_path / "shared")
    hf_share.materialize(model).save_pretrained(tmp_path / "dense")
    dense = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=INNERS[inner]())
    never_repack(dense)  # as a shared model never does
    assert torch.equal(logits(load(tmp_path / "shared", inner)), logits(dense))


def test_inner_config_speaks(tmp_path):
    build("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(hf_share.ConfigError, match="no shared checkpoint"):
        hf_share.inner_config(tmp_path / "plain", eight_bit())
    shared(build("llama"), "fold").save_pretrained(tmp_path / "shared")
    config = hf_share.inner_config(tmp_path / "shared", {"load_in_8bit": True})
    quantised = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "shared", config=config)
    assert all(map(is_quantised, linears(quantised).values()))
    assert hf_share.inner_config(config, eight_bit()).quantization_config["inner"]["load_in_8bit"]
    quantised.save_pretrained(tmp_path / "small")
    with pytest.raises(hf_share.ConfigError, match="already"):
        hf_share.inner_config(tmp_path / "small", eight_bit())


def quantised_base(inner, folder):
    build("llama").save_pretrained(folder)
    return tf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=INNERS[inner]())


def step(model) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = torch.stack([row["input_ids"] for row in rows(4)])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.eval()


@inner_kinds
def test_adapter_over_a_quantised_base(inner, tmp_path):
    lora = hf_share.ShareLoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_weights=False)
    model = get_peft_model(quantised_base(inner, tmp_path / "base"), lora)
    start = logits(model)
    step(model)
    trained = logits(model)
    assert not torch.equal(trained, start)
    model.save_pretrained(tmp_path / "adapter")
    base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=INNERS[inner]())
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()), trained)

    with model.disable_adapter():
        plain = logits(model)
    tolerance = 0.1 * trained.abs().max()
    for _ in range(2):
        model.merge_adapter()
        merged = logits(model)
        assert (merged - trained).abs().max() < tolerance
        model.unmerge_adapter()
        assert torch.equal(logits(model), trained)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    whole = model.merge_and_unload()
    assert all(map(is_quantised, linears(whole).values()))
    assert torch.equal(logits(whole), merged)


@pytest.mark.parametrize("inner", ["nf4", "8bit", "int8"])
def test_adapter_over_a_shared_quantised_base(inner, tmp_path):
    shared(build("llama"), "fold").save_pretrained(tmp_path / "base")
    lora = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    model = get_peft_model(load(tmp_path / "base", inner), lora)
    step(model)
    trained, sharing = logits(model), len(pointers(model))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(tmp_path / "base", inner), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), trained)
    model.merge_adapter()
    assert (logits(model) - trained).abs().max() < 0.1 * trained.abs().max()
    model.unmerge_adapter()
    assert torch.equal(logits(model), trained)
    assert len(pointers(model)) == sharing


@pytest.mark.parametrize("inner", ["nf4", "8bit", "int8"])
def test_sharing_a_model_that_is_quantised_already(inner, tmp_path):
    model = quantised_base(inner, tmp_path / "base")
    hf_share.share(model, hf_share.FoldConfig(remove=[3], group_size=2))
    model.save_pretrained(tmp_path / "shared")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "shared")
    assert torch.equal(logits(again), logits(model))
    found = linears(again)
    assert all(map(is_quantised, found.values()))
    assert found["0.mlp.up_proj"].weight is found["1.mlp.up_proj"].weight
    assert elements(tmp_path / "shared") < elements(tmp_path / "base")


@pytest.mark.parametrize("inner", ["nf4", "8bit", "int8"])
def test_quantised_layers_have_no_mean(inner, tmp_path):
    model = quantised_base(inner, tmp_path / "base")
    before = logits(model)
    with pytest.raises(hf_share.Refused, match="is quantised"):
        hf_share.share(model, hf_share.FoldConfig(group_size=2, parent="mean"))
    assert torch.equal(logits(model), before)


@inner_kinds
def test_scales_over_a_quantised_base(inner, tmp_path):
    """The product comes from the quantised module itself; a factor of one changes no bit."""
    dense = hf_share.share(build("llama"), hf_share.FoldConfig(group_size=2, relax="scale"))
    with torch.no_grad():
        for name, value in dense.named_parameters():
            if ".share." in name:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    dense.save_pretrained(tmp_path / "scaled")
    model = load(tmp_path / "scaled", inner)
    assert all(map(is_quantised, linears(model).values()))
    with torch.no_grad():
        module = linears(model)["1.mlp.up_proj"]
        x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))
        own = module.forward(x)  # without hooks
        scaled = (module.share.s * own).to(own.dtype)
        assert torch.equal(module(x), scaled) and not torch.equal(scaled, own)
        for name, value in model.named_parameters():
            if ".share." in name:
                value.fill_(1.0)
    hf_share.share(build("llama"), hf_share.FoldConfig(group_size=2)).save_pretrained(tmp_path / "tied")
    assert torch.equal(logits(model), logits(load(tmp_path / "tied", inner)))

    plan = hf_share.SharePlan(
        (hf_share.Generate(rule="scale", sites=("layers.0.self_attn.q_proj",), group="s"),)
    )
    adapted = get_peft_model(quantised_base(inner, tmp_path / "base"), hf_share.ShareConfig(plan=plan))
    with adapted.disable_adapter():
        start = logits(adapted)
    assert torch.equal(logits(adapted), start)
    step(adapted)
    (s,) = (p for p in adapted.parameters() if p.requires_grad)
    assert s.grad.abs().max() > 0 and not torch.equal(s, torch.ones_like(s))


@inner_kinds
def test_a_quantised_model_is_as_it_was_after_a_later_step_is_refused(inner, tmp_path):
    build("llama").save_pretrained(tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=INNERS[inner]())
    logits(model)  # bitsandbytes may repack at the first pass
    before, modules = logits(model), dict(model.named_modules())
    steps = [hf_share.FoldConfig(group_size=2), hf_share.MasaConfig(projections=["q"], num_atoms=1)]
    with pytest.raises(hf_share.Refused, match="its weight is quantised"):
        hf_share.share(model, hf_share.ShareConfig(methods=steps))
    assert dict(model.named_modules()) == modules and hf_share.describe(model).plan is None
    assert torch.equal(logits(model), before)

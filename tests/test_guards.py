# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Guard rails: gradients over quantised weights are the true ones after an evaluation, or training is
refused.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
import transformers as tf
import zoo
from helpers import rows
from peft import LoraConfig, PeftModel, get_peft_model
from test_quantised import INNERS, build, load, quantised_base
from torch import nn

import hf_share
from hf_share import ConfigError, Refused, check_backend_gradients
from hf_share.guards import activations_quantised, never_repack
from hf_share.train.distill import DistillTrainer


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_weights": False}


def fp4():
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")


def torchao(name: str, **args):
    quantization = pytest.importorskip("torchao.quantization")
    return tf.TorchAoConfig(getattr(quantization, name)(**args))


MORE = {
    "fp4": fp4,
    "int4": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "int2": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int2),
    "int8dyn": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "int8dyn_int4": lambda: torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype=torch.int4),
}
TRAINABLE = [*INNERS, "fp4", "int4", "int2"]
OF_ACTIVATIONS = ["int8dyn", "int8dyn_int4"]


@pytest.fixture(autouse=True)
def more_inners(monkeypatch):
    for name, make in MORE.items():
        monkeypatch.setitem(INNERS, name, make)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in rows(4)])
    return {"input_ids": ids, "labels": ids}


def adapted(base: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(base, hf_share.ShareLoraConfig(**LORA))


def repacks() -> bool:
    functional = pytest.importorskip("bitsandbytes.functional")
    return functional.has_avx512bf16()


@pytest.mark.parametrize("inner", TRAINABLE)
def test_gradients_over_every_backend_we_train_on_are_the_true_ones(inner, tmp_path):
    model = adapted(quantised_base(inner, tmp_path)).eval()
    model.model.model.layers[1].train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    cosines = check_backend_gradients(model, batch())
    assert len(cosines) == len(before) == 15 and min(cosines.values()) >= 0.999
    after = {n: p for n, p in model.named_parameters() if n in before}
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in after.items())
    assert not model.training and model.model.model.layers[1].training


@pytest.mark.parametrize("inner", ["nf4", "nf4_double", "fp4"])
def test_an_adapter_over_4_bits_turns_repacking_off(inner, tmp_path):
    base = quantised_base(inner, tmp_path)
    with torch.no_grad():
        base.eval()(**batch())  # what repacks, where the processor has the instructions
    states = [m.weight.quant_state for m in base.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(states) == 28
    assert all(getattr(s, "packing_format_for_cpu", False) == repacks() for s in states)
    model = adapted(base)
    four = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(four) == 28 and not any(m.support_avx512bf16_for_cpu for m in four)
    assert min(check_backend_gradients(model, batch()).values()) >= 0.999
    assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in four)


@pytest.mark.parametrize("inner", ["nf4", "nf4_double", "fp4"])
def test_a_stock_adapter_over_a_shared_model_in_4_bits_trains_past_an_evaluation(inner, tmp_path):
    hf_share.share(build("llama"), hf_share.FoldConfig(group_size=2)).save_pretrained(tmp_path / "shared")
    model = load(tmp_path / "shared", inner)
    model.save_pretrained(tmp_path / "small")
    for base in (model, tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")):
        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules=LORA["target_modules"], init_lora_weights=False)
        adapted = get_peft_model(base, lora)
        arguments = tf.TrainingArguments(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=2, eval_strategy="steps",
            eval_steps=1, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": ids, "labels": ids} for ids in batch()["input_ids"]]
        tf.Trainer(model=adapted, args=arguments, train_dataset=data, eval_dataset=data).train()
        four = [m for m in base.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
        assert four and not any(m.support_avx512bf16_for_cpu for m in four)
        assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in four)
        assert min(check_backend_gradients(adapted, batch()).values()) >= 0.999


def test_sharing_a_model_in_4_bits_turns_repacking_off(tmp_path):
    base = quantised_base("nf4", tmp_path)
    with torch.no_grad():
        base.eval()(**batch())
    model = hf_share.share(base, hf_share.FoldConfig(group_size=2))
    four = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert four and not any(m.support_avx512bf16_for_cpu for m in four)
    assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in four)


def test_shapes_that_cannot_be_packed_are_evaluated(tmp_path):
    """bitsandbytes asserts that outputs come in 32s and inputs in 64s, where it repacks."""
    odd = zoo.build("llama", hidden_size=48, intermediate_size=80)
    hf_share.share(odd, hf_share.FoldConfig(group_size=2)).save_pretrained(tmp_path)
    model = load(tmp_path, "nf4").eval()
    with torch.no_grad():
        assert model(**batch()).loss.isfinite()


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered:UserWarning")
def test_repacked_weights_are_found_out(tmp_path):
    if not repacks():
        pytest.skip("bitsandbytes repacks 4-bit weights on processors with AVX512-BF16 only")
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=LORA["target_modules"], init_lora_weights=False)
    model = get_peft_model(quantised_base("nf4", tmp_path), lora)
    with pytest.raises(Refused, match=r"gradients are not those .*Linear4bit/Params4bit cannot") as error:
        check_backend_gradients(model, batch())
    named = dict(re.findall(r"(\S+\.lora_[AB]\.default\.weight) (-?\d\.\d+)", str(error.value)))
    assert len(named) == 6 and all(float(cosine) < 0.9 for cosine in named.values())
    assert set(named) <= {n for n, _ in model.named_parameters()}
    never_repack(model)
    assert min(check_backend_gradients(model, batch()).values()) >= 0.999


@pytest.mark.parametrize("inner", OF_ACTIVATIONS)
def test_quantised_activations_are_refused_for_training(inner, tmp_path):
    base = quantised_base(inner, tmp_path / "base")
    adapted(copy.deepcopy(build("llama"))).save_pretrained(tmp_path / "adapter")
    with pytest.raises(Refused, match="q_proj' and .* quantise their activations.*Int8WeightOnlyConfig"):
        adapted(base)
    with pytest.raises(Refused, match="quantise their activations"):
        PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    only_run = PeftModel.from_pretrained(quantised_base(inner, tmp_path / "base"), tmp_path / "adapter")
    assert only_run(**batch()).loss.isfinite()


@pytest.mark.parametrize("inner", OF_ACTIVATIONS)
def test_their_gradients_are_wrong_indeed(inner, tmp_path):
    base = quantised_base(inner, tmp_path)
    assert len(activations_quantised(base)) == 28
    lora = LoraConfig(r=2, target_modules=LORA["target_modules"], init_lora_weights=False)
    with pytest.raises(Refused, match="Linear/Int.* cannot be trained over"):
        check_backend_gradients(get_peft_model(base, lora), batch())


def test_trainers_of_shared_models_refuse_quantised_activations(tmp_path):
    hf_share.share(build("llama"), hf_share.FoldConfig(group_size=2)).save_pretrained(tmp_path / "shared")
    arguments = tf.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    for inner, wrong in (("int8", False), ("int8dyn", True)):
        model = load(tmp_path / "shared", inner)
        assert model.hf_quantizer.is_trainable != wrong
        lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        if not wrong:
            tf.Trainer(model=lora, args=arguments)
            continue
        with pytest.raises(ValueError, match="do not support training"):
            tf.Trainer(model=lora, args=arguments)
        model.hf_quantizer.trains = True  # past what transformers asks, ours looks at the weights
        with pytest.raises(Refused, match="quantise their activations"):
            DistillTrainer(model=lora, args=arguments)


def test_dense_models_pass_and_what_cannot_be_checked_is_said():
    model = adapted(build("llama"))
    assert min(check_backend_gradients(model, batch()).values()) > 1 - 1e-6
    with pytest.raises(ConfigError, match="needs labels, to have a loss; it has input_ids"):
        check_backend_gradients(model, {"input_ids": batch()["input_ids"]})
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    with pytest.raises(Refused, match="every gradient is zero"):
        check_backend_gradients(model, batch())
    with pytest.raises(ConfigError, match="nothing trains in this model"):
        check_backend_gradients(build("llama").requires_grad_(False), batch())


def test_rules_beside_quantised_weights_are_in_the_copy(tmp_path):
    """A shared model's own deltas hang on the quantised modules as hooks."""
    fold = hf_share.FoldConfig(group_size=2, relax="scale")
    hf_share.share(build("llama"), fold).save_pretrained(tmp_path)
    model = load(tmp_path, "nf4")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".share." in name)
    cosines = check_backend_gradients(model, batch())
    assert min(cosines.values()) >= 0.999 and all(".share." in name for name in cosines)

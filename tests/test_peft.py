# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Stock peft with our configs: every entry point a peft user knows, and several adapters at once."""

from __future__ import annotations

import copy
import importlib
import os
import pickle

import pytest
import torch
import zoo
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from peft.utils.peft_types import PeftType
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hf_share
from hf_share import FoldConfig, Refused, ShareConfig, ShareLoraConfig


FOLD = FoldConfig(groups=[[0], [1, 2], [3]])


def adapter(**changes) -> ShareLoraConfig:
    return ShareLoraConfig(
        **{"r": 3, "init_weights": False, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    )


def peft_llama(config=None, seed: int = 0) -> PeftModel:
    return get_peft_model(zoo.build("llama", seed), config or adapter()).eval()


def test_one_type_for_all_methods_and_a_second_import_is_harmless():
    importlib.reload(hf_share)
    assert PeftType("HF_SHARE") in list(PeftType)
    assert pickle.loads(pickle.dumps(PeftType.HF_SHARE)) is PeftType.HF_SHARE
    assert adapter().peft_type is PeftType.HF_SHARE


@pytest.mark.parametrize("low", [False, True], ids=["values", "meta"])
def test_round_trip(tmp_path, low):
    base = zoo.build("llama")
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter(share_modules=["q_proj"])
    ).eval()
    expected = zoo.logits(model)
    assert not torch.equal(expected, zoo.logits(base))
    model.save_pretrained(tmp_path / "adapter")
    assert isinstance(PeftConfig.from_pretrained(tmp_path / "adapter"), ShareLoraConfig)
    again = PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "adapter", low_cpu_mem_usage=low).eval()
    assert torch.equal(zoo.logits(again), expected)
    assert torch.equal(
        zoo.logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()), expected
    )
    assert torch.equal(
        zoo.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()), expected
    )


def test_file_holds_each_shared_factor_once(tmp_path):
    model = peft_llama()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trained)
    assert "base_model.model.model.shared_stores.lora_layers_self_attn_q_proj.hf_share_A" in saved
    assert "base_model.model.model.layers.0.self_attn.q_proj.hf_share_B" in saved


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft's, on every second add_adapter
def test_transformers_own_adapter_methods(tmp_path):
    model = zoo.build("llama")
    plain = zoo.logits(model)
    model.add_adapter(adapter(), adapter_name="one")
    one = zoo.logits(model)
    model.add_adapter(adapter(share="AB", r=2), adapter_name="two")
    model.set_adapter("one")
    assert torch.equal(zoo.logits(model), one)
    model.set_adapter("two")
    assert not torch.equal(zoo.logits(model), one)
    model.disable_adapters()
    assert torch.equal(zoo.logits(model), plain)
    model.enable_adapters()
    model.set_adapter("one")
    model.save_pretrained(tmp_path)
    model.delete_adapter("two")
    fresh = zoo.build("llama")
    fresh.load_adapter(tmp_path, "one")
    assert torch.equal(zoo.logits(fresh), one)


def test_several_adapters_of_different_shapes():
    model = peft_llama()
    first = zoo.logits(model)
    model.add_adapter("second", adapter(share="B", target_modules=["down_proj"], r=2))
    model.set_adapter("second")
    second = zoo.logits(model)
    model.base_model.set_adapter(["default", "second"])
    both = zoo.logits(model)
    assert not torch.equal(first, second) and not torch.equal(both, first) and not torch.equal(both, second)
    model.set_adapter("default")
    assert torch.equal(zoo.logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(zoo.logits(model), first)
    assert not [n for n, _ in model.named_parameters() if n.endswith(".second")]


def test_mixed_batch_gives_each_row_its_adapter():
    model = peft_llama()
    model.add_adapter("other", adapter(r=2, share="AB"))
    ids = zoo.inputs(model, rows=3)["input_ids"]
    rows = []
    for name, row in zip(("default", "other", None), ids, strict=True):
        if name is not None:
            model.set_adapter(name)
            rows.append(zoo.logits(model, input_ids=row[None]))
        else:
            with model.disable_adapter():
                rows.append(zoo.logits(model, input_ids=row[None]))
    mixed = zoo.logits(model, input_ids=ids, adapter_names=["default", "other", "__base__"])
    torch.testing.assert_close(mixed, torch.cat(rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="non-existing adapter.*nobody"):
        model(input_ids=ids, adapter_names=["default", "nobody", "__base__"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_merge_and_the_way_back(name):
    model = get_peft_model(zoo.build(name), adapter()).eval()
    values = zoo.inputs(model)
    expected = zoo.logits(model, **values)
    weights = {n: p.data_ptr() for n, p in model.named_parameters()}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(zoo.logits(model, **values), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == weights
    assert torch.equal(zoo.logits(model, **values), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(zoo.logits(merged, **values), expected, rtol=1e-4, atol=1e-5)
    assert not [n for n, _ in merged.named_modules() if "share" in n]


def test_safe_merge_refuses_nan_and_leaves_the_base():
    model = peft_llama()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "hf_share_B" in n).fill_(float("nan"))
    before = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight is before


def test_bfloat16_base_trains_in_float32():
    model = get_peft_model(zoo.build("llama").bfloat16(), adapter(init_weights=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    ids = zoo.inputs(model)["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in trained)


def test_modules_to_save_come_back(tmp_path):
    model = peft_llama(adapter(modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(1.0)
    expected = zoo.logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(zoo.logits(PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()), expected)


def test_copies_keep_the_sharing():
    model = peft_llama()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            store = twin.base_model.model.model.shared_stores["lora_layers_self_attn_q_proj"]
            store.hf_share_A["default"].zero_()
        layers = twin.base_model.model.model.layers
        assert all(layer.self_attn.q_proj.get_delta_weight("default").abs().sum() == 0 for layer in layers)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default").abs().sum() > 0


# structural configs through get_peft_model


def folded(**changes) -> PeftModel:
    return peft_llama(ShareConfig(methods=[FOLD, adapter(**changes)], task_type="CAUSAL_LM"))


def test_structure_and_adapter_in_one_config(tmp_path):
    model = folded()
    expected = zoo.logits(model)
    layers = model.base_model.model.model.layers
    assert layers[1].mlp.up_proj.base_layer.weight is layers[2].mlp.up_proj.base_layer.weight
    model.save_pretrained(tmp_path)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(t.numel() for t in load_file(tmp_path / "adapter_model.safetensors").values()) == trained
    again = PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()
    assert torch.equal(zoo.logits(again), expected)


def test_structure_stays_when_the_adapter_is_disabled():
    model = folded()
    shared = hf_share.share(zoo.build("llama"), FOLD)
    with model.disable_adapter():
        assert torch.equal(zoo.logits(model), zoo.logits(shared))
    for forbidden in (lambda: model.delete_adapter("default"), lambda: model.base_model.unload()):
        with pytest.raises(Refused, match="structure"):
            forbidden()


def test_another_structure_beside_is_refused():
    model = folded()
    with pytest.raises(ValueError, match="structure"):
        model.add_adapter("other", ShareConfig(methods=[FoldConfig(groups=[[0, 1], [2, 3]]), adapter()]))


@pytest.mark.parametrize("fold", [FOLD, FoldConfig(remove=[1], group_size=2)], ids=["tied", "removed"])
def test_an_adapter_beside_a_structure_takes_it_along(fold, tmp_path):
    model = peft_llama(fold)
    model.add_adapter("taste", adapter())
    model.set_adapter("taste")
    for layer in model.base_model.model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.hf_share_B["taste"])
    expected = zoo.logits(model)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "taste").eval()
    assert torch.equal(zoo.logits(alone), expected)
    both = PeftModel.from_pretrained(zoo.build("llama"), tmp_path)
    both.load_adapter(tmp_path / "taste", "taste")
    both.set_adapter("taste")
    assert torch.equal(zoo.logits(both.eval()), expected)
    model.delete_adapter("default")
    assert torch.equal(zoo.logits(model), expected)
    with pytest.raises(Refused, match="structure"):
        model.delete_adapter("taste")


def test_merging_into_tied_weights_keeps_visits_apart():
    model = folded()
    expected = zoo.logits(model)
    model.merge_adapter()
    torch.testing.assert_close(zoo.logits(model), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    layers = model.base_model.model.model.layers
    assert layers[1].mlp.up_proj.base_layer.weight is layers[2].mlp.up_proj.base_layer.weight
    assert torch.equal(zoo.logits(model), expected)
    plain = model.merge_and_unload()
    torch.testing.assert_close(zoo.logits(plain), expected, rtol=1e-4, atol=1e-5)
    assert len({p.data_ptr() for p in plain.parameters()}) == len(
        list(plain.named_parameters(remove_duplicate=False))
    )
    assert getattr(plain.config, "quantization_config", None) is None


def test_compressed_is_one_checkpoint(tmp_path):
    model = folded()
    expected = zoo.logits(model)
    compressed = hf_share.compressed(model).eval()
    assert torch.equal(zoo.logits(compressed), expected)
    compressed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(zoo.logits(again), expected)
    unique = sum(p.numel() for p in again.parameters())
    assert sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values()) <= unique + 1


def test_compressed_base_and_adapter_in_one_folder(tmp_path):
    shared = hf_share.share(zoo.build("llama"), FOLD)
    shared.save_pretrained(tmp_path)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), adapter()).eval()
    expected = zoo.logits(model)
    model.save_pretrained(tmp_path)
    assert os.path.exists(tmp_path / "model.safetensors") and os.path.exists(
        tmp_path / "adapter_model.safetensors"
    )
    assert torch.equal(zoo.logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), expected)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", "all-linear"), ("gpt2", ["c_attn:q", "c_attn:v"]), ("phi3", ["qkv_proj:k", "down_proj"])],
)
def test_to_lora_is_the_same_function(tmp_path, name, targets):
    model = get_peft_model(zoo.build(name), adapter(target_modules=targets, use_rslora=True)).eval()
    values = zoo.inputs(model)
    hf_share.to_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(zoo.build(name), tmp_path).eval()
    assert lora.peft_config["default"].peft_type == PeftType.LORA
    torch.testing.assert_close(zoo.logits(lora, **values), zoo.logits(model, **values), rtol=1e-4, atol=1e-5)


def test_rank_is_a_nested_choice(tmp_path):
    model = peft_llama()
    full = zoo.logits(model)
    assert hf_share.choices(model) == {"rank": (1, 2, 3)}
    seen = []
    for rank in (1, 2, 3):
        with hf_share.chosen(model, rank=rank):
            seen.append(zoo.logits(model))
            layer = model.base_model.model.model.layers[0].self_attn.q_proj
            assert torch.linalg.matrix_rank(layer.get_delta_weight("default")) == rank
    assert torch.equal(seen[2], full) and not torch.equal(seen[0], seen[1])
    assert torch.equal(zoo.logits(model), full)
    hf_share.choose(model, rank=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(zoo.logits(PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()), seen[1])
    with pytest.raises(ValueError, match="rank=9"):
        hf_share.choose(model, rank=9)
    with pytest.raises(ValueError, match="did you mean 'rank'"):
        hf_share.choose(model, ranks=1)

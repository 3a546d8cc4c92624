# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Estimates from shapes are what real models, optimizers and files take."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn

import hf_share
from hf_share import (
    ConfigError,
    ElasticConfig,
    FoldConfig,
    MasaConfig,
    MosConfig,
    RecursiveConfig,
    Refused,
    ShareConfig,
    ShareLoraConfig,
    SvdConfig,
)
from hf_share.estimate import is_adapter
from hf_share.train.elastic import choose_trained


ALL = {"target_modules": "all-linear"}
FOLD = FoldConfig(remove=[3], group_size=2)
STRUCTURES = {
    "dense": None,
    "fold": FOLD,
    "masa": MasaConfig(num_atoms=2),
    "fold + share_lora": ShareConfig(methods=[FOLD, ShareLoraConfig(r=2, **ALL)]),
}
ADAPTERS = {
    "share_lora": ShareLoraConfig(r=2, **ALL),
    "mos": MosConfig(r=4, **ALL),
    "lora": LoraConfig(r=2, **ALL),
    "fold + mos": ShareConfig(methods=[FOLD, MosConfig(r=4, **ALL)]),
}
KINDS = [("full", k, v) for k, v in STRUCTURES.items()] + [("adapter", k, v) for k, v in ADAPTERS.items()]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def real(name: str, sharing, train: str, dtype: str) -> nn.Module:
    torch.manual_seed(0)
    config = zoo.build(name).config
    model = type(zoo.build(name))._from_config(config, dtype=DTYPES[dtype])
    if train == "adapter":
        return get_peft_model(model, copy.deepcopy(sharing))
    return model if sharing is None else hf_share.share(model, sharing)


def size(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def in_files(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as f:
            total += size([f.get_tensor(key) for key in f.keys()])
    return total


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("train, kind, sharing", KINDS, ids=[f"{t}-{k}" for t, k, _ in KINDS])
def test_bytes_are_those_of_a_real_run(train, kind, sharing, name, dtype, tmp_path):
    model = real(name, sharing, train, dtype)
    found = hf_share.estimate(
        zoo.build(name).config, copy.deepcopy(sharing), train=train, dtype=dtype, length=8
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.zeros(1, 8, dtype=torch.long)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    optimizer.step()
    model.save_pretrained(tmp_path)
    states = [s for held in optimizer.state.values() for s in held.values()]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.trained == sum(p.numel() for p in trained)
    assert found.weights == size([*model.parameters(), *model.buffers()])
    assert found.gradients == size([p.grad for p in trained])
    assert found.optimizer_states == size(states)
    assert found.file == in_files(tmp_path)
    assert found.method == kind and found.total == sum(
        (found.weights, found.gradients, found.optimizer_states, found.activations)
    )


RATE = FoldConfig(removal_rate=0.25, group_size=2)
CODES = {"preset": "hf_share", "group_size": 16, "base": "gptq"}
# method -> its config, and how far the stand-in may lie from the real one, as a share of it: a rank of each
# of these small weights where ranks are chosen by error
MEASURED = {
    "fold": (RATE, 0.0),
    "fold, gates": (FoldConfig(removal_rate=0.5, importance="gate", gate_steps=2), 0.0),
    "fold, scales": (FoldConfig(removal_rate=0.25, group_size=2, relax="scale"), 0.0),
    "svd, equal": (SvdConfig(ratio=0.6, ranks="equal"), 0.0),
    "svd": (SvdConfig(ratio=0.6), 0.05),
    "fold + svd": (ShareConfig(methods=[FoldConfig(removal_rate=0.25), SvdConfig(ratio=0.6)]), 0.05),
    "masa, ratio": (MasaConfig(ratio=0.6), 0.05),
    "masa, ratio and atoms": (MasaConfig(ratio=0.6, num_atoms=1), 0.05),
    "masa, ratio and rank": (MasaConfig(ratio=0.6, residual_rank=4), 0.1),
    "masa, residual": (MasaConfig(num_atoms=1, residual_rank=2), 0.0),
    "masa, kl": (MasaConfig(groups="kl", num_atoms=1), 0.0),
    "recursive": (RecursiveConfig(lora_rank=4, lora_init="whitened"), 0.0),
    "elastic, gptq": (ElasticConfig(**CODES), 0.0),
    "elastic, lanes": (ElasticConfig(bits=[], ffn=[0.5], depth=[2], order="activation"), 0.0),
    "elastic, wanda": (ElasticConfig(preset="nls", sparsity=0.5, mask="wanda"), 0.0),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MEASURED)
def test_what_measures_a_model_is_stood_in_for(kind, tmp_path):
    sharing, bound = MEASURED[kind]
    model = real("llama", None, "full", "float32")
    found = hf_share.estimate(model, copy.deepcopy(sharing), dtype="float32", length=8)
    tokens = [torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    hf_share.share(model, sharing, tokens)
    model.save_pretrained(tmp_path)
    elastic = isinstance(sharing, ElasticConfig)
    assert found.train == (choose_trained(model) if elastic else "full")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for mine, theirs in (
        (found.file, in_files(tmp_path)),
        (found.weights, size([*model.parameters(), *model.buffers()])),
        (found.trained, trained),
    ):
        assert abs(mine - theirs) <= bound * theirs
    assert bool(found.assumed) == (bound > 0 or "removal_rate" in str(sharing) and kind.startswith("fold")
                                   or kind == "masa, kl")  # fmt: skip


def test_what_was_assumed_is_told():
    config = zoo.build("llama").config
    found = hf_share.estimate(config, ShareConfig(methods=[RATE, ShareLoraConfig(r=2, **ALL)]), length=8)
    assert found.train == "adapter" and found.method == "fold + share_lora"
    assert found.assumed == ("the last layers are those that go",)
    assert "about" in str(found) and "assumed: the last layers" in str(found)
    assert hf_share.estimate(config, FOLD, length=8).assumed == ()
    plan = FOLD.resolve(zoo.build("llama"))
    assert RATE.outlined().steps(zoo.build("llama")) == plan and RATE.needs_calibration
    with pytest.raises(ConfigError, match="needs text"):
        RATE.steps(zoo.build("llama"))


def test_a_method_that_nothing_stands_in_for_is_refused(monkeypatch):
    monkeypatch.setattr(SvdConfig, "assumes", ShareConfig.assumes)
    for sharing in (SvdConfig(), ShareConfig(methods=[FOLD, SvdConfig()])):
        with pytest.raises(Refused, match="'(svd|share)' measures the model.*config.resolve"):
            hf_share.estimate(zoo.build("llama").config, sharing, length=8)


def test_rules_train_where_they_store_what_learns():
    model = zoo.build("llama")
    elastic = ElasticConfig(preset="matquant", group_size=16)
    assert hf_share.estimate(model, elastic, length=8).train == "full"
    with pytest.raises(ConfigError, match="'full' fits"):
        hf_share.estimate(model, elastic, train="rules", length=8)
    deltas = ElasticConfig(preset="nls")
    found = hf_share.estimate(model, deltas, train="adapter", length=8)
    assert found.trained == hf_share.estimate(model, deltas, length=8).trained


WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "max_position_embeddings": 512}


def peak_of_a_step(model: nn.Module, batch: int, length: int) -> int:
    """What forward and backward allocate at their highest, by PyTorch's own record of every allocation."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as record:
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["dense", "masa", "share_lora", "mos", "lora"])
def test_activations_are_within_a_half_of_a_measured_step(kind, checkpointing):
    train, sharing = next((t, s) for t, k, s in KINDS if k == kind)
    config = zoo.build("llama", num_hidden_layers=8, **WIDE).config
    found = hf_share.estimate(
        config, copy.deepcopy(sharing), train=train, dtype="float32", batch=4, length=256,
        checkpointing=checkpointing,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config)
    if sharing is not None:
        sharing = copy.deepcopy(sharing)
        model = get_peft_model(model, sharing) if train == "adapter" else hf_share.share(model, sharing)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    peak = peak_of_a_step(model, 4, 256) - found.gradients
    assert found.activations < 1.5 * peak and peak < 1.5 * found.activations


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_those_of_bitsandbytes(bits, tmp_path):
    dense = zoo.build("llama", hidden_size=64, intermediate_size=128)
    dense.save_pretrained(tmp_path)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    quantiser = tf.BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantiser)
    scales = [
        m.weight.quant_state.absmax if bits == 4 else m.weight.SCB
        for m in model.modules()
        if hasattr(getattr(m, "weight", None), "quant_state" if bits == 4 else "SCB")
    ]
    found = hf_share.estimate(dense, train="none", bits=bits, length=8)
    assert len(scales) == 28
    assert found.weights == size([*model.parameters(), *model.buffers(), *scales])
    adapter = hf_share.estimate(dense, ShareLoraConfig(r=2, **ALL), bits=bits, length=8)
    assert adapter.train == "adapter"
    assert adapter.weights == found.weights + 4 * adapter.trained


def test_a_shared_checkpoint_and_a_shared_model_count_as_they_are():
    model = hf_share.share(zoo.build("llama"), copy.deepcopy(FOLD))
    found = hf_share.estimate(model, length=8)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert hf_share.estimate(model.config, dtype="float32", length=8) == found
    assert found.train == "full" and "estimate" in str(found)


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_every_architecture_is_counted(name):
    model = zoo.build(name)
    found = hf_share.estimate(model, length=8)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    kept = hf_share.estimate(model, length=8, checkpointing=True).activations
    if name in ("vit", "whisper", "mixtral", "qwen_moe"):
        assert kept is found.activations is None and "cannot be traced" in str(found)
    else:
        assert 0 < kept < found.activations


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_large_shapes_take_seconds():
    start = time.monotonic()
    seven = hf_share.estimate(tf.LlamaConfig(), MosConfig(r=8, equivalent_rank=2, **ALL), length=2048)
    assert seven.trained == 4_997_120 and seven.dtype == "bfloat16"
    assert time.monotonic() - start < 30


def test_what_a_config_is():
    assert [is_adapter(s) for s in ADAPTERS.values()] == [True] * 4
    assert not is_adapter(FOLD) and not is_adapter(None)
    plan = ShareLoraConfig(r=2, **ALL).resolve(zoo.build("llama"))
    assert is_adapter(plan) and not is_adapter(FOLD.resolve(zoo.build("llama")))


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"train": "adaptr"}, ConfigError, "did you mean 'adapter'"),
        ({"train": "adapter"}, ConfigError, "needs a method"),
        ({"dtype": "bfloat"}, ConfigError, "did you mean 'bfloat16'"),
        ({"optimizer": "adam"}, ConfigError, "did you mean 'adamw'"),
        ({"bits": 3}, ConfigError, "4, 8 or None"),
        ({"bits": 4}, Refused, "do not train in full"),
        ({"batch": 0}, ConfigError, "batch is 0"),
        ({"length": 4096}, ConfigError, "at most 64 tokens"),
        ({"sharing": "mos"}, ConfigError, "not a str"),
        ({"sharing": ElasticConfig(preset="nls"), "bits": 4}, Refused, "or by rules; train='adapter'"),
        ({"sharing": LoraConfig(**ALL), "train": "full"}, ConfigError, "is an adapter"),
    ],
)
def test_bad_input(given, error, message):
    with pytest.raises(error, match=message):
        hf_share.estimate(zoo.build("llama").config, **{"length": 8, **given})


def test_only_models_and_configs():
    with pytest.raises(ConfigError, match="a transformers model or its config"):
        hf_share.estimate(nn.Linear(2, 2))
    config = zoo.build("llama").config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(Refused, match="the one it was made from"):
        hf_share.estimate(config, length=8)

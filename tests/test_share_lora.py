# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""ShareLoRA trains as the scheme of its paper does: ordinary LoRA whose layers point at one Parameter."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import hf_share
from hf_share.hub.layer import ShareLayer


STEPS = 20
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
ARGS = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "lora_dropout": 0.0}
QKV = ["q_proj", "v_proj"]


def repointed(share: str, only: list[str] | None) -> PeftModel:
    """Stock LoRA in which every later layer's factor is the first layer's Parameter, type by type."""
    model = get_peft_model(zoo.build("llama"), LoraConfig(**ARGS))
    first: dict[tuple[str, str], nn.Parameter] = {}
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if not hasattr(module, "lora_A") or (only and kind not in only):
            continue
        for letter in share:
            factor = getattr(module, f"lora_{letter}")["default"]
            factor.weight = first.setdefault((kind, letter), factor.weight)
    return model


@torch.no_grad()
def take_values(ours: PeftModel, theirs: PeftModel) -> None:
    modules = dict(theirs.named_modules())
    for name, layer in ours.named_modules():
        if isinstance(layer, ShareLayer):
            binding = layer.bindings["default"][0]
            for letter, value in layer.stored(binding, "default").items():
                value.copy_(getattr(modules[name], f"lora_{letter}")["default"].weight)


def losses(model: PeftModel) -> list[float]:
    starts = torch.randint(0, 20, (STEPS, 4, 1), generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-2)
    seen = []
    for start in starts:
        ids = 3 + (start + torch.arange(16)) % 20  # counting, which can be learnt
        loss = model.train()(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("only", [None, QKV], ids=["all types", "qkv"])
@pytest.mark.parametrize("share", ["A", "B", "AB"])
def test_training_equals_the_repointing_scheme(share, only):
    theirs = repointed(share, only)
    ours = get_peft_model(
        zoo.build("llama"), hf_share.ShareLoraConfig(**ARGS, share=share, share_modules=only)
    )
    take_values(ours, theirs)
    counts = [m.get_nb_trainable_parameters()[0] for m in (ours, theirs)]
    assert counts[0] == counts[1]
    mine, reference = losses(ours), losses(theirs)
    assert reference[-1] < reference[0] - 0.05, "it learns"
    for step, (a, b) in enumerate(zip(mine, reference, strict=True)):
        assert abs(a - b) <= 1e-5 * abs(b), f"step {step}: {a} and {b}"


@pytest.mark.parametrize("share", ["A", "B", "AB"])
def test_as_plain_lora_it_is_the_same_function(share, tmp_path):
    model = get_peft_model(
        zoo.build("llama"), hf_share.ShareLoraConfig(**{**ARGS, "init_weights": False}, share=share)
    ).eval()
    hf_share.to_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(zoo.build("llama"), tmp_path).eval()
    assert type(lora.peft_config["default"]) is LoraConfig
    expected = zoo.logits(model, **zoo.inputs(model.get_base_model()))
    base = zoo.logits(copy.deepcopy(model).unload())
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(zoo.logits(lora, **zoo.inputs(lora.get_base_model())), expected)

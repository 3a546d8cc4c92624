# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Shared models spread over cpu and disk by accelerate, and loaded in another dtype: logits stay exact."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch
import transformers as tf
from helpers import pointers, shared, unique
from zoo import build, inputs, logits

from hf_share import Refused


NAMES = ("llama", "gpt2")


def saved(name: str, folder):
    model = shared(build(name))
    model.save_pretrained(folder)
    return model


def some_on_disk(model) -> dict[str, str]:
    """The layers that share weights on disk, the rest on the cpu."""
    places = {"lm_head": "cpu"}
    for name, child in model.base_model.named_children():
        path = f"{model.base_model_prefix}.{name}"
        if isinstance(child, torch.nn.ModuleList):
            places |= {f"{path}.{i}": "disk" if i < 2 else "cpu" for i in range(len(child))}
        else:
            places[path] = "cpu"
    return places


@pytest.mark.parametrize("name", NAMES)
def test_disk(name, tmp_path):
    model = saved(name, tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=some_on_disk(model), offload_folder=tmp_path / "off"
    )
    assert "disk" in again.hf_device_map.values()
    assert torch.equal(logits(again), logits(model))
    ids = inputs(model)["input_ids"]
    kwargs = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(ids, **kwargs), model.generate(ids, **kwargs))
    stores = again.base_model.shared_stores
    assert sum(p.numel() for p in stores.parameters()) == sum(
        p.numel() for p in model.base_model.shared_stores.parameters()
    )


def test_everything_on_disk(tmp_path):
    model = saved("llama", tmp_path)
    places = dict.fromkeys(some_on_disk(model), "disk")
    again = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "off"
    )
    assert all(p.is_meta for p in again.parameters())
    assert torch.equal(logits(again), logits(model))
    with pytest.warns(UserWarning, match="offloaded modules"):
        again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(model))


def test_one_tensor_in_two_places_is_refused(tmp_path):
    model = saved("llama", tmp_path)
    places = {**some_on_disk(model), "model.layers.0": "cpu"}
    with pytest.raises(Refused, match=r"layers.1.*one place"):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "off")


def test_auto_with_little_memory(tmp_path):
    model = saved("llama", tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": 40_000}, offload_folder=tmp_path / "off"
    )
    assert "disk" in again.hf_device_map.values()
    assert torch.equal(logits(again), logits(model))


def test_auto(tmp_path):
    model = saved("llama", tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(logits(again), logits(model))
    assert pointers(again) == pointers(model)


@pytest.mark.parametrize("name", NAMES)
def test_cpu_offload(name):
    model = shared(build(name))
    before = logits(model)
    again = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(p.is_meta for p in again.parameters())
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name, tmp_path):
    model = saved(name, tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    cast = model.to(torch.bfloat16)
    for name, value in buffers.items():  # rotary frequencies stay in fp32 when a model is loaded
        path, _, leaf = name.rpartition(".")
        cast.get_submodule(path)._buffers[leaf] = value
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(cast))
    assert pointers(again) == pointers(cast) and unique(again) == unique(cast)
    again.save_pretrained(tmp_path / "half")
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "half")), logits(cast))

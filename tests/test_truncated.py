# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that were cut, changed or made to harm: one clear error, nothing allocated, nothing random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from helpers import shared
from safetensors.torch import load_file, save_file
from zoo import build, logits

from hf_share import CheckpointError, PlanError, ShareError, SharePlan, SiteError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    shared(build("llama")).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def load(folder, cls=tf.AutoModelForCausalLM):
    return cls.from_pretrained(folder)


def change_file(folder, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def change_plan(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def named(state, part: str) -> str:
    return next(key for key in state if part in key)


@pytest.mark.parametrize(
    "part",
    [
        "layers.0.self_attn.q_proj.weight",  # the source of a tie
        "layers.2.self_attn.q_proj.weight",  # its own
        "layers.1.input_layernorm.weight",  # private among ties
        "layers.1.mlp.up_proj.share.B",
        "shared_stores.lora_layers_mlp_up_proj.A",
        "shared_stores.guard.weight",
    ],
)
@pytest.mark.parametrize("cls", [tf.AutoModelForCausalLM, tf.AutoModelForSequenceClassification])
def test_a_missing_tensor(part, cls, folder):
    change_file(folder, lambda state: state.pop(named(state, part)))
    with pytest.raises(CheckpointError, match=part.replace(".", r"\.")):
        load(folder, cls)


@pytest.mark.parametrize("part", ["share.B", "shared_stores.lora_layers_mlp_up_proj.A", "guard.weight"])
def test_another_shape(part, folder):
    def narrow(state):
        state[named(state, part)] = state[named(state, part)][:1].clone()

    change_file(folder, narrow)
    with pytest.raises(CheckpointError, match="shape"):
        load(folder)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.share.C", "model.shared_stores.more.A"])
def test_an_extra_tensor(name, folder):
    change_file(folder, lambda state: state.update({name: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=name.removeprefix("model.").replace(".", r"\.")):
        load(folder)


def test_missing_in_a_state_dict(whole):
    """Without a file there is no header; the error comes after loading."""
    config, model = tf.AutoConfig.from_pretrained(whole), load(whole)
    state = model.state_dict()
    good = tf.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(state))
    assert torch.equal(logits(good), logits(model))
    parts = "layers.0.self_attn.q_proj.weight share.B lora_layers_mlp_up_proj.A model.norm.weight"
    for part in parts.split():
        cut = {k: v for k, v in state.items() if k != named(state, part)}
        with pytest.raises(CheckpointError):
            tf.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=cut)


@pytest.mark.parametrize("keep", [0, 5, 400, 0.5, 0.99])
def test_a_cut_file(keep, folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(Exception) as caught:  # noqa: B017 - the kind is checked below
        load(folder)
    assert isinstance(caught.value, ShareError) and "model.safetensors" in str(caught.value)


def test_a_cut_shard(tmp_path):
    shared(build("llama")).save_pretrained(tmp_path, max_shard_size="8KB")
    file = sorted(tmp_path.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=file.name):
        load(tmp_path)


def arrange(values):
    return next(s for s in values["plan"]["steps"] if s["step"] == "arrange")


def generate(values):
    return next(s for s in values["plan"]["steps"] if s["step"] == "generate")


BAD = {
    "no plan": (lambda q: q.pop("plan"), PlanError),
    "no steps": (lambda q: q["plan"].pop("steps"), PlanError),
    "a key": (lambda q: q.update(extra=1), PlanError),
    "a key of the plan": (lambda q: q["plan"].update(stesp=[]), PlanError),
    "a key of a step": (lambda q: arrange(q).update(ordre=[0]), PlanError),
    "a version": (lambda q: q["plan"].update(version=99), PlanError),
    "source form": (lambda q: q.update(plan=SharePlan.from_dict(q["plan"]).source().to_dict()), PlanError),
    "another form": (lambda q: q["plan"].update(form="third"), PlanError),
    "missing layers": (lambda q: arrange(q).update(order=[0, 0, 9]), ShareError),
    "too many layers": (lambda q: arrange(q).update(order=[0, 0, 2, 3]), ShareError),
    "a negative layer": (lambda q: arrange(q).update(order=[0, -1, 2]), PlanError),
    "a later layer": (lambda q: arrange(q).update(order=[1, 0, 2]), ShareError),
    "a cycle": (lambda q: arrange(q).update(order=[1, 2, 0]), ShareError),
    "a text": (lambda q: arrange(q).update(order="012"), PlanError),
    "too long": (lambda q: arrange(q).update(order=[0] * 30_000), PlanError),
    "a stack": (lambda q: (arrange(q).update(stack="h"), arrange(q)["origin"].update(stack="h")), SiteError),
    "another site": (lambda q: generate(q).update(sites=["layers.0.mlp.nothing"]), SiteError),
    "no rule": (lambda q: generate(q).update(rule="high_rank"), PlanError),
    "a rule's key": (lambda q: generate(q)["args"].update(rank_of_it=2), PlanError),
    "a petabyte": (lambda q: generate(q)["args"].update(r=10**13), PlanError),
    "a long number": (lambda q: generate(q)["args"].update(r=10**400), PlanError),
    "no number": (lambda q: generate(q)["args"].update(r="2"), PlanError),
    "a group twice": (lambda q: q["plan"]["steps"].append(generate(q)), PlanError),
    "the guard's group": (lambda q: generate(q).update(group="guard"), PlanError),
    "a path as group": (lambda q: generate(q).update(group="a.b"), PlanError),
    "steps in steps": (lambda q: arrange(q)["origin"].update(origin={"stack": 1, "order": [0]}), PlanError),
    "inner itself": (lambda q: q.update(inner={"quant_method": "hf_share"}), PlanError),
    "inner unknown": (lambda q: q.update(inner={"quant_method": "not_there"}), ShareError),
    "inner no object": (lambda q: q.update(inner=[1]), ShareError),
    "another origin": (lambda q: arrange(q)["origin"].update(order=[0, 1, 2]), ShareError),
    "no dictionary": (lambda q: q.update(plan=[1, 2]), PlanError),
    "less ties": (lambda q: arrange(q).update(order=[0, 1, 2], origin=None), CheckpointError),
    "other private": (lambda q: arrange(q).update(private=[]), ShareError),
    "a store less": (lambda q: q["plan"]["steps"].remove(generate(q)), CheckpointError),
    "a shorter list of sites": (lambda q: generate(q)["sites"].pop(), CheckpointError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_changed_plan(name, folder):
    change, error = BAD[name]
    change_plan(folder, change)
    with pytest.raises(error) as caught:
        load(folder)
    assert isinstance(caught.value, ValueError) and len(str(caught.value)) < 2000

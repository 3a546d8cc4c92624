# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes train what one process trains: DDP, FSDP2 and accelerate over ties, stores and adapters.

All cases run in one launch, since starting processes costs more than the cases; each test reads its result.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from helpers import elements, shared, stored, two_processes
from torch import nn
from zoo import build, logits

import hf_share
from hf_share.train.fsdp import blueprint, fsdp_units


pytestmark = pytest.mark.xdist_group("distributed")  # one launch for all

WORKER = Path(__file__).parent / "workers" / "distributed.py"
KINDS = ("fold", "lora", "both", "adapter")
CASES = [f"{kind}:{way}" for way in ("ddp", "fsdp2", "fsdp2_root") for kind in KINDS]
CASES += ["both:fsdp2_load", "fold:accelerate", "adapter:accelerate", "both:accelerate_units"]


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    two_processes(WORKER, folder, *CASES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_of_one_process(case, launch):
    result = json.loads((launch / "results.json").read_text())[case]
    assert "failed" not in result, result["failed"] + result["trace"]
    assert result["losses"] == pytest.approx(result["expected"], abs=1e-5)
    if not case.endswith(":fsdp2_load"):  # which goes on from a trained file
        assert result["losses"][-1] < result["losses"][0]
    if "error" in result:
        assert result["keys"] and result["error"] < 1e-5
    assert result.get("sharing", True)
    if "units" in result and case.endswith(":fsdp2"):
        assert result["units"] == ([2, 1] if case[:4] in ("fold", "both") else [1, 1, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fold", "lora", "both"])
def test_a_gathered_file(kind, launch):
    """Saved from two sharded processes: each tensor once, and the placeholder."""
    result = json.loads((launch / "results.json").read_text())[f"{kind}:fsdp2"]
    assert elements(launch / kind) == result["unique"] + 1
    assert sorted(stored(launch / kind).values()).count((1,)) == 1
    again = tf.AutoModelForCausalLM.from_pretrained(launch / kind)
    model = shared(build("llama"), kind)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert not torch.equal(logits(again), logits(model))  # it was trained


def test_units():
    layers = [[0, 1], [2]]
    model = shared(build("llama"), "both")
    assert fsdp_units(model) == [[model.model.layers[i] for i in unit] for unit in layers]
    plain = build("llama")
    assert fsdp_units(plain) == [[layer] for layer in plain.model.layers]
    plain.model.layers[2].mlp.down_proj.weight = plain.model.layers[0].mlp.down_proj.weight
    assert [len(unit) for unit in fsdp_units(plain)] == [2, 1, 1]
    plain.model.layers[3].input_layernorm.weight = plain.model.norm.weight
    assert [len(unit) for unit in fsdp_units(plain)] == [2, 1]
    assert fsdp_units(nn.Linear(2, 2)) == []


def test_recipes_refuse_what_they_could_not_gather():
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    with pytest.raises(hf_share.Refused, match="FSDP2"):
        blueprint(SimpleNamespace(accelerator=SimpleNamespace(state=state)))

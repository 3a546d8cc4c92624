# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Neural low-rank search: what `choose` leaves of an elastic adapter is a LoRA that stock peft loads, with a
rank of its own at each weight.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

import hf_share
from hf_share import ConfigError, ElasticConfig, FoldConfig, Generate, Refused, ShareConfig, SharePlan
from hf_share.elastic import bindings


RANKS = [2, 3, 4]
# a process in which hf_share cannot be imported
STOCK = """
import sys
sys.modules["hf_share"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, lora, ids, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(ids)).logits, out)
"""


def spread(model):
    gen = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".share." in name or "hf_share_" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return model.eval()


def elastic(how, dense, **args):
    config = ElasticConfig(preset="nls", ranks=RANKS, **args)
    torch.manual_seed(3)
    return spread((get_peft_model if how == "peft" else hf_share.share)(copy.deepcopy(dense), config))


def drawn(model, seed=0):
    """A rank for each site."""
    names = dict.fromkeys(b.site.name for b in bindings(model))
    ranks = {name: random.Random(f"{seed} {name}").choice(RANKS) for name in names}
    hf_share.choose(model, rank=ranks)
    return ranks


@pytest.mark.parametrize("how, arch", [("peft", "llama"), ("share", "gpt2")])
def test_stock_peft_loads_a_rank_for_each_weight(how, arch, tmp_path):
    dense = zoo.build(arch, **{"llama": {"num_hidden_layers": 12}, "gpt2": {"n_layer": 12}}[arch])
    dense.save_pretrained(tmp_path / "dense")
    model = elastic(how, dense, lora_alpha=10)  # a scale that does not round away when it is folded
    ranks = drawn(model)
    assert len(set(ranks.values())) == 3 and len(ranks) == {"llama": 84, "gpt2": 48}[arch]
    ids = zoo.inputs(dense)["input_ids"]
    out = zoo.logits(model, input_ids=ids)
    assert (out - zoo.logits(dense, input_ids=ids)).abs().max() > 1e-2
    hf_share.to_lora(model, tmp_path / "lora")

    torch.save(ids, tmp_path / "ids")
    arguments = [str(tmp_path / name) for name in ("dense", "lora", "ids", "logits")]
    done = subprocess.run([sys.executable, "-c", STOCK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "missing" not in done.stderr.lower()
    assert (torch.load(tmp_path / "logits") - out).abs().max() <= 1e-5

    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    scale = values["lora_alpha"] / values["r"]
    assert values["peft_type"] == "LORA" and scale == pytest.approx(2.5)
    assert values["alpha_pattern"] == {key: scale * rank for key, rank in values["rank_pattern"].items()}
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    stem = "base_model.model." + ("model." if arch == "llama" else "transformer.")
    for name, rank in ranks.items():
        assert stored[f"{stem}{name}.lora_A.weight"].shape[0] == rank
        assert stored[f"{stem}{name}.lora_B.weight"].shape[1] == rank
    assert len(stored) == 2 * len(ranks)


def test_a_pattern_is_of_one_weight():
    """Not of `layers.11` for `layers.1`, nor of the same path further down, nor with any letter for a dot."""
    model = elastic("peft", zoo.build("llama", num_hidden_layers=12))
    config, _ = hf_share.to_lora(hf_share.choose(model, rank={"layers.1.self_attn.q_proj": 2}))
    assert (config.r, config.lora_alpha, list(config.alpha_pattern.values())) == (4, 8, [4])
    path = "model.layers.1.self_attn.q_proj"
    others = [n for n, _ in model.get_base_model().named_modules() if n != path]
    others += [f"encoder.{path}", "model.layers.11.self_attn.q_proj", "model.layers.1.self_attn_q_proj"]
    (key,) = config.rank_pattern
    assert config.rank_pattern[key] == 2 and get_pattern_key([key], path) == key
    assert not [n for n in others if get_pattern_key([key], n) == key]


def test_a_saved_elastic_model_is_exported_at_its_choice(tmp_path):
    dense = zoo.build("llama")
    model = elastic("share", dense, target_modules=["q_proj", "up_proj"])
    ranks = drawn(model, seed=2)
    model.save_pretrained(tmp_path / "elastic")
    hf_share.export(str(tmp_path / "elastic"), "lora", tmp_path / "lora")
    lora = PeftModel.from_pretrained(copy.deepcopy(dense), tmp_path / "lora")
    assert (zoo.logits(lora) - zoo.logits(model)).abs().max() <= 1e-5
    asked = {lora.get_submodule(f"model.model.{name}").r["default"] for name in ranks}
    assert asked == set(ranks.values())


def test_scales_that_differ_are_folded():
    """`lora_alpha / r` is right for each weight, whether or not a reader knows patterns."""
    dense = zoo.build("llama")
    names = [tuple(f"layers.{i}.mlp.{role}_proj" for i in range(4)) for role in ("gate", "up", "down")]
    steps = (
        Generate(rule="low_rank", sites=names[0] + names[1], group="one", args={"r": 2, "scale": 3.0}),
        Generate(rule="low_rank", sites=names[1] + names[2], group="two", args={"r": 3, "scale": 0.6}),
    )
    model = spread(get_peft_model(copy.deepcopy(dense), ShareConfig(plan=SharePlan(steps))))
    config, state = hf_share.to_lora(model)
    assert config.lora_alpha == config.r and config.alpha_pattern == config.rank_pattern
    assert sorted({v.shape[0] for n, v in state.items() if "lora_A" in n}) == [2, 3, 5]
    torch.testing.assert_close(zoo.logits(model.merge_and_unload()), zoo.logits(by_hand(dense, state)))


def by_hand(dense, state):
    dense = copy.deepcopy(dense)
    with torch.no_grad():
        for name in {n.rpartition(".lora_")[0] for n in state}:
            delta = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            dense.get_parameter(name.removeprefix("base_model.model.") + ".weight").add_(delta)
    return dense


@pytest.mark.parametrize(
    "config, error, message",
    [
        (ElasticConfig(group_size=16), Refused, r"whole model.*rule 'nested'\); hf_share.materialize"),
        (FoldConfig(group_size=2), Refused, r"whole model.*\(Arrange\)"),
        (
            ShareConfig(methods=[FoldConfig(group_size=2), ElasticConfig(preset="nls", ranks=RANKS)]),
            Refused,
            r"whole model.*\(Arrange\)",
        ),
        (ElasticConfig(preset="nls", ranks=RANKS, sparsity=0.5), Refused, r"\(rule 'sparse_delta'\)"),
        (None, ConfigError, "a peft model, or a model that hf_share.share added deltas to"),
    ],
)
def test_what_is_no_lora_says_what_to_do(config, error, message, tmp_path):
    model = zoo.build("llama")
    model = model if config is None else hf_share.share(model, config)
    with pytest.raises(error, match=message):
        hf_share.to_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()

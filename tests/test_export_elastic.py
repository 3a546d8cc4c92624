# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A chosen subnet in every format: stock classes load it without hf_share and compute the same, its file has
the bytes that were predicted, and what the conversion costs is measured and told.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_share
from hf_share import ConfigError, Refused, cli, registry
from hf_share.backends import BACKENDS, requantised
from hf_share.config import ShareConfig
from hf_share.costs import Costs
from hf_share.elastic import bindings
from hf_share.export import FORMATS
from hf_share.packed import integer_grid, packed
from hf_share.train.pretrain import train_tokenizer
from hf_share.train.text import windows


for _name in ("torchao", "compressed_tensors"):
    pytest.importorskip(_name, reason="the extra `quant` is not installed")

WHOLE = ("dense", "compressed-tensors", *BACKENDS)
WORKER = Path(__file__).parent / "workers" / "stock.py"
STORY = "Once upon a time there was a small dog. The dog liked to run and to play. One day a big cat sat. "
TASK = """task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ITEMS = [
    {"query": "The dog", "choices": [" liked to run", " xq zz"], "gold": 0},
    {"query": "Once upon", "choices": [" zz qq", " a time"], "gold": 1},
]


def trained(tokenizer, **changes) -> torch.nn.Module:
    """A tiny model that knows the story, so that coarse weights cost something."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = zoo.build("llama", vocab_size=len(tokenizer), **{**sizes, **changes}).train()
    rows = windows(tokenizer, [STORY * 40], 24)[:32]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An elastic model with a subnet of random widths, and that subnet in every format."""
    root = tmp_path_factory.mktemp("subnets")
    tokenizer = train_tokenizer([STORY * 20], vocab_size=280, context=64)
    config = hf_share.ElasticConfig(bits=[2, 3, 4, 8], group_size=32, r_private=1, r_shared=1)
    model = hf_share.share(trained(tokenizer), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".share." in name:
                value.add_(0.02 * torch.randn(value.shape))
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(root / "elastic")
    tokenizer.save_pretrained(root / "elastic")
    costs, draw = Costs.of(model), random.Random(0)
    mixed = {unit.name: draw.choice([2, 3, 4, 8]) for unit in costs.units}
    rows = [("mixed", mixed, 1.0), ("wide", costs.uniform(8), 0.5)]
    registry.write(root / "elastic", [
        {
            "name": name, "choices": {"bits": costs.expand(bits)}, "mean_bits": costs.mean_bits(bits),
            "nll": nll,
        }
        for name, bits, nll in rows
    ])  # fmt: skip
    told = {name: hf_share.export(str(root / "elastic"), name, root / name, name="mixed") for name in WHOLE}
    return root, told


@pytest.fixture(scope="module")
def stock(place):
    """What a process without hf_share finds in the folders."""
    root, _ = place
    (root / "tasks").mkdir()
    (root / "tiny.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (root / "tasks" / "tiny.yaml").write_text(TASK.format(data=root / "tiny.jsonl"))
    command = [sys.executable, str(WORKER), str(root / "stock.pt"), *(str(root / name) for name in WHOLE)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(root / "stock.pt")


def subnet(root):
    model = tf.AutoModelForCausalLM.from_pretrained(root / "elastic").eval()
    return hf_share.choose(model, name="mixed")


def converted(root, name, tmp_path):
    """The converted model in this process."""
    if name == "dense":
        return subnet(root)
    if name == "compressed-tensors":
        return packed(subnet(root), tmp_path)
    return requantised(subnet(root), BACKENDS[name]).model


@pytest.mark.parametrize("name", WHOLE)
def test_stock_classes_compute_what_was_converted(place, stock, tmp_path, name):
    found = stock[name]
    ours = zoo.logits(converted(place[0], name, tmp_path), input_ids=found["ids"])
    assert found["class"] == "LlamaForCausalLM" and (found["logits"] - ours).abs().max() <= 1e-4
    assert "hf_share" not in (place[0] / name / "config.json").read_text()


@pytest.mark.parametrize("name", BACKENDS)
def test_codes_of_a_backend_are_bit_equal_in_the_file(place, tmp_path, name):
    ours = converted(place[0], name, tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(place[0] / name)
    count = 0
    for key, value in ours.state_dict().items():
        value, theirs = (getattr(v, "qdata", v) for v in (value, loaded.state_dict()[key]))
        count += not value.is_floating_point() and value.numel() > 100
        assert torch.equal(value, theirs), key
    assert count == 14


def test_packed_codes_are_bit_equal_in_the_file(place):
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    root, _ = place
    model, file = subnet(root), load_file(root / "compressed-tensors" / "model.safetensors")
    plain, costs = hf_share.materialize(model), Costs.of(model)
    chosen = registry.find(registry.read(root / "elastic" / registry.FILE), "mixed")["choices"]["bits"]
    assert {*chosen.values()} == {2, 3, 4, 8} and len(costs.units) == 14
    for site, bits in chosen.items():
        W = plain.get_submodule(f"model.{site}").weight
        codes = unpack_from_int32(file[f"model.{site}.weight_packed"], bits, W.shape)
        assert torch.equal(codes, integer_grid(W, bits, 32).codes)


@pytest.mark.parametrize("name", WHOLE)
def test_files_have_the_bytes_that_were_predicted(place, name):
    root, told = place
    size = (root / name / "model.safetensors").stat().st_size
    assert told[name].bytes == size and abs(told[name].predicted / size - 1) <= 0.05
    assert told[name].nll_before is None and told[name].loss is None and told[name].left == ()
    kept = json.loads((root / name / "generation_config.json").read_text())
    assert kept["max_new_tokens"] == 7 and (root / name / "tokenizer.json").is_file()


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra `eval` is not installed")
@pytest.mark.parametrize("name", WHOLE)
def test_lm_eval_scores_them(stock, name):
    assert len(stock[name]["scores"]) == len(ITEMS) and stock[name]["scores"] == stock["dense"]["scores"]


def test_what_a_conversion_costs_is_told(place, tmp_path):
    source, text = str(place[0] / "elastic"), STORY * 12
    with pytest.warns(UserWarning, match="costs 0.* nats a token"):
        two = hf_share.export(source, "compressed-tensors", tmp_path / "two", text=text, bits=2)
    assert two.loss > 0.02 and two.loss == two.nll_after - two.nll_before
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "two")
    assert hf_share.text_perplexity(loaded, tokenizer, text).nll == two.nll_after
    for name in ("dense", "bnb-int8", "torchao"):
        fine = hf_share.export(source, name, tmp_path / name, text=text, budget="9 bits")
        assert abs(fine.loss) <= (1e-6 if name == "dense" else 0.02)


def test_weights_that_a_format_cannot_hold_are_named(tmp_path):
    tokenizer = train_tokenizer([STORY], vocab_size=270, context=64)
    narrow = zoo.build("llama", hidden_size=64, intermediate_size=44, vocab_size=len(tokenizer))
    narrow.save_pretrained(tmp_path / "narrow")
    done = hf_share.export(str(tmp_path / "narrow"), "bnb-nf4", tmp_path / "out")
    assert done.predicted == done.bytes and len(done.left) == 3 * zoo.LAYERS
    assert all(".mlp." in name for name in done.left)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert zoo.logits(loaded).isfinite().all()  # an assertion of bitsandbytes on some CPUs otherwise
    zoo.build("gpt2").save_pretrained(tmp_path / "gpt2")
    for name in BACKENDS:
        with pytest.raises(Refused, match="none of the 16 weights .conv1d."):
            hf_share.export(str(tmp_path / "gpt2"), name, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    zoo.build("t5", d_model=64, d_ff=128, d_kv=16).save_pretrained(tmp_path / "t5")
    done = hf_share.export(str(tmp_path / "t5"), "bnb-nf4", tmp_path / "t5-nf4")
    assert [name.endswith(".wo") for name in done.left] == [True] * 2 * zoo.LAYERS  # transformers keeps it
    assert abs(done.predicted / done.bytes - 1) <= 0.05


def test_only_what_has_codes_is_quantised(tmp_path):
    model = zoo.build("llama", hidden_size=64, intermediate_size=128)
    config = hf_share.ElasticConfig(group_size=32, target_modules=["q_proj", "up_proj"])
    shared = hf_share.share(model, config)
    for name, backend in BACKENDS.items():
        made = requantised(shared, backend)
        made.model.save_pretrained(tmp_path / name)
        loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        coded = {k for k, v in loaded.state_dict().items() if v.dtype in (torch.int8, torch.uint8)}
        coded |= {k for k, v in loaded.state_dict().items() if hasattr(v, "qdata")}
        assert {key.split(".")[4] for key in coded} == {"q_proj", "up_proj"}


def ranked(targets: str = r".*layers\.[012]\..*") -> torch.nn.Module:
    """Four layers, of which the second is the first to go and the last has no codes."""
    model = zoo.build("llama", hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        for part in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            part.weight.mul_(1e-3)
    config = hf_share.ElasticConfig(bits=[2, 4, 8], group_size=32, depth=[2, 3], target_modules=targets)
    return hf_share.share(model, config, calibration=[zoo.inputs(model)["input_ids"]])


def looped() -> torch.nn.Module:
    """Two layers, twice."""
    model = zoo.build("llama", hidden_size=64, intermediate_size=128)
    codes = hf_share.ElasticConfig(bits=[2, 4, 8], group_size=32)
    return hf_share.share(model, ShareConfig(methods=[hf_share.RecursiveConfig(num_loops=2), codes]))


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "dense"])
@pytest.mark.parametrize(
    ("make", "choice", "widths"),
    [
        (ranked, {"depth": 3}, {0: 8, 2: 4}),
        (looped, {"loops": 1}, {0: 8, 1: 4}),
    ],
)
def test_at_fewer_depths_each_weight_keeps_its_own_codes(tmp_path, make, choice, widths, name):
    model = make()
    model.save_pretrained(tmp_path / "elastic")
    coded = [b.site for b in bindings(model) if b.rule.frozen]
    choice = {**choice, "bits": {s.name: widths.get(s.depth, 2) for s in coded}}
    done = hf_share.export(str(tmp_path / "elastic"), name, tmp_path / "out", **choice)
    assert abs(done.predicted / done.bytes - 1) <= 0.05 and done.left == ()
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    far = (zoo.logits(loaded) - zoo.logits(hf_share.choose(model, **choice))).abs().max()
    assert far <= {"compressed-tensors": 0.12, "bnb-nf4": 0.2}.get(name, 0.02)

    file = load_file(tmp_path / "out" / "model.safetensors")
    whole = (torch.int8, torch.uint8, torch.int32)
    codes = {k: v for k, v in file.items() if v.dtype in whole and v.dim() == 2}
    assert {int(key.split(".layers.")[1][0]) for key in codes} == {0, 1}  # the plain model's depths
    if name == "compressed-tensors":
        bits = {key.split(".layers.")[1][0]: 32 * v.shape[1] for key, v in codes.items() if "q_proj" in key}
        assert bits == {"0": 8 * 64, "1": 4 * 64}


def test_codes_in_no_active_depth_are_refused(tmp_path):
    ranked(r".*layers\.1\..*").save_pretrained(tmp_path / "elastic")
    for name in ("compressed-tensors", *BACKENDS):
        with pytest.raises(Refused, match="no layer that is active has codes"):
            hf_share.export(str(tmp_path / "elastic"), name, tmp_path / "out", depth=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "choice", "message"),
    [
        ("elastic", {"bits": 5}, "bits=5 is not offered; this model has 2, 3, 4, 8"),
        ("elastic", {"name": "mixd"}, "no subnet is called 'mixd'; did you mean 'mixed'"),
        ("elastic", {"budget": "1 bits"}, "no subnet within '1 bits'"),
        ("elastic", {"bits": 3, "name": "mixed"}, "not several"),
        ("dense", {"bits": 3}, "unknown choice 'bits'"),
        ("dense", {"name": "mixed"}, "no named subnets"),
    ],
)
def test_what_is_not_offered_is_an_error(place, tmp_path, source, choice, message):
    with pytest.raises(ConfigError, match=message):
        hf_share.export(str(place[0] / source), "dense", tmp_path / "out", **choice)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_codes_has_nothing_to_pack(place, tmp_path):
    with pytest.raises(ConfigError, match="no codes"):
        hf_share.export(str(place[0] / "dense"), "compressed-tensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(place, tmp_path):
    root, told = place
    (tmp_path / "story.txt").write_text(STORY * 6)

    def run(*arguments):
        words = ["export", str(root / "elastic"), "--format", "compressed-tensors", *map(str, arguments)]
        return CliRunner().invoke(cli.app, words, catch_exceptions=False)

    done = run("--bits", 2, "--text", tmp_path / "story.txt", "-o", tmp_path / "two", "--json")
    numbers = json.loads(done.stdout)
    assert numbers["loss"] > 0.02 and numbers["predicted_bytes"] == numbers["bytes"]
    assert "warning: the conversion costs" in done.stderr
    done = run("--choose", "mixed", "-o", tmp_path / "mixed")
    assert done.exit_code == 0 and "symmetric grid" in done.stderr and "warning" not in done.stderr
    files = [folder / "model.safetensors" for folder in (tmp_path / "mixed", root / "compressed-tensors")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {"dense", "per-layer", "lora", "gguf", *WHOLE} == set(FORMATS)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One size cut out of the files of an elastic checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as tf
import zoo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hf_share
from hf_share import CheckpointError, ConfigError, ElasticConfig, Refused
from hf_share.cli import app
from hf_share.hub import slicer
from hf_share.hub.slicer import slice_checkpoint
from hf_share.registry import remember


X = torch.randint(3, zoo.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model(X).logits


def save(folder, arch="llama", shard="50GB", **args):
    config = ElasticConfig(**{"bits": [], "ffn": [0.5], "kv_groups": [1], "group_size": 16, **args})
    model = hf_share.share(zoo.build(arch), config).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.parametrize("shards", ["50GB", "10KB"], ids=["one file", "many"])
@pytest.mark.parametrize("bits", [[], [2, 3]], ids=["plain weights", "codes"])
def test_what_is_cut_is_what_from_pretrained_reads(bits, shards, tmp_path):
    save(tmp_path / "whole", shard=shards, bits=bits)
    chosen = {"ffn": 0.5, "kv_groups": 1, **({"bits": 2} if bits else {})}
    out = slice_checkpoint(tmp_path / "whole", tmp_path / "small", shard=shards, progress=False, **chosen)
    config = hf_share.subnet_config(tmp_path / "whole", **chosen)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", config=config)
    again = tf.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(again), logits(small))
    assert hf_share.choices(again) == {}
    again.save_pretrained(tmp_path / "again")
    sizes = [sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (out, tmp_path / "again")]
    assert abs(sizes[0] - sizes[1]) < 0.2 * sizes[1], "the size of the model, but for headers"
    if shards == "10KB":
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1


def test_a_plain_one_loads_by_stock_classes(tmp_path):
    model = save(tmp_path / "whole", depth=[3], order="none")
    out = slice_checkpoint(
        tmp_path / "whole", tmp_path / "small", plain=True, ffn=0.5, kv_groups=1, depth=3, progress=False
    )
    plain = tf.AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is tf.LlamaForCausalLM and not hasattr(plain.config, "quantization_config")
    assert (plain.config.intermediate_size, plain.config.num_hidden_layers) == (24, 3)
    with hf_share.chosen(model, ffn=0.5, kv_groups=1, depth=3):
        assert torch.equal(logits(plain), logits(hf_share.materialize(model)))
    with safe_open(out / "model.safetensors", framework="pt") as f:
        assert not any("shared_stores" in key for key in f.keys())


def test_no_more_is_read_than_is_written(tmp_path, monkeypatch):
    save(tmp_path / "whole")
    read = []
    first = slicer._first

    def counted(*args):
        value = first(*args)
        read.append(value.numel())
        return value

    monkeypatch.setattr(slicer, "_first", counted)
    out = slice_checkpoint(tmp_path / "whole", tmp_path / "small", ffn=0.5, progress=False)
    assert sum(read) == sum(t.numel() for t in load_file(out / "model.safetensors").values())


def test_a_subnet_by_name(tmp_path):
    model = save(tmp_path / "whole")
    row = {"name": "half", "choices": {"ffn": 0.5}, "bytes": 1, "mean_bits": None, "nll": 1.0, "split": "x"}
    remember(model, [row])
    model.save_pretrained(tmp_path / "whole")
    out = slice_checkpoint(tmp_path / "whole", tmp_path / "small", name="half", progress=False)
    again = tf.AutoModelForCausalLM.from_pretrained(out)
    assert again.model.layers[0].mlp.up_proj.weight.shape == (24, 32)


def test_sizes_that_differ_are_no_plain_file(tmp_path):
    save(tmp_path / "whole")
    sizes = {"layers.0.mlp.down_proj": 0.5}
    with pytest.raises(Refused, match="one size for all layers"):
        slice_checkpoint(tmp_path / "whole", tmp_path / "small", plain=True, ffn=sizes, progress=False)
    assert not (tmp_path / "small").exists()
    out = slice_checkpoint(tmp_path / "whole", tmp_path / "small", ffn=sizes, progress=False)
    layers = tf.AutoModelForCausalLM.from_pretrained(out).model.layers
    assert [layer.mlp.up_proj.out_features for layer in layers] == [24, 48, 48, 48]


def test_what_does_not_fit_is_refused(tmp_path):
    save(tmp_path / "codes", bits=[2, 3])
    save(tmp_path / "whole")
    zoo.build("llama").save_pretrained(tmp_path / "dense")
    for source, args, error, message in (
        ("codes", {"plain": True, "ffn": 0.5}, Refused, "rules make weights"),
        ("whole", {"ffn": 0.7}, hf_share.ShareError, "0.7"),
        ("whole", {"fnn": 0.5}, ConfigError, "did you mean 'ffn'"),
        ("whole", {}, ConfigError, "give one of name, budget and choices"),
        ("whole", {"depth": 3}, ConfigError, "plain=True leaves layers out"),
        ("dense", {"ffn": 0.5}, ConfigError, "no shared checkpoint"),
        ("dense", {"ffn": 0.5, "plain": True}, ConfigError, "no shared checkpoint"),
    ):
        with pytest.raises(error, match=message):
            slice_checkpoint(tmp_path / source, tmp_path / "small", progress=False, **args)
        assert not (tmp_path / "small").exists()


def test_a_file_that_lacks_something_is_refused(tmp_path):
    save(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 'model.layers.1.mlp.up_proj.weight'"):
        slice_checkpoint(tmp_path / "whole", tmp_path / "small", ffn=0.5, progress=False)
    save_file({**tensors, name: tensors[name][:7].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is \[7, 32\], its plan asks for \[24, 32\]"):
        slice_checkpoint(tmp_path / "whole", tmp_path / "small", ffn=0.5, progress=False)
    assert not (tmp_path / "small").exists()


def test_the_command(tmp_path):
    save(tmp_path / "whole")
    call = ["slice", tmp_path / "whole", "-o", tmp_path / "small", "--ffn", "0.5", "--plain", "--json"]
    done = CliRunner().invoke(app, list(map(str, call)))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    shutil.rmtree(tmp_path / "whole")
    assert tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.intermediate_size == 24

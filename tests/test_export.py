# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Exports load with stock libraries and compute the same; what cannot be exported leaves no folder."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from typer.testing import CliRunner

import hf_share
from hf_share import Refused, cli
from hf_share.hub.load import load_model
from hf_share.train.pretrain import train_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    tokenizer = train_tokenizer(["a small dog " * 40], vocab_size=270, context=64)
    model = zoo.build("llama", vocab_size=len(tokenizer))
    model.save_pretrained(root / "dense")
    tokenizer.save_pretrained(root / "dense")
    shared = hf_share.share(model, hf_share.FoldConfig(group_size=2))
    shared.save_pretrained(root / "small")
    tokenizer.save_pretrained(root / "small")
    shared.save_pretrained(root / "bare")
    base = tf.AutoModelForCausalLM.from_pretrained(root / "dense")
    config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    get_peft_model(base, config).save_pretrained(root / "adapter")
    return root


def logits(model) -> torch.Tensor:
    return zoo.logits(model.eval(), input_ids=torch.arange(3, 12)[None])


def test_dense_is_a_stock_checkpoint(place, tmp_path):
    done = hf_share.export(str(place / "small"), "dense", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and done.command is None
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    shared = tf.AutoModelForCausalLM.from_pretrained(place / "small")
    assert torch.equal(logits(plain), logits(shared)) and hf_share.describe(plain).plan is None
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size


def test_dense_of_an_adapter_has_it_merged(place, tmp_path):
    hf_share.export(str(place / "adapter"), "dense", tmp_path / "out")
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = tf.AutoModelForCausalLM.from_pretrained(place / "dense")
    adapted = PeftModel.from_pretrained(base, place / "adapter")
    torch.testing.assert_close(logits(plain), logits(adapted), atol=1e-5, rtol=1e-5)


def test_lora_is_stock_peft_s(place, tmp_path):
    hf_share.export(str(place / "adapter"), "lora", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    loaded = [
        PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(place / "dense"), folder)
        for folder in (place / "adapter", tmp_path / "out")
    ]
    torch.testing.assert_close(*map(logits, loaded), atol=1e-5, rtol=1e-5)


def test_gguf_is_a_folder_and_a_command(place, tmp_path):
    done = hf_share.export(str(place / "small"), "gguf", tmp_path / "my out")
    words = shlex.split(done.command)
    assert words[:3] == ["python", "llama.cpp/convert_hf_to_gguf.py", str(tmp_path / "my out")]
    assert words[3:] == ["--outfile", str(tmp_path / "my out" / "my out-f32.gguf"), "--outtype", "f32"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "my out").iterdir()
    }


@pytest.mark.parametrize(
    ("source", "format", "message"),
    [("small", "lora", "whole model"), ("bare", "gguf", "tokenizer"), ("small", "guff", "mean 'gguf'")],
)
def test_what_cannot_be_exported_leaves_nothing(place, tmp_path, source, format, message):
    with pytest.raises((Refused, hf_share.ConfigError), match=message):
        hf_share.export(str(place / source), format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(place, tmp_path):
    arguments = ["export", place / "small", "--format", "gguf", "-o", tmp_path / "out"]
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.startswith("python llama.cpp/convert_hf_to_gguf.py")
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--json", "--force"], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size and told["command"]


def test_layers_of_their_own_sizes_are_exported_and_loaded_by_name(tmp_path):
    model = hf_share.share(zoo.build("llama"), hf_share.ElasticConfig(bits=[], ffn=[0.5]))
    hf_share.choose(model, ffn={"layers.2.mlp.down_proj": 0.5})
    model.save_pretrained(tmp_path / "elastic")
    done = hf_share.export(str(tmp_path / "elastic"), "per-layer", tmp_path / "uneven")
    assert done.predicted == done.bytes and "no Auto class" in done.note
    plain = load_model(str(tmp_path / "uneven"))
    assert [layer.mlp.up_proj.out_features for layer in plain.model.layers] == [48, 48, 24, 48]
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, atol=1e-6, rtol=1e-5)

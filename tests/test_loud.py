# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A shared checkpoint raises where hf_share is not imported, however it was written and is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
import torch
import transformers as tf
from helpers import elements, pointers, shared, stored, trainer, unique
from transformers.quantizers import auto
from zoo import build, logits

import hf_share


KINDS = ("fold", "lora", "both")


@pytest.fixture
def forget(monkeypatch):
    """Call it, and transformers is as it would be without hf_share."""

    def call():
        monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "hf_share")
        monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "hf_share")

    return call


def write_bare(model, folder):
    model.save_pretrained(folder)


def write_state_dict(model, folder):
    model.save_pretrained(folder, state_dict=model.state_dict())


def write_gathered(model, folder):
    """As FSDP hands it over: every tensor in its own memory."""
    model.save_pretrained(folder, state_dict={k: v.detach().clone() for k, v in model.state_dict().items()})


def write_sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def write_trainer(model, folder):
    trainer(model, folder).save_model()


class Hub:
    """What `push_to_hub` asks of the Hub's client; a commit lands in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def create_repo(self, repo_id, **kwargs):
        return types.SimpleNamespace(repo_id=repo_id)

    def file_exists(self, *args, **kwargs):
        return False

    def create_commit(self, repo_id, operations, **kwargs):
        self.folder.mkdir(exist_ok=True)
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / operation.path_in_repo).write_bytes(file.read())


def write_pushed(model, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_share.hub.push.HfApi", lambda token: Hub(folder))
        model.push_to_hub("someone/shared")


WRITERS = (write_bare, write_state_dict, write_gathered, write_sharded, write_trainer, write_pushed)


def is_loud(cls, folder) -> None:
    with pytest.raises((RuntimeError, ValueError, OSError)):
        cls.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "write"),
    [("both", write) for write in WRITERS] + [("fold", write_bare), ("lora", write_bare)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_stock_raises_and_hf_share_reloads(kind, write, tmp_path, forget):
    model = shared(build("llama"), kind)
    before = logits(model)
    write(model, tmp_path)
    assert elements(tmp_path) == unique(model) + 1  # the placeholder
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), before)
    assert pointers(again) == pointers(model)
    headless = tf.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head(headless(input_ids=torch.arange(6)[None]).last_hidden_state),
                       again(input_ids=torch.arange(6)[None]).logits)  # fmt: skip
    forget()
    for cls in (tf.AutoModelForCausalLM, tf.AutoModel, tf.AutoModelForSequenceClassification):
        is_loud(cls, tmp_path)


def test_from_a_headless_file(tmp_path, forget):
    model = shared(build("llama"))
    model.base_model.save_pretrained(tmp_path / "inner")
    model.save_pretrained(tmp_path / "whole")
    tf.AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "headless")
    assert stored(tmp_path / "inner") == stored(tmp_path / "headless")
    ids = torch.arange(6)[None]
    for name in ("inner", "headless"):
        again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(again.model(ids).last_hidden_state, model.model(ids).last_hidden_state)
    forget()
    for name in ("inner", "headless"):
        is_loud(tf.AutoModel, tmp_path / name)
        is_loud(tf.AutoModelForCausalLM, tmp_path / name)


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "neox", "gemma2", "falcon", "vit", "mixtral"])
def test_architectures(name, tmp_path, forget):
    model = hf_share.share(build(name), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert elements(tmp_path) <= unique(model) + 1 + sum(b.numel() for b in model.buffers())
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), before)
    assert pointers(again) == pointers(model)
    forget()
    is_loud(type(model), tmp_path)
    is_loud(tf.AutoModel, tmp_path)


@pytest.mark.parametrize("stack", ["encoder.block", "decoder.block"])
def test_each_stack_has_its_guard(stack, tmp_path, forget):
    model = hf_share.share(build("t5"), hf_share.FoldConfig(groups=[[0], [1, 2], [3]], stack=stack))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), before)
    forget()
    is_loud(tf.AutoModelForSeq2SeqLM, tmp_path)
    if stack == "encoder.block":
        is_loud(tf.T5EncoderModel, tmp_path)  # it never looks at the decoder


def test_both_stacks(tmp_path, forget):
    stacks = ("encoder.block", "decoder.block")
    fold = [hf_share.FoldConfig(groups=[[0], [1, 2], [3]], stack=stack) for stack in stacks]
    model = hf_share.share(build("t5"), hf_share.ShareConfig(methods=fold))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert sorted(k for k in stored(tmp_path) if "guard" in k) == [
        "shared_stores.guard.weight", "shared_stores.guard.weight_1"]  # fmt: skip
    assert torch.equal(logits(tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), before)
    forget()
    is_loud(tf.T5EncoderModel, tmp_path)


def test_a_file_is_the_same_after_loading(tmp_path):
    model = shared(build("llama", tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "one")
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_removal_alone_is_plain(tmp_path, forget):
    model = hf_share.share(build("llama"), hf_share.FoldConfig(remove=[1]))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    forget()
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path)), before)


def test_a_trainer_checkpoint(tmp_path, forget):
    model = shared(build("llama"))
    trainer(model, tmp_path, steps=1, save_strategy="steps", save_steps=1).train()
    model.eval()
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert torch.equal(logits(again), logits(model))
    forget()
    is_loud(tf.AutoModelForCausalLM, tmp_path / "checkpoint-1")


STOCK = """
import json, sys
import transformers as tf
out = {}
for folder, names in json.loads(sys.argv[1]).items():
    for name in names:
        try:
            getattr(tf, name).from_pretrained(folder)
            out[f"{folder} {name}"] = "loaded"
        except Exception as error:
            out[f"{folder} {name}"] = type(error).__name__
assert "hf_share" not in sys.modules
print(json.dumps(out))
"""


@pytest.mark.slow
def test_in_a_process_without_hf_share(tmp_path):
    cases = {}
    for kind in KINDS:
        for write in (write_bare, write_sharded):
            folder = tmp_path / f"{kind}_{write.__name__}"
            write(shared(build("llama"), kind), folder)
            cases[str(folder)] = ["AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification"]
    plain = str(tmp_path / "plain")
    hf_share.share(build("llama"), hf_share.FoldConfig(remove=[1])).save_pretrained(plain)
    cases[plain] = ["AutoModelForCausalLM"]
    run = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(cases)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert said.pop(f"{plain} AutoModelForCausalLM") == "loaded"
    assert len(said) == 18 and "loaded" not in said.values(), said

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Training shared models with `transformers.Trainer`, and what torch itself does to their tensors."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers as tf
from helpers import elements, pointers, recipe, shared, trainer, unique
from peft import PeftModel, get_peft_model
from transformers.trainer_utils import load_sharded_checkpoint
from zoo import build, logits

import hf_share


@pytest.fixture(autouse=True, scope="module")
def little_garbage():
    """Trainer collects garbage at each start; the thousands of objects of the imports need no second look."""
    gc.freeze()
    yield
    gc.unfreeze()


def full(kind: str = "both", name: str = "llama"):
    return shared(build(name), kind)


def adapted():
    torch.manual_seed(5)
    lora = hf_share.ShareLoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(build("llama"), lora)


def folded_and_adapted():
    torch.manual_seed(5)
    return get_peft_model(build("llama"), recipe("both"))


MODELS = {"fold": lambda: full("fold"), "both": full, "adapter": adapted, "fold_adapter": folded_and_adapted}


def losses(run: tf.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), two.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("name", MODELS)
def test_resume_equals_the_uninterrupted_run(name, tmp_path):
    whole = trainer(MODELS[name](), tmp_path / "whole")
    whole.train()
    half = {"save_strategy": "steps", "save_steps": 2}
    trainer(MODELS[name](), tmp_path / "cut", **half).train()
    for left in (tmp_path / "cut").glob("checkpoint-4"):
        left.rename(tmp_path / "end")  # as if the run had been killed after step 2
    resumed = trainer(MODELS[name](), tmp_path / "cut", **half)
    sharing = pointers(resumed.model)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 4
    assert same(resumed.model, whole.model)
    assert pointers(resumed.model) == sharing


@pytest.mark.parametrize("name", ["both", "adapter"])
def test_best_model_at_end(name, tmp_path):
    args = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "learning_rate": 0.3, "save_only_model": True,
    }  # fmt: skip
    run = trainer(MODELS[name](), tmp_path, steps=3, **args)
    sharing = pointers(run.model)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert pointers(run.model) == sharing
    run.model.eval()
    if name == "adapter":
        again = PeftModel.from_pretrained(build("llama"), best).eval()
    else:
        again = tf.AutoModelForCausalLM.from_pretrained(best)
        assert elements(best) == unique(run.model) + 1
    assert torch.equal(logits(again), logits(run.model))
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, abs=1e-5)


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def by_strict(model, folder):
    new = full()
    assert not any(new.load_state_dict(model.state_dict(), strict=True))
    return new


def by_assign(model, folder):
    new = full()
    assert not any(new.load_state_dict(model.state_dict(), strict=True, assign=True))
    return new


def by_torch_file(model, folder):
    torch.save(model.state_dict(), folder / "state.pt")
    new = full()
    new.load_state_dict(torch.load(folder / "state.pt"), strict=True)
    return new


def by_whole_file(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


def by_safetensors(model, folder):
    safetensors.torch.save_model(model, str(folder / "m.safetensors"))
    new = full()
    safetensors.torch.load_model(new, str(folder / "m.safetensors"))
    return new


def by_meta(model, folder):
    state = model.state_dict()
    new = full().to("meta")
    new.tie_weights()
    assert pointers_by_object(new) == pointers_by_object(model)
    new = new.to_empty(device="cpu")
    new.load_state_dict(state)
    rotary = dict(model.named_buffers())
    for name, buffer in new.named_buffers():
        buffer.copy_(rotary[name])
    return new


def by_meta_assign(model, folder):
    new = full().to("meta")
    new.tie_weights()
    new.load_state_dict(model.state_dict(), assign=True)
    rotary = {n: b.clone() for n, b in model.named_buffers()}
    for name in rotary:
        path, _, leaf = name.rpartition(".")
        new.get_submodule(path)._buffers[leaf] = rotary[name]
    return new


def by_deepcopy(model, folder):
    return copy.deepcopy(model)


def by_pickle(model, folder):
    return pickle.loads(pickle.dumps(model))


def pointers_by_object(model):
    groups: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), []).append(name)
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


WAYS = (
    by_strict, by_assign, by_torch_file, by_whole_file, by_safetensors, by_meta, by_meta_assign, by_deepcopy,
    by_pickle,
)  # fmt: skip


def test_trainer_reads_the_shards_of_a_large_checkpoint(tmp_path):
    model, new = shared(build("llama")), shared(build("llama", seed=1))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3, "a guard and its placeholder may lie apart"
    found = load_sharded_checkpoint(new, tmp_path, strict=False)
    assert torch.equal(logits(new), logits(model))
    assert not [key for key in found.missing_keys if "norm" in key]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
def test_torch_keeps_the_sharing(way, tmp_path):
    model = changed(full())
    again = way(model, tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert pointers(again) == pointers(model)
    assert pointers_by_object(again) == pointers_by_object(model)
    assert not set(map(id, again.parameters())) & set(map(id, model.parameters()))
    again.save_pretrained(tmp_path / "saved")
    assert elements(tmp_path / "saved") == unique(model) + 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_casts_keep_the_sharing(name):
    model = full(name=name)
    sharing = pointers(model)
    assert len(sharing) == (7 if name == "llama" else 8 + 1)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16):
        model.to(dtype)
        assert pointers(model) == sharing
    model.tie_weights()
    assert pointers(model) == sharing


def test_resized_embeddings_keep_the_sharing(tmp_path):
    model = full()
    sharing = pointers(model)
    model.resize_token_embeddings(104)
    assert pointers(model) == sharing
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))

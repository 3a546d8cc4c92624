# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model card: metadata that huggingface_hub reads back, numbers of `describe`, snippets that are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from helpers import shared, stored
from huggingface_hub import ModelCard
from peft import get_peft_model
from typer.testing import CliRunner
from zoo import build

import hf_share
from hf_share import cli
from hf_share.registry import remember


GROUPS = [[0], [1, 2], [3]]


@pytest.fixture
def folded(tmp_path):
    hf_share.share(build("llama"), hf_share.FoldConfig(groups=GROUPS)).save_pretrained(tmp_path / "folded")
    return tmp_path / "folded"


def test_metadata_comes_back_as_it_was_given(folded, tmp_path):
    results = {"wikitext": {"perplexity": 12.5}, "piqa": {"acc": 0.5}}
    card = hf_share.model_card(
        folded, repo="me/folded", base_model="me/base", datasets=["roneneldan/TinyStories"],
        license="apache-2.0", results=results,
    )  # fmt: skip
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.base_model, data.base_model_relation) == ("me/base", "finetune")
    assert (data.datasets, data.license) == (["roneneldan/TinyStories"], "apache-2.0")
    assert data.tags == ["hf_share", "weight-sharing", "foldgpt"]
    measured = [(r.dataset_type, r.metric_type, r.metric_value) for r in data.eval_results]
    assert measured == [("wikitext", "perplexity", 12.5), ("piqa", "acc", 0.5)]
    assert data.model_name == "folded"


@pytest.mark.parametrize("kind", ["fold", "lora", "both"])
def test_numbers_of_a_folder_are_those_of_the_model(kind, tmp_path):
    model = shared(build("llama"), kind)
    model.save_pretrained(tmp_path)
    told = hf_share.describe(model)
    for source in (tmp_path, model):
        card = str(hf_share.model_card(source))
        assert f"| parameters stored | {told.stored:,} |" in card
        assert f"| parameters used | {told.used:,} |" in card


def test_no_weight_is_loaded(folded):
    (folded / "model.safetensors").unlink()
    assert "parameters stored" in str(hf_share.model_card(folded))


def test_an_adapter_knows_its_base(tmp_path):
    model = build("llama")
    model.config.name_or_path = model.name_or_path = "me/base"
    config = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path, save_embedding_layers=False)
    card = hf_share.model_card(tmp_path)
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/base")
    assert card.data.base_model_relation == "adapter"
    assert "share-lora" in card.data.tags and "AutoPeftModelForCausalLM" in str(card)
    count = sum(torch.Size(shape).numel() for shape in stored(tmp_path).values())
    assert f"| parameters stored | {count:,} |" in str(card)


def test_methods_are_named_by_the_steps():
    def tags(config):
        return hf_share.model_card(hf_share.share(build("llama"), config)).data.tags[2:]

    assert tags(hf_share.RecursiveConfig(num_loops=2, lora_rank=0)) == ["recursive"]
    assert tags(hf_share.MasaConfig(num_atoms=2)) == ["masa"]
    fold = hf_share.FoldConfig(remove=[3], group_size=3)
    assert tags(hf_share.ShareConfig(methods=[fold, hf_share.MosConfig(r=4)])) == ["foldgpt", "mos"]


def test_a_plain_model_says_so():
    model = hf_share.share(build("bert"), hf_share.FoldConfig(remove=[1]))
    card = str(hf_share.model_card(model))
    assert "hf_share is not needed" in card and "from transformers import BertForMaskedLM" in card


def test_the_snippet_runs(folded, monkeypatch):
    card = str(hf_share.model_card(folded, repo=str(folded)))
    session: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], session)
    assert isinstance(session["model"], tf.LlamaForCausalLM)


def test_results_of_lm_eval(folded):
    said = {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}
    card = hf_share.model_card(folded, results={"results": {"piqa": said}, "configs": {}})
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("acc", 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_model": "/home/me/model"}, "no Hub id"),
        ({"datasets": "a b"}, "no Hub id"),
        ({"base_model": "me/base", "relation": "finetuned"}, "did you mean 'finetune'"),
        ({"relation": "merge"}, "needs the base_model"),
        ({"results": {"wikitext": 3.0}}, "must map metrics to numbers"),
        ({"results": {"wikitext": {"perplexity": "3"}}}, "not a number"),
        ({"results": [1]}, "must map each data set"),
    ],
)
def test_bad_arguments(folded, arguments, message):
    with pytest.raises(hf_share.ConfigError, match=message):
        hf_share.model_card(folded, **arguments)


def test_no_model_in_the_folder(tmp_path):
    with pytest.raises(hf_share.ConfigError, match="holds no model"):
        hf_share.model_card(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(hf_share.ConfigError, match="no JSON object"):
        hf_share.model_card(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(hf_share.ConfigError, match="a LORA adapter"):
        hf_share.model_card(tmp_path)


def test_the_template_travels_with_the_package():
    root = Path(hf_share.__file__).parent
    assert (root.parent / "model_cards" / "template.md").resolve() == (root / "hub" / "card.md").resolve()


def test_from_the_command_line(folded, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"wikitext": {"perplexity": 12.5}}))
    options = ["--base-model", "me/base", "--dataset", "a/one", "--dataset", "a/two", "--license", "mit"]
    where = ["--results", str(tmp_path / "scores.json"), "-o", str(tmp_path / "card.md")]
    run = CliRunner().invoke(cli.app, ["card", str(folded), *options, *where], catch_exceptions=False)
    assert run.exit_code == 0
    data = ModelCard.load(tmp_path / "card.md").data
    assert (data.base_model, data.datasets, data.license) == ("me/base", ["a/one", "a/two"], "mit")
    assert data.eval_results[0].metric_value == 12.5
    with pytest.raises(FileExistsError, match="--force"):
        CliRunner().invoke(cli.app, ["card", str(folded), *where], catch_exceptions=False)


def test_the_sizes_of_an_elastic_model(tmp_path):
    model = hf_share.share(build("llama"), hf_share.ElasticConfig(bits=[], ffn=[0.5], depth=[3]))
    told = str(hf_share.model_card(model, repo="me/many"))
    assert "`ffn`: 0.5, 1.0; `depth`: 3, 4." in told
    assert 'subnet_config("me/many", ffn=0.5)' in told
    row = {"name": "half", "choices": {"ffn": 0.5}, "bytes": 1234, "mean_bits": None, "nll": 2.5}
    remember(model, [{**row, "split": "x"}])
    model.save_pretrained(tmp_path)
    told = str(hf_share.model_card(tmp_path, repo="me/many"))
    assert "| half | - | 1,234 | 2.5000 | x |" in told and 'subnet_config("me/many", "half")' in told
    hf_share.choose(model, ffn={"layers.1.mlp.down_proj": 0.5})
    cut = str(hf_share.model_card(hf_share.extract(model)))  # sizes that differ from layer to layer
    assert "first neurons are narrower blocks" in cut and "`ffn`" not in cut and "`depth`: 3, 4" in cut
    assert "## Sizes" not in str(hf_share.model_card(shared(build("llama"))))

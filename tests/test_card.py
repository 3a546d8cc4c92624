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
from huggingface_hub import ModelCard, ModelCardData
from peft import get_peft_model
from typer.testing import CliRunner
from zoo import build

import hf_share
from hf_share import cli
from hf_share.hub.model_index import results_of
from hf_share.hub.score_table import LEGEND
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


def test_lm_eval_says_how_much_it_measured(folded):
    """As lm-eval 0.4.13 writes it: names and counts beside the metrics, errors that may be N/A, a group."""
    gsm8k = {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.01,
             "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": "N/A"}  # fmt: skip
    group = {"alias": "mmlu", "sample_len": 500, "acc,none": 0.5, "acc_stderr,none": 0.02}
    count = {"original": 5000, "effective": 250}
    found = {
        "results": {"gsm8k": {"name": "gsm8k", "sample_len": 250, **gsm8k}, "mmlu": group},
        "group_subtasks": {"mmlu": ["a", "b"]}, "configs": {}, "n-shot": {"gsm8k": 5},
        "n-samples": {"gsm8k": count, "a": count, "b": count}, "config": {"limit": 250.0},
    }  # fmt: skip
    card = hf_share.model_card(folded, results=found)
    rows = [line for line in card.text.splitlines() if line.startswith(("| gsm8k", "| mmlu"))]
    assert rows == [
        "| gsm8k | exact_match,strict-match | 0.250 ± 0.010 | 250 of 5,000 items, 5-shot |",
        "| gsm8k | exact_match,flexible-extract | 0.5 | 250 of 5,000 items, 5-shot |",
        "| mmlu | acc | 0.500 ± 0.020 | 500 of 10,000 items |",
    ]
    strict, flexible, acc = card.data.eval_results
    read = {"items": 250, "total": 5000, "limit": 250, "num_fewshot": 5}
    assert strict.dataset_args == flexible.dataset_args == read and acc.dataset_args["total"] == 10000
    assert (strict.metric_args, flexible.metric_args) == ({"stderr": 0.01}, None)
    assert "limit 250, 5-shot" in str(hf_share.model_card(folded, results={**found, "n-samples": {}}))


FACTS = {
    "piqa": {
        "acc": {"value": 0.5471, "stderr": 0.0159, "items": 250, "total": 5000, "limit": 250,
                "num_fewshot": 5, "chance": 0.5, "at_chance": False, "difference": -0.01,
                "difference_stderr": 0.0049},
        "acc_norm": {"value": 0.51, "items": 250, "total": 5000, "chance": 0.5, "at_chance": True},
    },
    "wiki": {"perplexity": {"value": 12.5, "tokens": 9000, "window": 2048, "stride": 512}, "loss": 2.5},
}  # fmt: skip


def test_a_score_goes_with_what_it_takes_to_trust_it(folded, tmp_path):
    card = hf_share.model_card(folded, results=FACTS)
    for row in (
        "| data | metric | value | measured on |",
        "| piqa | acc | 0.547 ± 0.016 | 250 of 5,000 items, 5-shot, chance 0.5 |",
        "| piqa | acc_norm | 0.51 (at chance) | 250 of 5,000 items, chance 0.5 |",
        "| wiki | perplexity | 12.5 | 9,000 tokens, windows of 2,048, stride 512 |",
        "| wiki | loss | 2.5 |  |",
    ):
        assert row in card.text.splitlines()
    assert card.text.count(LEGEND) == 1
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert results_of(data) == FACTS
    acc = data.eval_results[0]
    assert acc.metric_value == 0.5471 and acc.metric_args["stderr"] == 0.0159
    assert acc.dataset_args == {"items": 250, "total": 5000}  # what the other metric says too


def test_a_change_on_the_same_items_has_an_error(folded):
    acc = {**FACTS["piqa"]["acc"], "value": 0.5571}
    base = {"piqa": {"acc": acc, "acc_norm": {"value": 0.5, "items": 9}}}
    told = hf_share.model_card(folded, results=FACTS, baseline=base).text
    assert "| piqa | acc | 0.557 ± 0.016 | 0.547 ± 0.016 | -0.0100 ± 0.0049 | 250 of" in told
    assert "| piqa | acc_norm | 0.5 (9 items) | 0.51 (at chance) | +0.01 | 250 of" in told
    assert "| wiki | loss |  | 2.5 |  |  |" in told


def test_numbers_by_themselves_say_nothing_more(folded):
    told = str(hf_share.model_card(folded, results={"w": {"acc": 0.5}}))
    assert "| data | metric | value |\n" in told and "args" not in told and LEGEND not in told
    unknown = {"value": 0.5, "stderr": None}
    assert str(hf_share.model_card(folded, results={"w": {"acc": unknown}})) == told
    assert "Nothing was measured." in str(hf_share.model_card(folded, results={"w": {}}))


def test_args_of_other_cards_are_passed_over():
    row = {"task": {"type": "x"}, "dataset": {"name": "w", "type": "w", "args": "default"}}
    args = {"num_few_shot": 5, "stderr": "0.1", "items": 9}
    row["metrics"] = [{"type": "acc", "value": 0.5, "args": args}, {"type": "f1", "value": 0.25, "args": "x"}]
    data = ModelCardData(model_name="m", **{"model-index": [{"name": "m", "results": [row]}]})
    assert results_of(data) == {"w": {"acc": {"value": 0.5, "items": 9}, "f1": 0.25}}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.54712, 0.0159, "0.547 ± 0.016"),
        (0.54712, 0.00491, "0.5471 ± 0.0049"),
        (1234.5, 120.0, "1234 ± 120"),
        (0.0, 0.0, "0 ± 0"),
        (0.54712, None, "0.54712"),
    ],
)
def test_a_score_has_the_digits_of_its_error(folded, value, error, text):
    results = {"w": {"acc": {"value": value, "stderr": error}}}
    assert f"| w | acc | {text} |" in hf_share.model_card(folded, results=results).text


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
        ({"results": {"w": {"acc": {"stderr": 0.1}}}}, "has no `value`"),
        ({"results": {"w": {"acc": {"value": 0.5, "sderr": 0.1}}}}, "did you mean 'stderr'"),
        ({"results": {"w": {"acc": {"value": 0.5, "items": 2.5}}}}, "items 2.5; a whole number from 0 fits"),
        ({"results": {"w": {"acc": {"value": 0.5, "stderr": float("nan")}}}}, "stderr nan; a number from 0"),
        ({"baseline": {"w": {"acc": {"value": True}}}}, "not a number"),
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

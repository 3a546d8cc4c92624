# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The card that `push_to_hub` of models, adapters and trainers writes, and when it leaves one alone."""

from __future__ import annotations

import copy
import pickle
import time
from importlib.util import find_spec

import pytest
import torch
from helpers import rows, shared, trainer
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, PeftModel, get_peft_model
from zoo import build, logits

import hf_share
from hf_share.hub.load import load_model, load_tokenizer
from hf_share.hub.push import push_folder
from hf_share.hub.score_table import LEGEND
from hf_share.hub.written import card_in, is_ours, is_stock, measured_in
from hf_share.train.cards import CardTrainer
from hf_share.train.pretrain import train_tokenizer


def card_of(hub, repo="me/shared", revision="main"):
    return ModelCard(hub.file(repo, "README.md", revision).decode())


def adapted(base="me/base"):
    model = build("llama")
    model.config._name_or_path = base
    config = hf_share.ShareLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def test_of_a_model(online):
    model = shared(build("llama"))
    model.config._name_or_path = "me/base"
    given = {"license": "mit", "datasets": ["a/text"], "tags": ["story"], "results": {"w": {"ppl": 3.5}}}
    done = model.push_to_hub("shared", private=True, commit_message="first", **given)
    assert online.repos["me/shared"].refs["main"] == done.oid and online.repos["me/shared"].private
    assert len(online.repos["me/shared"].commits) == 2  # the empty one, and all of it
    data = card_of(online).data
    assert (data.library_name, data.license, data.datasets) == ("transformers", "mit", ["a/text"])
    assert (data.base_model, data.base_model_relation) == ("me/base", "finetune")
    assert data.tags == ["hf_share", "weight-sharing", "foldgpt", "share-lora", "story"]
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [("w", 3.5)]
    assert 'from_pretrained("me/shared")' in card_of(online).text
    assert {"config.json", "generation_config.json", "model.safetensors"} < online.files("me/shared")


def test_the_tokenizer_goes_along(online, tmp_path):
    tokenizer = train_tokenizer(["def main():\n    return 0\n"] * 9, vocab_size=290, context=64)
    shared(build("llama")).push_to_hub("me/shared", tokenizer=tokenizer)
    assert {"tokenizer.json", "tokenizer_config.json", "README.md"} < online.files("me/shared")
    shared(build("llama")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    push_folder(tmp_path, "me/folder")
    assert online.files("me/folder") == online.files("me/shared")


@pytest.mark.parametrize("broken", ['{"broken": ', "{}"], ids=["no JSON", "another form"])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_only_a_missing_tokenizer_is_silent(online, tmp_path, where, broken):
    place = str(tmp_path) if where == "folder" else "me/story"
    shared(build("llama")).save_pretrained(tmp_path)
    push_folder(tmp_path, "me/story")
    assert load_tokenizer(place) is None
    train_tokenizer(["def main():\n"] * 9, vocab_size=290, context=64).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(broken)
    push_folder(tmp_path, "me/story")
    with pytest.raises(hf_share.CheckpointError, match=f"the tokenizer at '{place}' cannot be read"):
        load_tokenizer(place)


def test_a_hub_that_does_not_tell_of_a_tokenizer_is_warned_of(online, monkeypatch):
    shared(build("llama")).push_to_hub("me/story")
    monkeypatch.setattr("hf_share.hub.load.adapter_base", lambda place, **at: None)
    online.fail("resolve", 401)
    with pytest.warns(UserWarning, match="no tokenizer of 'me/story' was loaded: "):
        assert load_tokenizer("me/story") is None


def test_saving_with_a_push(online, tmp_path):
    shared(build("llama")).save_pretrained(tmp_path / "shared", push_to_hub=True, repo_id="me/shared")
    assert is_ours(card_of(online)) and "model.safetensors" in online.files("me/shared")
    assert not (tmp_path / "shared" / "README.md").exists()


def test_of_an_adapter(online):
    model = adapted()
    model.push_to_hub("me/adapter", license="mit")
    card = card_of(online, "me/adapter")
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/base")
    assert card.data.base_model_relation == "adapter" and "share-lora" in card.data.tags
    count = sum(p.numel() for n, p in model.named_parameters() if "hf_share_" in n)
    assert f"| parameters stored | {count:,} |" in card.text
    assert {"adapter_config.json", "adapter_model.safetensors"} < online.files("me/adapter")


def test_an_adapters_folder_has_the_form_that_a_push_replaces(online, tmp_path):
    adapted().save_pretrained(tmp_path, save_embedding_layers=False)
    assert is_stock(card_in(tmp_path)) and card_in(tmp_path).data.library_name == "peft"
    push_folder(tmp_path, "me/adapter")
    assert is_ours(card_of(online, "me/adapter"))
    card_of(online, "me/adapter").save(tmp_path / "README.md")
    adapted().save_pretrained(tmp_path, save_embedding_layers=False)
    assert is_ours(card_in(tmp_path)) and card_in(tmp_path).data.base_model == "me/base"


def test_adapters_of_others_keep_their_card(tmp_path):
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert not is_ours(card_in(tmp_path)) and "push_to_hub" not in vars(model)


@pytest.mark.parametrize("make", [lambda: shared(build("llama")), adapted], ids=["model", "adapter"])
def test_copies_push_themselves(make):
    model = make()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.push_to_hub.args[0] is other
    loose = hf_share.materialize(model) if not isinstance(model, PeftModel) else model.unload()
    assert "push_to_hub" not in vars(loose)


@pytest.mark.parametrize("kind", ["card trainer", "peft"])
def test_of_a_trainer(online, tmp_path, kind):
    """Ours for a shared model; any `Trainer` for an adapter, since it asks peft models for their card."""
    model = adapted() if kind == "peft" else shared(build("llama"))
    run = trainer(model, tmp_path / "run", steps=1, hub_model_id="me/run", hub_token="hf_test")
    if kind != "peft":
        run = CardTrainer(model=model, args=run.args, train_dataset=rows(), eval_dataset=rows(4, seed=4))
    run.train()
    loss = run.evaluate()["eval_loss"]
    run.push_to_hub(dataset_tags="a/text", finetuned_from="me/base", license="mit")
    card = card_of(online, "me/run")
    assert is_ours(card) and "share-lora" in card.data.tags
    assert (card.data.base_model, card.data.license, card.data.datasets) == ("me/base", "mit", ["a/text"])
    if kind != "peft":
        assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("loss", loss)]
    assert "weights" in card.text and "TrainOutput" not in card.text


def test_a_persons_card_outlives_a_trainer(tmp_path):
    model = shared(build("llama"))
    args = trainer(model, tmp_path / "run").args
    run = CardTrainer(model=model, args=args, train_dataset=rows())
    run.create_model_card()
    assert is_ours(card_in(tmp_path / "run"))
    path = tmp_path / "run" / "README.md"
    own = path.read_text().replace("## Measured", "It likes short stories.\n\n## Measured")
    path.write_text(own)
    run.create_model_card()
    assert path.read_text() == own


def test_what_a_card_told_goes_over_and_old_scores_do_not(online, tmp_path):
    shared(build("llama")).push_to_hub(
        "me/shared", base_model="me/base", license="mit", datasets="a/text", results={"w": {"ppl": 3.5}}
    )
    shared(build("llama", seed=1), "fold").push_to_hub("me/shared")
    data = card_of(online).data
    assert (data.base_model, data.license, data.datasets) == ("me/base", "mit", ["a/text"])
    assert data.tags == ["hf_share", "weight-sharing", "foldgpt"] and not data.eval_results
    # a folder's own card is of the folder's weights
    shared(build("llama")).save_pretrained(tmp_path)
    card = hf_share.model_card(tmp_path, repo="me/folder", license="mit", results={"w": {"ppl": 3.5}})
    card.save(tmp_path / "README.md")
    push_folder(tmp_path, "me/folder")
    assert card_of(online, "me/folder").content == card.content
    push_folder(tmp_path, "me/folder", base_model="me/base")
    data = card_of(online, "me/folder").data
    assert (data.base_model, data.license) == ("me/base", "mit") and data.eval_results[0].metric_value == 3.5


def test_a_second_push_keeps_what_was_told_of_the_scores(online, tmp_path):
    shared(build("llama")).save_pretrained(tmp_path)
    acc = {"value": 0.4, "stderr": 0.02, "items": 250, "total": 5000, "num_fewshot": 5, "chance": 0.25}
    told = {**acc, "difference": -0.1, "difference_stderr": 0.01}
    base = {"w": {"acc": {**acc, "value": 0.5}}}
    card = hf_share.model_card(tmp_path, results={"w": {"acc": told}}, baseline=base, notes="By hand.")
    card.save(tmp_path / "README.md")
    push_folder(tmp_path, "me/folder", license="mit", notes="Twice.")
    again = card_of(online, "me/folder")
    row = "| 0.500 ± 0.020 | 0.400 ± 0.020 | -0.100 ± 0.010 | 250 of 5,000 items, 5-shot, chance 0.25 |"
    assert row in again.text and again.text.count(LEGEND) == 1
    assert measured_in(again)[1] == ["By hand.", "Twice."]
    assert again.data.eval_results == card.data.eval_results
    (tmp_path / "README.md").write_text(str(again))
    push_folder(tmp_path, "me/folder", results={"w": {"acc": 0.75}})
    again = card_of(online, "me/folder")
    assert "| w | acc | 0.75 |" in again.text and LEGEND not in again.text
    assert measured_in(again)[1] == ["By hand.", "Twice."]


MINE = "---\nlicense: apache-2.0\nextra: é\n---\n# Mine\n\n--- a line\n"


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_persons_card_is_told_the_options(online, tmp_path, where):
    shared(build("llama")).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(MINE)
    push_folder(tmp_path, "me/own")
    assert online.file("me/own", "README.md").decode() == MINE
    if where == "hub":
        hf_share.model_card(tmp_path).save(tmp_path / "README.md")
    given = {"license": "mit", "datasets": ["a/text"], "base_model": "me/base"}
    push_folder(tmp_path, "me/own", results={"w": {"ppl": {"value": 3.5, "window": 64}}}, **given)
    card = card_of(online, "me/own")
    assert card.text.strip() == "# Mine\n\n--- a line" and card.data.to_dict()["extra"] == "é"
    assert (card.data.license, card.data.datasets, card.data.base_model) == ("mit", ["a/text"], "me/base")
    scores = [(r.dataset_name, r.metric_value, r.dataset_args) for r in card.data.eval_results]
    assert scores == [("w", 3.5, {"window": 64})]
    with pytest.warns(UserWarning, match="so notes of this push are not in it"):
        push_folder(tmp_path, "me/own", notes="It was healed.", tags=["story"])
    assert "healed" not in card_of(online, "me/own").content


def test_a_header_that_cannot_be_read_takes_no_option(online, tmp_path):
    shared(build("llama")).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\na: [\n---\n# Mine\n")
    with pytest.warns(UserWarning, match="so license of this push are not in it"):
        push_folder(tmp_path, "me/own", license="mit")
    assert online.file("me/own", "README.md").decode() == "---\na: [\n---\n# Mine\n"


def test_a_model_is_not_its_own_base(online):
    model = shared(build("llama"))
    model.config._name_or_path = "me/shared"
    model.push_to_hub("me/shared")
    assert card_of(online).data.base_model is None


def test_a_pull_request(online):
    model = shared(build("llama"))
    model.push_to_hub("me/shared")
    before = online.repos["me/shared"].refs["main"]
    done = model.push_to_hub("me/shared", create_pr=True, license="mit")
    assert online.repos["me/shared"].refs["main"] == before
    assert card_of(online, revision=done.pr_revision).data.license == "mit"


def test_what_was_lost():
    card = hf_share.model_card(
        shared(build("llama")), results={"w": {"ppl": 3.5, "acc": 0.5}}, baseline={"w": {"ppl": 3.0}},
        notes="It was healed on the text its base was trained on.",
    )  # fmt: skip
    assert "| w | ppl | 3 | 3.5 | +0.5 |" in card.text and "| w | acc |  | 0.5 |  |" in card.text
    assert "healed on the text its base was trained on" in card.text


@pytest.mark.slow
def test_a_push_that_is_killed_goes_on(hub, client, tmp_path):
    """`kill -9` while files are on their way: the branch has not moved, and the next push sends the rest."""
    shared(build("llama")).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    count = len(list((tmp_path / "shards").glob("*.safetensors")))
    code = "from hf_share.hub.push import push_folder; push_folder('shards', 'me/shared')"
    hub.stall = "upload", 2  # the third gets no answer
    push = client.start(code)
    try:
        assert hub.stalled.wait(120)
        while len(hub.blobs) < 2:
            time.sleep(0.05)
    finally:
        push.kill()
        push.wait()
        hub.gone.set()
    assert hub.files("me/shared") == set()
    hub.stall, before, held = ("", 0), hub.count("upload"), len(hub.blobs)
    client(code)
    assert count > held == 2 and hub.count("upload") - before == count - held
    assert len([name for name in hub.files("me/shared") if name.endswith(".safetensors")]) == count


@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_a_hub_without_xet_is_told_of(online, monkeypatch):
    """Where hf_xet is installed, the client uploads through it alone, and does not go back to HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    model = shared(build("llama"))
    with pytest.raises(OSError, match="HF_HUB_DISABLE_XET=1"):
        model.push_to_hub("me/shared")
    assert online.files("me/shared") == set()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    model.push_to_hub("me/shared")
    assert "model.safetensors" in online.files("me/shared")


def test_a_revision_is_named_behind_the_model(online):
    """`me/small@revision=v2`, as every command takes a model."""
    old, new = shared(build("llama")), shared(build("llama", seed=1))
    old.push_to_hub("me/small")
    new.push_to_hub("me/small", revision="v2")
    for name, model in (("me/small", old), ("me/small@revision=v2", new)):
        assert torch.equal(logits(load_model(name).eval()), logits(model.eval())), name
    with pytest.raises(OSError, match="v3"):
        load_model("me/small@revision=v3")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share` on folders: share, describe, materialize; a user's error is one line and exit code 2."""

from __future__ import annotations

import json

import pytest
import zoo
from helpers import error_of, run
from transformers import AutoModelForCausalLM

import hf_share
from hf_share.train.pretrain import train_tokenizer


@pytest.fixture
def folder(tmp_path):
    zoo.build("llama").save_pretrained(tmp_path / "dense")
    return tmp_path


def test_share_describe_materialize(folder):
    small = folder / "small"
    shared = json.loads(run("share", folder / "dense", "-o", small, "--groups", "0/1,2/3", "--json"))
    assert [g["visits"] for g in shared["groups"]] == [2]
    assert json.loads(run("describe", folder / "small", "--json", "--plot", folder / "grid.png")) == shared
    assert (folder / "grid.png").exists()
    run("materialize", folder / "small", "-o", folder / "plain")
    plain = AutoModelForCausalLM.from_pretrained(folder / "plain").eval()
    expected = hf_share.share(zoo.build("llama"), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    assert (zoo.logits(plain) == zoo.logits(expected)).all()
    assert "visited" in run("describe", folder / "small")


def test_share_takes_a_plan(folder):
    plan = hf_share.SharePlan((hf_share.Arrange(stack="layers", order=(0, 1, 0, 1)),))
    (folder / "plan.json").write_text(plan.to_json())
    given = folder / "plan.json"
    shared = json.loads(run("share", folder / "dense", "-o", folder / "small", "--plan", given, "--json"))
    assert hf_share.SharePlan.from_dict(shared["plan"]).source() == plan


def test_share_ranks_by_gates_and_relaxes(folder):
    zoo.build("llama", vocab_size=300).save_pretrained(folder / "dense")
    corpus = ["def main():\n    return 0\n"] * 20
    train_tokenizer(corpus, vocab_size=290, context=64).save_pretrained(folder / "dense")
    text = folder / "text.txt"
    text.write_text("def main():\n    return 0\n" * 300)
    options = ("--removal-rate", "0.25", "--importance", "gate", "--group-size", "2", "--relax", "scale")
    shared = json.loads(
        run("share", folder / "dense", "-o", folder / "small", *options, "--text", text, "--json")
    )
    step = shared["plan"]["steps"][0]["origin"]
    assert step["scored_by"] == "gate" and len(step["scores"]) == 4 and len(step["order"]) == 3
    assert [s["rule"] for s in shared["plan"]["steps"][1:]] == ["scale"] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["share", "dense", "-o", "dense", "--group-size", "2"], "already holds a model"),
        (["share", "dense", "-o", "new", "--remove", "9"], "layers 0 to 3"),
        (["share", "dense", "-o", "new", "--remove", "a"], "not a list of layers"),
        (["share", "dense", "-o", "new", "--group-size", "2", "--parent", "men"], "did you mean 'mean'"),
        (["share", "dense", "-o", "new", "--importance", "gates"], "did you mean 'gate'"),
        (["share", "nowhere/at-all", "-o", "new", "--group-size", "2"], "no model at 'nowhere/at-all'"),
        (["share", "dense", "-o", "new", "--plan", "bad.json"], "bad.json: a plan must be JSON"),
        (["share", "dense", "-o", "bad.json", "--group-size", "2"], "bad.json is a file; choose a folder"),
        (["share", "./nowhere", "-o", "new", "--group-size", "2"], "'./nowhere': there is no such folder"),
        (["eval", "dense", "--text", "bytes.txt"], "bytes.txt is no text in UTF-8"),
        (["card", "dense", "--results", "bad.json"], "bad.json is no JSON"),
        (["share", "dense", "-o", "new", "--group-size", "2", "--low-rank"], "--low-rank goes with"),
        (["share", "dense", "-o", "new", "--group-size", "2", "--trials", "5"], "--trials goes with"),
        (["compare", "dense", "nowhere/at-all"], "no model at 'nowhere/at-all'"),
        (["compare", "dense", "dense@revision=v2"], "a folder has no revisions"),
        (["compare", "dense", "dense@quant=nf5"], "did you mean 'nf4'"),
        (["compare", "dense", "-o", "nowhere/table"], "there is no folder nowhere"),
        (["search", "dense", "--budget", "bits=3", "--batch", "0"], "greater than or equal to 1"),
        (["eval", "dense", "--tasks", "x", "--num-fewshot", "-1"], "--num-fewshot"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "bad.json").write_text('{"version": 1')
    (folder / "bytes.txt").write_bytes(b"\xff\x00")
    assert message in error_of(monkeypatch, capsys, *arguments)
    assert sorted(p.name for p in folder.iterdir()) == ["bad.json", "bytes.txt", "dense"]


def test_help_names_every_option():
    text = run("share", "--help")
    options = "--removal-rate --remove --group-size --groups --parent --stack --plan --json"
    for option in options.split():
        assert option in text


def test_the_version():
    assert run("--version").strip() == hf_share.__version__

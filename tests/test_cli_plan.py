# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share plan`: a config.json is enough for the plan of a method and for what training takes."""

from __future__ import annotations

import json

import pytest
import torch
import zoo
from helpers import error_of, run

import hf_share
from hf_share.filesize import file_size
from hf_share.propose import outline


MOS = ("--method", "mos", "--set", "r=4", "--set", "target_modules=all-linear")


@pytest.fixture
def config(tmp_path):
    config = zoo.build("llama").config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    return tmp_path / "config.json"


def test_a_plan_is_shown_and_read_again(config, tmp_path):
    text = run("plan", config, "--method", "fold", "--set", "group_size=2", "--json")
    expected = hf_share.FoldConfig(group_size=2).resolve(zoo.build("llama"))
    assert hf_share.SharePlan.from_json(text) == expected
    assert "Arrange layers: [0 0 2 2]" in run("plan", config, "--method", "fold", "--set", "group_size=2")
    (tmp_path / "plan.json").write_text(text)
    rows = run("plan", config, "--plan", tmp_path / "plan.json", "--estimate", "--length", 8, "--json")
    fold = hf_share.estimate(zoo.build("llama").config, expected, length=8)
    assert json.loads(rows)[-1] == fold.to_dict()


def test_the_table_has_dense_lora_and_the_method(config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    numbers = ("--estimate", "--length", 8, "--batch", 2, "--checkpointing")
    found = json.loads(run("plan", config, *MOS, *numbers, "--precision", "float32", "--json"))
    assert [(row["method"], row["train"]) for row in found] == [
        ("dense", "full"), ("lora", "adapter"), ("mos", "adapter"),
    ]  # fmt: skip
    assert all(row["dtype"] == "float32" and row["batch"] == 2 and row["checkpointing"] for row in found)
    text = run("plan", config, *MOS, *numbers, "--bits", 4)
    for word in ("dense", "lora, 4 bits", "mos, 4 bits", "estimate", "checkpointing"):
        assert word in text
    short = json.loads(run("plan", config.parent, "--estimate", "--json"))
    assert len(short) == 2 and short[0]["length"] == zoo.build("llama").config.max_position_embeddings


def test_what_would_be_measured_is_estimated_and_said(config):
    rows = json.loads(run("plan", config, "--method", "svd", "--estimate", "--length", 8, "--json"))
    assert rows[-1]["method"] == "svd" and "same share" in rows[-1]["assumed"][0]
    assert rows[0]["assumed"] == []
    asked = ("plan", config, "--target-bytes", "0.6", "--estimate", "--length", 8)
    rows = json.loads(run(*asked, "--json"))
    assert [row["method"] for row in rows] == ["dense", "lora", "target 0.6"]
    assert 0.4 * rows[0]["file"] < rows[-1]["file"] <= 0.6 * rows[0]["file"]
    text = run(*asked)
    assert "target 0.6 (about)" in text and "assumed: as many layers run as may" in text


def test_a_target_is_estimated_as_large_as_what_is_proposed():
    model, texts = zoo.build("llama"), [torch.randint(3, 90, (2, 16))]
    found = hf_share.propose(model, 0.6, texts)
    shared = hf_share.share(model, outline(model, 0.6))
    assert found.chosen.bytes == pytest.approx(file_size(shared), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-bytes", "0.6", "--estimate", "--low-rank"], "--low-rank is of the scan"),
        (["--method", "fold", "--target-bytes", "0.6", "--estimate"], "--target-bytes is of the scan"),
        (["--target-bytes", "0.01", "--estimate"], "is out of reach"),
        (["--method", "fol"], "did you mean 'fold'"),
        (["--method", "mos", "--set", "rank=2"], "unexpected keyword argument 'rank'"),
        (["--method", "mos", "--set", "r"], "not of the form key=value"),
        (["--set", "r=2"], "name it with --method"),
        ([], "holds no weights"),
        (["--method", "fold", "--target-bytes", "0.5"], "goes without --method"),
        (["--estimate", "--plot", "scan.png"], "goes without --method"),
        (["-o", "plan.json"], "--target-bytes"),
        (["--estimate", "--optimizer", "adam"], "did you mean 'adamw'"),
        (["--estimate", "--bits", "4", "--train", "full"], "do not train in full"),
        (["--method", "fold", "--set", "removal_rate=0.5"], "is a file, which holds no weights"),
        (["--method", "fold", "--plan", "plan.json"], "go without it"),
        (["--plan", "plan.json"], "plan.json"),
        (["--train", "full"], "--train is of the memory that training takes"),
        (["--method", "fold", "--precision", "float16"], "--precision is of the memory"),
        (["--estimate", "-o", "plan.json"], "--output is of a plan"),
        (["--target-bytes", "0.6", "-o", "nowhere/plan.json"], "--output nowhere/plan.json: there is no"),
        (["--low-rank"], "--low-rank goes with --target-bytes"),
        (["--trials", "9"], "--trials goes with --target-bytes"),
        (["--method", "fold", "--stack", "layers"], "--stack is of the scan"),
        (["--plot", "."], "--plot .: there is a folder"),
    ],
)
def test_errors_are_one_line(config, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(config.parent)
    assert message in error_of(monkeypatch, capsys, "plan", config, *arguments)

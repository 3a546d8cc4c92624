# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share plan` as a scan and `hf-share share --target-bytes`: asked and got are printed, and hold."""

from __future__ import annotations

import json

import pytest
import typer
import zoo
from helpers import error_of, run

import hf_share
from hf_share import cli
from hf_share.train.pretrain import train_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["a small dog " * 40], vocab_size=270, context=64)
    zoo.build("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("a small dog " * 3000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_plan_scans_and_proposes(folder):
    text = run("plan", "dense", "--target-bytes", "0.8", "--text", "text.txt", "--plot", "scan.png",
               "-o", "plan.json")  # fmt: skip
    for word in ("block influence", "KL to the next layer", "most alike by heads", "90 % of the energy",
                 "mlp.down_proj", "asked", "got", "(chosen)", "nearest to the dense", "Arrange"):  # fmt: skip
        assert word in text, word
    assert (folder / "scan.png").exists()
    plan = hf_share.SharePlan.from_json((folder / "plan.json").read_text())
    run("share", "dense", "--plan", "plan.json", "-o", "small")
    told = json.loads(run("plan", "dense", "--target-bytes", "0.8", "--text", "text.txt", "--json"))
    assert hf_share.SharePlan.from_dict(told["proposal"]["plan"]) == plan
    assert len(told["scan"]["influence"]) == 4


def test_share_keeps_to_the_target(folder):
    text = ("--text", "text.txt")
    told = json.loads(run("share", "dense", "--target-bytes", "80%", "-o", "small", *text, "--json"))
    file = (folder / "small" / "model.safetensors").stat().st_size
    dense = (folder / "dense" / "model.safetensors").stat().st_size
    assert told["target"]["got"] == file <= told["target"]["asked"] <= 0.8 * dense + 16
    shown = run("share", "dense", "--target-bytes", "0.8", "-o", "again", *text)
    assert "asked" in shown and "(chosen)" in shown
    assert "stored" in run("describe", "small", "--plot", "grid.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-bytes", "0.01", "--text", "text.txt"], "the smallest file has"),
        (["--target-bytes", "9GB", "--text", "text.txt"], "asks for no less"),
        (["--target-bytes", "small", "--text", "text.txt"], "'small' fits nothing"),
        (["--target-bytes", "0.8", "--group-size", "2"], "leave out --group-size"),
        (["--target-bytes", "0.8", "--plan", "plan.json"], "leave out --target-bytes"),
        ([], "nothing says what to share"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder, monkeypatch, capsys, arguments, message):
    assert message in error_of(monkeypatch, capsys, "share", "dense", "-o", "new", *arguments)
    assert sorted(p.name for p in folder.iterdir()) == ["dense", "text.txt"]


def test_every_command_speaks_json():
    group = typer.main.get_command(cli.app)
    silent = {"lm_eval", "train"}  # lm_eval's own; the tasks of train take every word (test_cli_train)
    for name, command in group.commands.items():
        assert name in silent or "--json" in [o for p in command.params for o in p.opts], name

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Two plans step by step: golden text, and exit codes of `hf-share diff`."""

from __future__ import annotations

import json

import pytest
import zoo
from typer.testing import CliRunner

import hf_share
from hf_share import Arrange, Generate, SharePlan, cli
from hf_share.difference import difference


def arrange(*order: int, **more) -> Arrange:
    return Arrange(stack="layers", order=order, **more)


def lora(group: str, *sites: str, r: int = 4) -> Generate:
    return Generate(rule="low_rank", group=group, sites=sites, args={"r": r})


ONE = SharePlan((arrange(0, 1, 2, 3), lora("q", "layers.0.q", "layers.1.q"), lora("old", "layers.0.k")))
TWO = SharePlan((arrange(0, 1, 1, 2), lora("q", "layers.1.q", "layers.2.q", r=8), lora("new", "layers.0.v")))

GOLDEN = """\
~ arrange layers
    order: 0 1 2 3 -> 0 1 1 2
~ generate q: low_rank for 2 sites
    sites: - layers.0.q
    sites: + layers.2.q
    args: r 4 -> 8
- generate old: low_rank for 1 sites
+ generate new: low_rank for 1 sites"""


def test_golden_text():
    assert "\n".join(map(str, difference(ONE, TWO))) == GOLDEN


def test_equal_plans_differ_in_nothing():
    assert {c.kind for c in difference(ONE, ONE)} == {"same"}
    assert difference(SharePlan(), SharePlan()) == []


def test_the_two_forms_of_a_plan_are_equal():
    plan = hf_share.FoldConfig(remove=[2], group_size=2).resolve(zoo.build("llama"))
    assert [c.kind for c in difference(plan, plan.checkpoint())] == ["same"]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["diff", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_plans_are_found_where_they_lie(tmp_path):
    fold = hf_share.FoldConfig(groups=[[0], [1, 2], [3]])
    shared = hf_share.share(zoo.build("llama"), fold)
    shared.save_pretrained(tmp_path / "small")
    zoo.build("llama").save_pretrained(tmp_path / "dense")
    (tmp_path / "plan.json").write_text(fold.resolve(zoo.build("llama")).to_json(indent=2))
    assert run(tmp_path / "small", tmp_path / "plan.json") == (0, "  arrange layers\nthe plans are equal\n")
    code, text = run(tmp_path / "dense", tmp_path / "small", "--json")
    assert code == 1 and json.loads(text)["steps"][0]["kind"] == "added"


@pytest.mark.parametrize("place", ["broken.json", "nowhere"])
def test_what_holds_no_plan(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hf-share", "diff", place, place])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error:")

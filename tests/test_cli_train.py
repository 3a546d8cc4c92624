# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share train`: the settings of each task, their defaults and help, and a run from the command line."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import transformers
import yaml
import zoo
from typer.testing import CliRunner
from workers import killed

import hf_share
from hf_share.cli import app
from hf_share.cli_train import TASKS as COMMANDS
from hf_share.train import settings as of
from hf_share.train.early_exit import EarlyExitConfig
from hf_share.train.elastic import ElasticRunConfig
from hf_share.train.finetune import FinetuneConfig
from hf_share.train.heal import HealConfig
from hf_share.train.main import TASKS, main
from hf_share.train.pretrain import PretrainConfig, train_tokenizer
from hf_share.train.settings import Settings


CONFIGS = {c.TASK: c for c in (EarlyExitConfig, ElasticRunConfig, FinetuneConfig, HealConfig, PretrainConfig)}
RUN_ONLY = {"save_steps", "eval_steps"}  # a call from Python keeps no checkpoints unless it asks


def test_every_task_has_its_row():
    assert set(TASKS) == set(CONFIGS) == set(COMMANDS)
    for task in TASKS:
        assert importlib.import_module(f"hf_share.train.{task}").main


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_that_ship_are_those_of_the_settings(task):
    shipped, config = of.defaults(task), CONFIGS[task]()
    assert {f.name for f in dataclasses.fields(config)} == set(shipped)
    other = {name for name, value in shipped.items() if value != getattr(config, name)}
    assert other <= RUN_ONLY
    assert CONFIGS[task].load(None, beneath=shipped).save_steps > 0


@pytest.mark.parametrize("task", TASKS)
def test_help_lists_settings_with_types_and_defaults(task):
    shown = CliRunner().invoke(app, ["train", task, "--help"])
    assert shown.exit_code == 0
    for field, kind in of.kinds(CONFIGS[task]).items():
        row = next(line for line in shown.output.splitlines() if line.split()[:1] == [f"--{field}"])
        assert row.split()[1] == kind.__name__ and repr(of.defaults(task)[field]) in row
        assert not row.endswith(repr(of.defaults(task)[field])), "words stand beside it"
    assert "The same command again goes on from the last complete checkpoint" in shown.output


@pytest.mark.parametrize(
    "words, message",
    [
        (["m", "--tail_layres", "2"], "unknown key 'tail_layres'; did you mean 'tail_layers'?"),
        (["m", "--schedule", "lnear"], "unknown schedule 'lnear'; did you mean 'linear'?"),
        (["m", "--steps", "many"], "steps='many' is not of type int"),
        (["m", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["m", "n"], "'n' has no key"),
        ([], "--model names the checkpoint to heal"),
        (["m", "--save_steps", "7"], "save_steps=7 must be a multiple of eval_steps=50"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_a_users_error_is_a_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main("heal", words)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_an_unknown_task_is_refused():
    shown = CliRunner().invoke(app, ["train", "heel"])
    assert shown.exit_code == 2 and "heal" in shown.output


def test_the_file_lies_above_the_defaults_and_below_the_keys(tmp_path):
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"steps": 7, "batch": 3}))
    words = ["base", "--config", str(tmp_path / "my.yaml"), "--batch", "5", "-o", "out"]
    config = HealConfig.from_command_line(None, words)
    assert (config.model, config.output, config.steps, config.batch) == ("base", "out", 7, 5)
    assert config.save_steps == of.defaults("heal")["save_steps"]


def test_settings_without_a_task_have_help_too(capsys):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(Settings):
        rate: float = 0.5

    with pytest.raises(SystemExit):
        Own.from_command_line("About.", ["--help"])
    assert "--rate               float 0.5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_share_heal_and_run_again(tmp_path, capsys):
    base, small = tmp_path / "base", tmp_path / "small"
    text = killed.write_text(tmp_path)["text"]
    zoo.build("llama", vocab_size=300).save_pretrained(base)
    train_tokenizer(killed.LINES, vocab_size=290, context=64).save_pretrained(base)
    shared = CliRunner().invoke(app, ["share", str(base), "--group-size", "2", "-o", str(small)])
    assert shared.exit_code == 0, shared.output
    numbers = {**killed.SHORT, "teacher": base, "text": text}
    words = [str(small), "-o", str(tmp_path / "out"), *(f"--{k}={v}" for k, v in numbers.items())]
    main("heal", words)
    told = capsys.readouterr().out
    assert "before: perplexity" in told and "after:  perplexity" in told
    assert "tokens/s" in told and " left" in told and "validation loss" in told
    healed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert hf_share.describe(healed).groups
    main("heal", words)
    assert "finished at step 6 already" in capsys.readouterr().out
    main("heal", [*words, "--json"])
    said = json.loads(capsys.readouterr().out)["said"]
    before, after = (line for line in said if "perplexity" in line)
    assert before["text"].startswith("before:") and after["nll"] != before["nll"]

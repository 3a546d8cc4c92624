# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The accelerate configs are what accelerate reads, and the launcher runs a recipe by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from helpers import stored

from hf_share.train.pretrain import train_tokenizer


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "accelerate"
KINDS = {
    "single": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def test_every_config_has_its_row():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(KINDS)


@pytest.mark.parametrize("name, kind", KINDS.items())
def test_accelerate_reads_it(name, kind):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig) and config.distributed_type == kind
    assert config.mixed_precision == "bf16" and config.num_processes >= 1
    assert bool(config.fsdp_config) == (kind == DistributedType.FSDP)
    assert bool(config.deepspeed_config) == (kind == DistributedType.DEEPSPEED)
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options, (
        "accelerate would ignore a misspelt key"
    )


def test_fsdp_has_units_and_whole_files():
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2 and config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.slow
@pytest.mark.parametrize("name, processes", [("single", 1), ("ddp", 2)])
def test_the_launcher_runs_a_recipe(name, processes, tmp_path):
    base = tmp_path / "base"
    zoo.build("llama", vocab_size=300).save_pretrained(base)
    train_tokenizer(["def main():\n    return 0\n"] * 20, vocab_size=290, context=64).save_pretrained(base)
    text = tmp_path / "text.txt"
    text.write_text("def main():\n    return 0\n" * 3000)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(FOLDER / f"{name}.yaml"), "--num_processes", str(processes)]
    launch += ["--mixed_precision", "no", "--main_process_port", "0"]
    recipe = [str(ROOT / "recipes" / "finetune.py"), "--config", str(ROOT / "recipes" / "share_lora.yaml")]
    numbers = {"model": base, "text": text, "output": tmp_path / "out", "context": 16, "steps": 2, "batch": 2}
    options = [word for key, value in numbers.items() for word in (f"--{key}", str(value))]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, *recipe, *options], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("after:") == 1
    assert done.stdout.count("done in") == 1, "processes that know each other log once"
    assert all("hf_share_" in key for key in stored(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["method"] == "share_lora"

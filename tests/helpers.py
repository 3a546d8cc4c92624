# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What several tests need: shared models and training sets, counts of a file, commands, two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import hf_share
from hf_share import cli


FOLD = {"remove": [3], "group_size": 2}


def recipe(kind: str) -> hf_share.ShareConfig:
    """`fold` has ties, `lora` stores and private tensors, `both` all of them."""
    fold = hf_share.FoldConfig(**FOLD)
    lora = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    return {"fold": fold, "lora": lora, "both": hf_share.ShareConfig(methods=[fold, lora])}[kind]


def shared(model: nn.Module, kind: str = "both") -> nn.Module:
    torch.manual_seed(5)
    return hf_share.share(model, recipe(kind))


def stored(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a folder's files. A name stored twice is an error."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            for key in f.keys():
                assert key not in found, f"{key} is stored twice"
                found[key] = tuple(f.get_slice(key).get_shape())
    return found


def elements(folder: str | Path) -> int:
    return sum(torch.Size(shape).numel() for shape in stored(folder).values())


def unique(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def pointers(model: nn.Module) -> list[list[str]]:
    """Names that share a tensor, as sorted groups: equal lists mean equal sharing."""
    groups: dict[int, list[str]] = {}
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in (pair for kind in named for pair in kind):
        groups.setdefault(tensor.data_ptr(), []).append(name)
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def rows(count: int = 8, length: int = 8, seed: int = 3) -> list[dict[str, torch.Tensor]]:
    """A training set of token rows."""
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (count, length), generator=gen)
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model: nn.Module, folder: str | Path, steps: int = 4, **args) -> tf.Trainer:
    defaults = {
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [],
        "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 7,
    }  # fmt: skip
    arguments = tf.TrainingArguments(output_dir=str(folder), **{**defaults, **args})
    return tf.Trainer(model=model, args=arguments, train_dataset=rows(), eval_dataset=rows(4, seed=4))


def run(*arguments: object) -> str:
    """The standard output of `hf-share arguments`, which succeeds."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """What `hf-share arguments` says of a user's mistake, on one line: exit code 2 and no traceback."""
    monkeypatch.setattr("sys.argv", ["hf-share", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and "Traceback" not in error, error
    return error


def two_processes(worker: Path, folder: Path, *arguments: str, **environment: str) -> None:
    """Run `worker folder arguments` as two ranks of one job, and show their logs if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    base |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2]), **environment}
    command = [sys.executable, str(worker), str(folder), *arguments]
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    workers = [_start(command, rank, log, base) for rank, log in enumerate(logs)]
    try:
        codes = [process.wait(timeout=540) for process in workers]
    finally:
        for process in workers:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def _start(command: list[str], rank: int, log: Path, base: dict[str, str]) -> subprocess.Popen:
    env = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with log.open("w") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)

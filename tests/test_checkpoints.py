# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, or whose disk is full, goes on from its last complete checkpoint and ends where an
unbroken one ends, to the bit.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from workers import killed

import hf_share
from hf_share import ConfigError
from hf_share.train.checkpoints import (
    MARK,
    checkpoints,
    drop_incomplete,
    last_complete,
)
from hf_share.train.finetune import FinetuneConfig
from hf_share.train.heal import HealConfig, heal


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.xdist_group("checkpoints"),  # one launch for all
]
WORKER = Path(killed.__file__)
LOGGED = ("loss", "eval_loss", "grad_norm", "learning_rate", "step")


def history(folder: Path) -> list[dict]:
    """What the run logged, from its last checkpoint, without times."""
    state = json.loads((last_complete(folder / "checkpoints") / "trainer_state.json").read_text())
    rows = [{k: row[k] for k in LOGGED if k in row} for row in state["log_history"]]
    return [row for row in rows if "loss" in row or "eval_loss" in row]


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), two.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def whole(launch):
    """The unbroken run of each recipe, trained when it is asked for."""
    models: dict[str, torch.nn.Module] = {}

    def get(run: str) -> torch.nn.Module:
        if run not in models:
            models[run] = killed.RUNS[run](launch / f"{run}-whole", killed.write_text(launch))
        return models[run]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("run, point", killed.CASES, ids=lambda value: value)
def test_a_killed_run_ends_as_an_unbroken_one(run, point, launch, whole, capsys):
    folder = launch / f"{run}-{point}"
    complete = last_complete(folder / "checkpoints")
    assert complete.name == ("checkpoint-4" if point == "after" else "checkpoint-2")
    model, expected = killed.RUNS[run](folder, killed.write_text(launch)), whole(run)
    assert f"going on from step {complete.name[-1]}" in capsys.readouterr().out
    assert history(folder) == history(launch / f"{run}-whole")
    assert [row["step"] for row in history(folder) if "loss" in row] == [1, 2, 3, 4, 6]
    assert same(model, expected)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, capsys):
    text = killed.write_text(tmp_path)
    expected = killed.finetuned(tmp_path / "whole", text)
    real = torch.save

    def full(thing, file, *args, **kwargs):
        if "checkpoint-4" in str(file):
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return real(thing, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        killed.finetuned(tmp_path / "cut", text)
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path / "cut" / "checkpoints")] == ["checkpoint-2", "checkpoint-4"]
    model = killed.finetuned(tmp_path / "cut", text)
    out = capsys.readouterr().out
    assert "left out, not written to its end" in out and "going on from step 2" in out
    assert same(model, expected) and history(tmp_path / "cut") == history(tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_run_trains_no_further(tmp_path, capsys):
    text = killed.write_text(tmp_path)
    model = killed.finetuned(tmp_path, text)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert same(killed.finetuned(tmp_path, text), model)
    assert "finished at step 6 already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == files
    longer = killed.finetuned(tmp_path, text, steps=8)
    assert "going on from step 6" in capsys.readouterr().out and not same(longer, model)


@pytest.mark.slow
def test_another_run_is_not_gone_on_with(tmp_path, capsys):
    text = killed.write_text(tmp_path)
    killed.finetuned(tmp_path, text)
    with pytest.raises(ConfigError, match="learning_rate was 0.01 and is 0.02.*--resume false"):
        killed.finetuned(tmp_path, text, learning_rate=2e-2)
    killed.finetuned(tmp_path, text, learning_rate=2e-2, resume=False, steps=4)
    assert "going on" not in capsys.readouterr().out
    assert last_complete(tmp_path / "checkpoints").name == "checkpoint-4"


def test_a_run_of_other_weights_is_not_gone_on_with(tmp_path, capsys):
    """A model that is shared anew lies under the same name as the one before."""
    ids = torch.randint(3, zoo.VOCAB, (16, 16), generator=torch.Generator().manual_seed(1))
    numbers = {"steps": 2, "save_steps": 2, "eval_steps": 0, "batch": 2, "context": 16, "train": "full"}
    config = HealConfig(model="small", teacher="big", output=str(tmp_path), **numbers)

    def healed(pairs, teacher=0):
        model = hf_share.share(zoo.build("llama"), hf_share.FoldConfig(groups=pairs))
        return heal(model, ids, zoo.build("llama", seed=teacher), config)

    healed([[0, 1], [2], [3]])
    for other in ({"pairs": [[0], [1, 2], [3]]}, {"pairs": [[0, 1], [2], [3]], "teacher": 1}):
        with pytest.raises(ConfigError, match="weights was .* --resume false"):
            healed(**other)
    file = tmp_path / "checkpoints" / "settings.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in before.items() if key != "bf16"}))
    healed([[0, 1], [2], [3]])  # begun before there was such a setting
    assert "finished at step 2 already" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_step_is_kept(tmp_path):
    """Validation text that training leads away from: an early step is the best, and its weights come back."""
    text = killed.write_text(tmp_path)
    (tmp_path / "other.txt").write_text("QZ~XJ$#WK" * 400)
    other = {"validation_text": str(tmp_path / "other.txt"), "schedule": "constant"}
    ruin = {"learning_rate": 5e-2, "steps": 12, **other}
    model = killed.finetuned(tmp_path, text, **ruin)
    rows = {row["step"]: row["eval_loss"] for row in history(tmp_path) if "eval_loss" in row}
    best = min(rows, key=rows.get)
    kept = [p.name for p in checkpoints(tmp_path / "checkpoints")]
    assert best < 10 and kept == [f"checkpoint-{best}", "checkpoint-10", "checkpoint-12"]
    config = FinetuneConfig(output=str(tmp_path), **text, **{**killed.SHORT, **ruin})
    rows = killed.data(config).validation.windows
    with torch.no_grad():
        loss = float(model(input_ids=rows, labels=rows).loss)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-12" / "trainer_state.json").read_text())
    assert loss == pytest.approx(state["best_metric"], rel=1e-4)


def test_the_three_parts_share_no_document(tmp_path):
    text = killed.write_text(tmp_path)
    for streaming in (False, True):
        config = FinetuneConfig(**text, **killed.SHORT, streaming=streaming, max_bytes=4000)
        parts = killed.split(config)
        sides = [set(parts.train), set(parts.validation), set(parts.test)]
        assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def made(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_bytes(b"12345")
    (path / MARK).write_text(json.dumps({"step": step, "files": {"weights": 5}}))
    return path


def test_what_is_complete(tmp_path):
    one, two, ten = (made(tmp_path, step) for step in (1, 2, 10))
    assert checkpoints(tmp_path) == [one, two, ten] and last_complete(tmp_path) == ten
    (ten / "weights").write_bytes(b"123")
    assert last_complete(tmp_path) == two
    (two / MARK).write_text("{")
    assert last_complete(tmp_path) == one
    assert drop_incomplete(tmp_path) == [two, ten] and checkpoints(tmp_path) == [one]
    (one / "weights").unlink()
    assert last_complete(tmp_path) is None and last_complete(tmp_path / "none") is None


def test_steps_that_do_not_meet_are_refused():
    with pytest.raises(ConfigError, match="save_steps=5 must be a multiple of eval_steps=2"):
        FinetuneConfig(save_steps=5, eval_steps=2)

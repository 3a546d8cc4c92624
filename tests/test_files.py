# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Folders are filled whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_share.files import filling


def tree(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there(there, tmp_path):
    out = tmp_path / "deep" / "out"
    old = {"config.json": "old", "model.safetensors": "old"} if there else {}
    write(out, old)
    with pytest.raises(OSError, match="full"), filling(out) as part:
        write(part, {"config.json": "new", "model.safetensors": "new"})
        raise OSError("the disk is full")
    assert tree(tmp_path / "deep") == {f"out/{name}": text for name, text in old.items()}
    assert out.exists() == there


def test_what_is_new_replaces_files_folders_and_weights(tmp_path):
    out = tmp_path / "out"
    old = ("config.json", "model-00001.safetensors", "notes.txt", "1_Pool/a")
    write(out, dict.fromkeys(old, "old"))
    with filling(out) as part:
        write(part, {"config.json": "new", "model.safetensors": "new", "1_Pool/b": "new"})
    expected = {"config.json": "new", "model.safetensors": "new", "notes.txt": "old", "1_Pool/b": "new"}
    assert tree(tmp_path) == {f"out/{name}": text for name, text in expected.items()}


def test_an_adapter_leaves_its_base(tmp_path):
    old = ("config.json", "model.safetensors", "adapter_model-00001.safetensors")
    write(tmp_path, dict.fromkeys(old, "old"))
    new = ("adapter_config.json", "adapter_model.safetensors")
    with filling(tmp_path) as part:
        write(part, dict.fromkeys(new, "new"))
    assert tree(tmp_path) == dict.fromkeys(old[:2], "old") | dict.fromkeys(new, "new")


@pytest.mark.parametrize("last", ["config.json", "adapter_config.json"])
def test_the_configuration_moves_last(last, tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with filling(tmp_path / "out") as part:
        write(part, {name: "" for name in (last, "model.safetensors", "tokenizer_config.json", "zebra.json")})
    assert len(moved) == 4 and moved[-1] == last


def test_nothing_is_written_beside_a_folder_that_exists(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with filling(out) as part:
        assert part.parent == out and part.name.startswith(".")
    assert tree(tmp_path) == {} and list(tmp_path.iterdir()) == [out]


def test_named_subnets_of_another_model_do_not_stay(tmp_path):
    for given in (["config.json", "subnets.json"], ["tokenizer.json"], ["adapter_config.json"]):
        with filling(tmp_path) as part:
            for name in given:
                (part / name).write_text("[]")
        assert (tmp_path / "subnets.json").exists()
    with filling(tmp_path) as part:
        (part / "config.json").write_text("{}")
    assert not (tmp_path / "subnets.json").exists()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all: each is written beside its place and moved there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ConfigError


CONFIGS = ("config.json", "adapter_config.json")
SUBNETS = "subnets.json"


def read_text(path: str | os.PathLike) -> str:
    """The text of a file that a person names.

    Raises:
        ConfigError: if it is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from None


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds that a person names.

    Raises:
        ConfigError: if it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text`, ending in one newline, to the disk and then in place of what `path` held."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process: another may write it, too
    part.write_text(text.rstrip() + "\n", encoding="utf-8")
    flush(part)
    return part.replace(path)


def flush(path: str | os.PathLike) -> None:
    """Bring what was written to a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def filling(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into; what is in it moves to `folder` when the block ends, and nothing does if it
    raises. What `folder` held stays, but for what has the same name, and the weights and the named subnets of
    another model.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # inside of a folder that exists: it may be the one place on its disk that can be written to
    place = folder if folder.is_dir() else folder.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{folder.name}-") as part:
        yield Path(part)
        folder.mkdir(exist_ok=True)
        new = {file.name for file in Path(part).iterdir()}
        # a shard of the model that stood here would be taken for one of this; an adapter spares its base
        for old in folder.glob("*.safetensors*" if CONFIGS[0] in new else "adapter_*.safetensors*"):
            if old.name not in new:
                old.unlink()
        if CONFIGS[0] in new and SUBNETS not in new and (folder / CONFIGS[0]).exists():
            (folder / SUBNETS).unlink(missing_ok=True)
        # these go last: a folder without them is no model
        for file in sorted(Path(part).iterdir(), key=lambda f: f.name in CONFIGS):
            if file.is_dir():
                shutil.rmtree(folder / file.name, ignore_errors=True)
            os.replace(file, folder / file.name)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the cells of a file of results are of.

A cell is known by its name, and two models, two texts or two numbers of steps give cells of the same names.
So a file says beside its rows what decides its numbers, `{"of": {...}, "about": {...}}`: settings as they
are, models and texts as a hash of their files, never where they lie. A run that disagrees is refused; one
that knows more, such as another text, adds to it. `about` is for the page only: what it says of the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..lines import append_line, read_lines


MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "tokenizer*", "vocab*", "merges*", "*.model")


@dataclass(frozen=True)
class Record:
    """What decides numbers, and what is told of the model beside it; both plain values."""

    of: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_record(path: str | Path) -> Record:
    """What a file says it is of; empty if it says nothing, or is not there."""
    of: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for row in read_lines(path):
        of |= row.get("of", {}) if "cell" not in row else {}
        about |= row.get("about", {}) if "cell" not in row else {}
    return Record(of, about)


def keep_record(path: str | Path, record: Record, adopt: bool = False) -> None:
    """Write what the file does not say yet of `record`.

    Args:
        adopt: take rows of a file that says nothing to be of `record`.

    Raises:
        ConfigError: the file is of something else, or it has rows and does not say what they are of.
    """
    old, new = read_record(path), Record(*(json.loads(json.dumps(d)) for d in (record.of, record.about)))
    count = len(read_lines(path))
    if count and not old.of and not adopt:
        raise ConfigError(
            f"{path} does not say what its {count} cells are of. --adopt takes them to be of this model, "
            "data and settings, and writes that into the file; another --output, or no file here, begins anew"
        )
    other = [f"{k} was {old.of[k]!r} and is {v!r}" for k, v in new.of.items() if old.of.get(k, v) != v]
    if other:
        raise ConfigError(
            f"{path} holds cells of something else: {'; '.join(other[:4])}. Give the old ones to go on; "
            "another --output, or no file here, begins anew (models and texts stand as a hash of their files)"
        )
    if not new.of.keys() <= old.of.keys():
        append_line(path, dataclasses.asdict(new))


def settings_of(config: Any, free: Iterable[str]) -> dict[str, Any]:
    """The numbers of a config but for those `free` to change: which cells there are, where things lie."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in free}


def need(**places: str) -> None:
    """Refuse a place that a comparison needs and was not told."""
    for name, place in places.items():
        if not place:
            raise ConfigError(f"--{name} is not given: cells are measured with it; --report does without")


def hash_of(*paths: str | Path) -> str:
    """A few letters that differ where the names or the bytes of files do."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def items_hash(items: Iterable[Any]) -> str:
    """A few letters that differ where plain values do."""
    return hashlib.sha256(json.dumps(list(items), sort_keys=True, default=str).encode()).hexdigest()[:12]


def model_hash(model: str) -> str:
    """The files of a model's folder that decide what it computes; of a Hub id, its revision."""
    folder = Path(model)
    if folder.is_dir():
        return hash_of(*sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ConfigError(f"--model {model}: there is no such folder")
    from transformers import AutoConfig

    return f"revision {AutoConfig.from_pretrained(model)._commit_hash}"


def model_facts(model: str, kind: Any) -> dict[str, Any]:
    """What a page tells of the model: name, shape and parameters as the class `kind` counts them."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in kind.from_config(config).parameters())
    shape = {"layers": config.num_hidden_layers, "width": config.hidden_size}
    return {"model": Path(model).name, "type": config.model_type, "parameters": parameters, **shape}


def told(record: Record) -> str:
    """The model in words, from what is recorded of it."""
    about = record.about
    if not about:
        return "A model that the results do not name"
    size = f"{about['parameters'] / 1e6:.1f} M parameters"
    return f"{about['model']} ({about['type']}, {about['layers']} layers of {about['width']}, {size})"

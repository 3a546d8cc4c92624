# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that other programs read: a plain checkpoint, a plain LoRA, a folder ready for a GGUF converter.

Each format is a row of `FORMATS`: what is written, and what to do with it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, Refused, unknown
from .files import filling
from .hub.load import load_model, load_tokenizer
from .hub.lora import to_lora
from .materialize import materialize


GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
NEEDS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any one of them


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of export: `write` fills a folder, `next` is the command that goes on with it, or None."""

    write: Callable[[Any, Any, Path], None]
    next: Callable[[Any, Path], str | None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the folder, its bytes, and the command that goes on with it."""

    folder: Path
    bytes: int
    command: str | None


def export(source: str, format: str, folder: str | os.PathLike, dtype: str = "auto") -> Exported:
    """Write the model or adapter at `source` for programs that do not know hf_share.

    Args:
        source: a folder or Hub id.
        format: "dense" (a checkpoint for transformers, vLLM, TGI), "lora" (an adapter for peft, vLLM,
            LoRAX; `source` is an adapter, or a model that has deltas added and nothing else), or "gguf" (a
            dense folder, and the command of llama.cpp that converts it).

    Example:
        >>> export("small", "gguf", "small-gguf").command  # doctest: +SKIP
        'python llama.cpp/convert_hf_to_gguf.py small-gguf --outfile small-gguf/small-gguf-f32.gguf ...'
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, ConfigError)
    kind, place = FORMATS[format], Path(folder)
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    with filling(place) as part:
        kind.write(model, tokenizer, part)
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    return Exported(folder=place, bytes=size, command=kind.next(model, place))


def _write_dense(model: Any, tokenizer: Any, folder: Path) -> None:
    adapted = hasattr(model, "peft_config")
    plain: Any = model.merge_and_unload() if adapted else materialize(model)
    plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_lora(model: Any, tokenizer: Any, folder: Path) -> None:
    to_lora(model, folder, *(model.active_adapters[:1] if hasattr(model, "peft_config") else ()))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_gguf(model: Any, tokenizer: Any, folder: Path) -> None:
    if tokenizer is None:
        raise Refused("a GGUF file holds its tokenizer, and there is none beside the model")
    _write_dense(model, tokenizer, folder)
    if not any((folder / name).is_file() for name in NEEDS):
        raise Refused(f"the tokenizer writes none of {', '.join(NEEDS)}, and the converter reads one of them")


def _convert(model: Any, folder: Path) -> str:
    kind = GGUF_TYPES.get(str(model.dtype).removeprefix("torch."), "f16")
    out = folder / f"{folder.name}-{kind}.gguf"
    script = ("python", "llama.cpp/convert_hf_to_gguf.py")
    return shlex.join((*script, str(folder), "--outfile", str(out), "--outtype", kind))


FORMATS = {
    "dense": Format(write=_write_dense, next=lambda model, folder: None),
    "lora": Format(write=_write_lora, next=lambda model, folder: None),
    "gguf": Format(write=_write_gguf, next=_convert),
}

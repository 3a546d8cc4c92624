# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Folders that other programs read: a plain checkpoint, a quantised one, a plain LoRA, a folder ready for a
GGUF converter.

Each format is a row of `FORMATS`: what is written, and what to do with it. An elastic model is exported at
the size that is chosen. Two numbers say what that costs, and are not to be mixed:

- *Fidelity*: the file computes what the converted model computes. That is a promise, tested to 1e-4 in fp32.
- *Conversion loss*: NLL of the converted model - NLL of the subnet, on a text. It depends on the format, the
  width and the model: nothing for "dense", little for int8, much for a symmetric grid of 2 bits. It is
  measured where a text is given, on the file as it is loaded again.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .backends import BACKENDS, Backend, requantised
from .elastic import choose
from .errors import ConfigError, Refused, unknown
from .eval.perplexity import text_perplexity
from .files import filling
from .filesize import file_size
from .hub.load import load_model, load_tokenizer
from .hub.lora import to_lora
from .materialize import materialize
from .packed import packed, packed_size


GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
NEEDS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any one of them
LOSS = 0.02  # nats a token, above which the exporter warns
ANEW = "quantised anew from the merged weight, whatever width was chosen"


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """What went into a folder: the bytes its weights should take, from their shapes, and the names of weights
    that a quantised format leaves as they are.
    """

    predicted: int | None = None
    left: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of export: `write` fills a folder, `next` is the command that goes on with it, or None, and
    `note` what one should know of it.
    """

    write: Callable[[Any, Any, Path], Wrote]
    next: Callable[[Any, Path], str | None] = lambda model, folder: None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the folder, its bytes and those predicted from shapes, and the command that goes on
    with it.

    `nll_before` and `nll_after`, in nats a token, are of the model that was exported and of the one that the
    folder gives, if a text was given. `left` are the weights that a quantised format leaves as they are.
    """

    folder: Path
    bytes: int
    command: str | None
    predicted: int | None = None
    left: tuple[str, ...] = ()
    note: str | None = None
    nll_before: float | None = None
    nll_after: float | None = None

    @property
    def loss(self) -> float | None:
        """What the conversion costs, in nats a token."""
        if self.nll_before is None or self.nll_after is None:
            return None
        return self.nll_after - self.nll_before

    @property
    def warning(self) -> str | None:
        """What to say if that is too much."""
        if self.loss is None or self.loss <= LOSS:
            return None
        return (
            f"the conversion costs {self.loss:.4f} nats a token ({self.nll_before:.4f} before, "
            f"{self.nll_after:.4f} after); a wider subnet or finer codes cost less, and dense nothing"
        )


def export(
    source: str,
    format: str,
    folder: str | os.PathLike,
    dtype: str = "auto",
    *,
    text: str | None = None,
    name: str | None = None,
    budget: str | None = None,
    **choices: Any,
) -> Exported:
    """Write the model or adapter at `source` for programs that do not know hf_share.

    Args:
        source: a folder or Hub id.
        format: "dense" (a checkpoint for transformers, vLLM, TGI), "per-layer" (the same, but for sizes that
            differ from layer to layer: transformers' `per_layer_config`), "compressed-tensors" (codes of an
            elastic model, each weight at its width, for transformers and vLLM), "bnb-nf4", "bnb-int8" or
            "torchao" (quantised anew), "lora" (an adapter for peft, vLLM, LoRAX; `source` is an adapter, or a
            model that has deltas added and nothing else), or "gguf" (a dense folder, and the command of
            llama.cpp that converts it).
        text: to measure on what the conversion costs.
        name, budget, choices: the subnet of an elastic model, as `hf_share.choose` takes it: `bits=3`; what
            was active when the model was saved if left out.

    Warns:
        UserWarning: if the conversion costs more than 0.02 nats a token of `text`.

    Raises:
        ConfigError: if the model does not offer such a subnet, or the format needs what is not installed.
        Refused: if the format does not hold such a model.

    Example:
        >>> export("small", "gguf", "small-gguf").command  # doctest: +SKIP
        'python llama.cpp/convert_hf_to_gguf.py small-gguf --outfile small-gguf/small-gguf-f32.gguf ...'
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, ConfigError)
    kind, place = FORMATS[format], Path(folder)
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    if name is not None or budget is not None or choices:
        choose(model, name=name, budget=budget, **choices)
    before = _nll(model, tokenizer, text)
    with filling(place) as part:
        wrote = kind.write(model, tokenizer, part)
        after = None if text is None else _nll(load_model(str(part), dtype), tokenizer, text)
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    done = Exported(
        folder=place, bytes=size, command=kind.next(model, place), predicted=wrote.predicted, left=wrote.left,
        note=kind.note, nll_before=before, nll_after=after,
    )  # fmt: skip
    if done.warning is not None:
        warnings.warn(done.warning, stacklevel=2)
    return done


def _nll(model: Any, tokenizer: Any, text: str | None) -> float | None:
    if text is None:
        return None
    if tokenizer is None:
        raise ConfigError("what a conversion costs is measured on tokens, and the model has no tokenizer")
    return text_perplexity(model, tokenizer, text, progress=False).nll


def _write_dense(model: Any, tokenizer: Any, folder: Path) -> Wrote:
    adapted = hasattr(model, "peft_config")
    plain: Any = model.merge_and_unload() if adapted else materialize(model)
    _save(plain, tokenizer, folder)
    return Wrote(predicted=file_size(plain))


def _write_per_layer(model: Any, tokenizer: Any, folder: Path) -> Wrote:
    plain: Any = materialize(model, per_layer=True)
    _save(plain, tokenizer, folder)
    return Wrote(predicted=file_size(plain))


def _write_packed(model: Any, tokenizer: Any, folder: Path) -> Wrote:
    plain = packed(model, folder)
    _save(None, tokenizer, folder)
    return Wrote(predicted=packed_size(model, plain))


def _write_quantised(backend: Backend, model: Any, tokenizer: Any, folder: Path) -> Wrote:
    made = requantised(model, backend)
    _save(made.model, tokenizer, folder)
    return Wrote(predicted=made.bytes, left=made.left)


def _write_lora(model: Any, tokenizer: Any, folder: Path) -> Wrote:
    to_lora(model, folder, *(model.active_adapters[:1] if hasattr(model, "peft_config") else ()))
    _save(None, tokenizer, folder)
    return Wrote()


def _write_gguf(model: Any, tokenizer: Any, folder: Path) -> Wrote:
    if tokenizer is None:
        raise Refused("a GGUF file holds its tokenizer, and there is none beside the model")
    wrote = _write_dense(model, tokenizer, folder)
    if not any((folder / name).is_file() for name in NEEDS):
        raise Refused(f"the tokenizer writes none of {', '.join(NEEDS)}, and the converter reads one of them")
    return wrote


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    for what in (model, tokenizer):
        if what is not None:
            what.save_pretrained(folder)


def _convert(model: Any, folder: Path) -> str:
    kind = GGUF_TYPES.get(str(model.dtype).removeprefix("torch."), "f16")
    out = folder / f"{folder.name}-{kind}.gguf"
    script = ("python", "llama.cpp/convert_hf_to_gguf.py")
    return shlex.join((*script, str(folder), "--outfile", str(out), "--outtype", kind))


PER_LAYER = (
    "of each layer's own size, said by per_layer_config; hf_share.per_layer_class of the model's class, such "
    "as LlamaForCausalLM and no Auto class, loads them"
)
FORMATS = {
    "dense": Format(write=_write_dense),
    "per-layer": Format(write=_write_per_layer, note=PER_LAYER),
    "compressed-tensors": Format(write=_write_packed, note="each weight at its width, on a symmetric grid"),
    **{name: Format(write=partial(_write_quantised, row), note=ANEW) for name, row in BACKENDS.items()},
    "lora": Format(write=_write_lora),
    "gguf": Format(write=_write_gguf, next=_convert),
}

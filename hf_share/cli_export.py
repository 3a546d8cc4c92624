# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share export`: a model or adapter for programs that do not know hf_share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import (
    AsJson,
    Bits,
    Budget,
    Choose,
    Depth,
    Dtype,
    Ffn,
    Force,
    Groups,
    Output,
    given,
    print_json,
    print_table,
    require_free,
    tell,
)


Source = Annotated[
    str, typer.Argument(help="A Hub id or a folder, of a model or adapter.", show_default=False)
]
Format = Annotated[
    str,
    typer.Option(
        help="dense, per-layer, compressed-tensors, bnb-nf4, bnb-int8, torchao, lora or gguf.",
        show_default=False,
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="A file, on whose first 100,000 characters the cost of the conversion is measured.",
        show_default=False,
    ),
]
TEXT_MOST = 100_000


def export(
    source: Source,
    format: Format,
    output: Output,
    choose: Choose = None,
    budget: Budget = None,
    bits: Bits = None,
    ffn: Ffn = None,
    kv_groups: Groups = None,
    depth: Depth = None,
    text: Text = None,
    dtype: Dtype = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a plain or quantised checkpoint, a plain LoRA (lora), or a folder for llama.cpp (gguf)."""
    from .export import export as write
    from .files import read_text

    require_free(output, force)
    choices = given(bits=bits, ffn=ffn, kv_groups=kv_groups, depth=depth)
    words = None if text is None else read_text(text)[:TEXT_MOST]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the conversion costs")  # it is told below, in a line
        done = write(source, format, output, dtype, text=words, name=choose, budget=budget, **choices)
    if done.warning is not None:
        tell(f"warning: {done.warning}")
    if as_json:
        print_json(_numbers(done))
        return
    _tell(format, done)
    if done.command is not None:
        tell("convert it with llama.cpp; GGUF has no shared weights, so the file is as large as this folder:")
        print_table(done.command)


def _numbers(done: Any) -> dict[str, Any]:
    measured = {"nll_before": done.nll_before, "nll_after": done.nll_after, "loss": done.loss}
    return {
        "output": str(done.folder), "bytes": done.bytes, "predicted_bytes": done.predicted,
        "command": done.command, "left": list(done.left),
        **{name: value for name, value in measured.items() if value is not None},
    }  # fmt: skip


def _tell(format: str, done: Any) -> None:
    from .describe import readable

    predicted = "" if done.predicted is None else f" ({readable(done.predicted)} predicted)"
    tell(f"{format} in {done.folder}, {readable(done.bytes)}{predicted}")
    if done.note:
        tell(f"weights: {done.note}")
    if done.left:
        tell(f"left as they are: {len(done.left)} weights whose shape does not fit, first {done.left[0]}")
    if done.loss is not None:
        tell(f"NLL of the text {done.nll_before:.4f} before, {done.nll_after:.4f} after: {done.loss:+.4f}")

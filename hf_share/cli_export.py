# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share export`: a model or adapter for programs that do not know hf_share."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_common import AsJson, Dtype, Force, Output, print_json, print_table, require_free, tell


Source = Annotated[
    str, typer.Argument(help="A Hub id or a folder, of a model or adapter.", show_default=False)
]
Format = Annotated[str, typer.Option(help="dense, lora or gguf.", show_default=False)]


def export(
    source: Source,
    format: Format,
    output: Output,
    dtype: Dtype = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a plain checkpoint (dense), a plain LoRA (lora), or a folder for llama.cpp's converter (gguf)."""
    from .describe import readable
    from .export import export as write

    require_free(output, force)
    done = write(source, format, output, dtype)
    if as_json:
        print_json({"output": str(done.folder), "bytes": done.bytes, "command": done.command})
        return
    tell(f"{format} in {done.folder}, {readable(done.bytes)}")
    if done.command is not None:
        tell("convert it with llama.cpp; GGUF has no shared weights, so the file is as large as this folder:")
        print_table(done.command)

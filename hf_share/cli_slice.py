# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share slice`: one size of an elastic checkpoint, cut out of its files."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_common import (
    AsJson,
    Bits,
    Budget,
    Choose,
    Depth,
    Ffn,
    Force,
    Groups,
    Output,
    given,
    print_json,
    require_free,
    tell,
)


Source = Annotated[str, typer.Argument(help="A Hub id or a folder, of an elastic model.", show_default=False)]
Plain = Annotated[
    bool, typer.Option("--plain", help="Write a checkpoint of the stock class, of structure alone.")
]
Shard = Annotated[str, typer.Option(help="The most bytes of a file, and of memory.")]


def slice_files(
    source: Source,
    output: Output,
    choose: Choose = None,
    budget: Budget = None,
    bits: Bits = None,
    ffn: Ffn = None,
    kv_groups: Groups = None,
    depth: Depth = None,
    plain: Plain = False,
    shard: Shard = "500MB",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Cut one size of an elastic checkpoint out of its files, without building the model in memory."""
    from .describe import readable
    from .hub.slicer import slice_checkpoint

    require_free(output, force)
    asked = given(bits=bits, ffn=ffn, kv_groups=kv_groups, depth=depth)
    folder = slice_checkpoint(source, output, name=choose, budget=budget, plain=plain, shard=shard, **asked)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        print_json({"output": str(folder), "bytes": size})
        return
    tell(f"{folder}, {readable(size)}")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share slice`: one size of an elastic checkpoint, cut out of its files."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_common import AsJson, Force, Output, print_json, require_free, tell


Source = Annotated[str, typer.Argument(help="A Hub id or a folder, of an elastic model.", show_default=False)]
Choose = Annotated[str | None, typer.Option(help="A subnet of its subnets.json.", show_default=False)]
Budget = Annotated[
    str | None, typer.Option(help='The best of them within "3.0 bits" or "1.2 GB".', show_default=False)
]
Bits = Annotated[int | None, typer.Option(help="Bits of all codes.", show_default=False)]
Ffn = Annotated[
    float | None, typer.Option(help="Share of the neurons of all feed-forward blocks.", show_default=False)
]
Groups = Annotated[
    int | None, typer.Option("--kv-groups", help="Key-value groups of all attentions.", show_default=False)
]
Depth = Annotated[
    int | None, typer.Option(help="Number of layers, of a plain checkpoint.", show_default=False)
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Write a checkpoint of the stock class, for structure alone.")
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
    sizes = {"bits": bits, "ffn": ffn, "kv_groups": kv_groups, "depth": depth}
    asked = {key: value for key, value in sizes.items() if value is not None}
    folder = slice_checkpoint(source, output, name=choose, budget=budget, plain=plain, shard=shard, **asked)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if as_json:
        print_json({"output": str(folder), "bytes": size})
        return
    tell(f"{folder}, {readable(size)}")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share quantize`: codes of few bits for everything linear that a model stores."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_common import (
    AsJson,
    Dtype,
    Force,
    Model,
    Output,
    load,
    print_json,
    require_free,
    save,
    tell,
)
from .cli_scan import measured_on
from .cli_share import report


def quantize(
    model: Model,
    output: Output,
    bits: Annotated[int, typer.Option(help="Bits of a code, 1 to 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Neighbours that have one scale and one offset.")] = 64,
    text: Annotated[
        str | None, typer.Option(help="Text like the model's own: errors are weighed by what it meets there.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="How codes are found: minmax, hqq or gptq; gptq with --text, else minmax."),
    ] = None,
    dtype: Dtype = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Keep a model's linear weights, and what its rules store, in few bits: a dense model or a shared one."""
    import hf_share

    require_free(output, force)
    loaded, tokenizer = load(model, dtype)
    data = None if text is None else measured_on(loaded, tokenizer, text)
    made = hf_share.quantize(loaded, bits, group_size=group_size, base=base, calibration=data)
    save(made, tokenizer, output)
    description = hf_share.describe(made)
    if as_json:
        print_json(description.to_dict())
        return
    report(description)
    tell(f"saved in {output}")

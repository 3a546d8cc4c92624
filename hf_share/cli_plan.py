# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share plan`: what in a model could be shared, and a plan for a number of bytes; or a method's plan, or
what training takes, for which a config.json is enough.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .cli_common import (
    Calibration,
    LowRank,
    Method,
    Set,
    Trials,
    load,
    print_json,
    print_table,
    require_place,
    sharing_of,
)
from .cli_scan import measured_on, scan_model
from .window import READ, window_of


Model = Annotated[
    str,
    typer.Argument(
        help="A Hub id or a folder; a config.json does for --estimate, and a --method that measures nothing.",
        show_default=False,
    ),
]
PlanFile = Annotated[Path | None, typer.Option(help="A plan as JSON, instead of --method.")]
AsEstimate = Annotated[
    bool, typer.Option("--estimate", help="Bytes of weights, gradients, optimizer, activations and file.")
]
Train = Annotated[
    str | None, typer.Option(help="adapter, rules, full or none; by default what the method is for.")
]
Precision = Annotated[
    str | None, typer.Option(help="Of the weights: float32, bfloat16 or float16; else the config's.")
]
Bits = Annotated[int | None, typer.Option(help="4 or 8: frozen linear weights, quantised.")]
Optimizer = Annotated[str, typer.Option(help="adamw, momentum or sgd.")]
Batch = Annotated[int, typer.Option(help="Rows of a step.")]
Length = Annotated[int | None, typer.Option(help="Tokens of a row; the model's context, at most 2048.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Gradient checkpointing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Target = Annotated[
    str | None,
    typer.Option(help="Propose a plan for this much of the dense file: 0.6, 60%, 4GB.", show_default=False),
]
PlanOut = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the plan as JSON.", show_default=False)
]
Plot = Annotated[Path | None, typer.Option(help="Draw the scan as a PNG.", show_default=False)]
Stack = Annotated[str | None, typer.Option(help="Stack of layers, for models with several.")]
Measure = Annotated[
    list[str] | None,
    typer.Option(help="influence, drift, heads or spectrum; repeatable. All by default.", show_default=False),
]


def plan(
    model: Model,
    target_bytes: Target = None,
    output: PlanOut = None,
    plot: Plot = None,
    text: Calibration = "stdlib",
    stack: Stack = None,
    measure: Measure = None,
    low_rank: LowRank = False,
    trials: Trials = None,
    method: Method = None,
    set_: Set = None,
    plan: PlanFile = None,
    estimate: AsEstimate = False,
    train: Train = None,
    precision: Precision = None,
    bits: Bits = None,
    optimizer: Optimizer = "adamw",
    batch: Batch = 1,
    length: Length = None,
    checkpointing: Checkpointing = False,
    as_json: AsJson = False,
) -> None:
    """Scan a model for what could be shared, and propose a plan for --target-bytes.

    With --method or --plan, show that plan; with --estimate, the memory that training takes, also of what
    --target-bytes or a method that measures would come to: what was assumed for it is told.
    """
    from .errors import ConfigError
    from .files import write_text

    require_place(output, "--output")
    require_place(plot, "--plot")
    sharing = sharing_of(method, set_ or [], plan)
    numbers = {
        "dtype": precision, "bits": bits, "optimizer": optimizer, "batch": batch, "length": length,
        "checkpointing": checkpointing,
    }  # fmt: skip
    if not estimate:
        _refuse_estimate({"train": train, **numbers})
    if sharing is None and not estimate:
        scan_model(model, target_bytes, output, plot, text, stack, measure, low_rank, trials, as_json)
        return
    scan = {"plot": plot, "measure": measure, "low-rank": low_rank, "trials": trials}
    sized = estimate and sharing is None and target_bytes is not None
    _refuse_scan(scan if sized else {"target-bytes": target_bytes, "stack": stack, **scan})
    config = _read_config(model)
    if not estimate:
        made = _resolved(model, config, sharing, text)
        if output is not None:
            write_text(output, made.to_json(indent=2))
        print(made.to_json() if as_json else made)
        return
    if output is not None:
        raise ConfigError("--output is of a plan; --estimate prints numbers, with --json for a file")
    numbers["length"] = length or window_of(config, READ)
    if target_bytes is not None:
        rows = _of_target(config, target_bytes, stack, train, numbers)
    else:
        rows = _estimates(config, sharing, train, numbers)
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        print_table(_table(rows), *(f"assumed: {text}" for text in rows[-1].assumed))


def _refuse_scan(given: dict[str, Any]) -> None:
    from .errors import ConfigError

    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name} is of the scan, which goes without --method, --plan and --estimate")


OF_ESTIMATES = {"optimizer": "adamw", "batch": 1, "checkpointing": False}  # the others have no default


def _refuse_estimate(given: dict[str, Any]) -> None:
    from .errors import ConfigError

    for name, value in given.items():
        if value != OF_ESTIMATES.get(name):
            option = "precision" if name == "dtype" else name
            raise ConfigError(f"--{option} is of the memory that training takes: add --estimate")


def _read_config(model: str) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(model)
    except OSError as error:
        raise OSError(f"no config at {model!r}: {error}") from None


def _resolved(name: str, config: Any, sharing: Any, text: str) -> Any:
    """The plan for the model: from its shapes, or from its weights where the method measures them."""
    from .plan import SharePlan
    from .shapes import build_on_meta

    if getattr(sharing, "needs_calibration", False):
        model, tokenizer = load(name, "auto")
        return sharing.resolve(model, measured_on(model, tokenizer, text))
    shapes = build_on_meta(config)
    made = sharing if isinstance(sharing, SharePlan) else sharing.resolve(shapes)
    made.validate(shapes)
    return made


def _estimates(config: Any, sharing: Any, train: str | None, numbers: dict[str, Any]) -> list[Any]:
    """The dense model, plain LoRA of the same rank on all linear weights, and what was asked for."""
    from peft import LoraConfig

    from .estimate import estimate

    lora = LoraConfig(r=getattr(sharing, "r", 8), target_modules="all-linear")
    dense = numbers if train in ("none", "full") else {**numbers, "bits": None}
    rows = [estimate(config, train="none" if train == "none" else "full", **dense)]
    if train != "none":
        rows.append(estimate(config, lora, **numbers))
    if sharing is not None:
        rows.append(estimate(config, sharing, train=train, **numbers))
    return rows


def _of_target(config: Any, target: str, stack: str | None, train: str | None, numbers: Any) -> list[Any]:
    """The dense model, plain LoRA, and a plan of the bytes asked for."""
    from .propose import ASSUMED, outline
    from .shapes import build_on_meta

    plan = outline(build_on_meta(config, numbers["dtype"]), target, stack)
    *others, found = _estimates(config, plan, train, numbers)
    return [*others, replace(found, method=f"target {target}", assumed=(ASSUMED,))]


def _table(rows: list[Any]) -> Table:
    from .describe import readable

    one = rows[-1]
    title = f"{one.model}, {one.dtype}, {one.batch} x {one.length} tokens, {one.optimizer}"
    title += ", checkpointing" if one.checkpointing else ""
    columns = (
        "trains",
        "trained",
        "weights",
        "gradients",
        "optimizer",
        "activations (estimate)",
        "total",
        "file",
    )
    table = Table("method", title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        sizes = (row.weights, row.gradients, row.optimizer_states, row.activations, row.total, row.file)
        bits = (f", {row.bits} bits" if row.bits else "") + (" (about)" if row.assumed else "")
        cells = ("unknown" if size is None else readable(size) for size in sizes)
        table.add_row(row.method + bits, row.train, f"{row.trained:,}", *cells)
    return table

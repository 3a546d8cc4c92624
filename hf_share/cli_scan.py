# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The scan behind `hf-share plan MODEL`, and the proposal it ends with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from .cli_common import load, numbers_table, print_json, print_table, tell


SHOWN = 8  # trials; --json has them all


def scan_model(
    name: str,
    target: str | None,
    output: Path | None,
    plot: Path | None,
    text: str,
    stack: str | None,
    measures: list[str] | None,
    low_rank: bool,
    trials: int | None,
    as_json: bool,
) -> None:
    """Print what a model's layers measure, draw it, and propose a plan for `target`."""
    from .errors import ConfigError
    from .scan import scan

    if output is not None and target is None:
        raise ConfigError("--output is of a plan: say how small with --target-bytes, or name a --method")
    require_target(target, low_rank, trials)
    model, tokenizer = load(name, "auto")
    data = measured_on(model, tokenizer, text)
    found = scan(model, data, stack, measures)
    made = None if target is None else proposal(model, target, data, stack, low_rank, trials)
    if plot is not None:
        found.plot(plot)
    if made is not None and output is not None:
        write_plan(made, output)
    if as_json:
        print_json({"scan": found.to_dict(), "proposal": None if made is None else made.to_dict()})
        return
    print_table(f"{found.model}, stack {found.stack}", *_layers(found), *_roles(found))
    for measure, reason in found.missing.items():
        tell(f"no {measure}: {reason}")
    if made is not None:
        print_table(*told(made), str(made.plan))
        if output is not None:
            tell(f"apply it: hf-share share {name} --plan {output} --text {text} -o small")


def require_target(target: str | None, low_rank: bool, trials: int | None) -> None:
    """Raise for options of `--target-bytes` without it."""
    from .errors import ConfigError

    if low_rank and target is None:
        raise ConfigError("--low-rank goes with --target-bytes; by itself it is --method svd")
    if trials is not None and target is None:
        raise ConfigError("--trials goes with --target-bytes")


def measured_on(model: Any, tokenizer: Any, text: str) -> Any:
    """Sixteen windows of the text, in batches of four, no longer than the model reads."""
    from .errors import ConfigError
    from .importance import tokenize
    from .train.text import load_text
    from .window import MEASURED, window_of

    if tokenizer is None:
        raise ConfigError("layers are measured on text, but the model has no tokenizer; name them by hand")
    if text == "stdlib":
        tell("measured on Python's standard library; text like the model's own, --text FILE, is better")
    return tokenize(tokenizer, load_text(text).train[:64], length=window_of(model.config, MEASURED))[:4]


def proposal(
    model: Any, target: str, data: Any, stack: str | None, low_rank: bool, trials: int | None
) -> Any:
    from .propose import TRIALS, propose

    return propose(model, target, data, stack, low_rank, TRIALS if trials is None else trials)


def write_plan(made: Any, output: Path) -> None:
    from .files import write_text

    write_text(output, made.plan.to_json(indent=2))


def told(made: Any) -> tuple[str, Table, str]:
    """Asked and got, the nearest trials as a table, and the reason for the choice."""
    title = f"asked {size(made.limit, made.dense)}, got {size(made.chosen.bytes, made.dense)}"
    table = numbers_table("plan", "layers stored", "depths run", "size", "KL to dense, nats a token")
    for trial in made.nearest[:SHOWN]:
        chosen = " (chosen)" if trial is made.chosen else ""
        cells = (str(trial.stored), str(trial.visits), size(trial.bytes, made.dense), f"{trial.distance:.3f}")
        table.add_row(f"{trial}{chosen}", *cells)
    return title, table, made.why


def size(count: int, dense: int) -> str:
    """`16.5 MB (0.600 of dense)`."""
    from .describe import readable

    return f"{readable(count)} ({count / dense:.3f} of dense)"


def _layers(found: Any) -> Iterator[Table]:
    columns = [name for name in ("influence", "drift", "heads") if getattr(found, name) is not None]
    if not columns:
        return
    heads = {"influence": "block influence", "drift": "KL to the next layer", "heads": "most alike by heads"}
    table = numbers_table("layer", *(heads[name] for name in columns))
    rows = {name: list(_cells(found, name)) for name in columns}
    for layer in range(found.depth):
        table.add_row(str(layer), *(rows[name][layer] for name in columns))
    yield table


def _cells(found: Any, name: str) -> Iterator[str]:
    if name == "influence":
        yield from (f"{value:.4f}" for value in found.influence)
    elif name == "drift":
        yield from (*(f"{value:.4f}" for value in found.drift), "")
    else:
        for layer, row in enumerate(found.heads):
            near = max((x for x, v in enumerate(row) if x != layer and v is not None), key=row.__getitem__,
                       default=None)  # fmt: skip
            yield "" if near is None else f"{near} ({row[near]:.3f})"


def _roles(found: Any) -> Iterator[Table | str]:
    if not found.spectrum:
        return
    yield "share of the rank that holds 90 % of the energy"
    table = numbers_table("role", "least", "mean", "most")
    for role, row in found.spectrum.items():
        values = [v for v in row if v is not None]
        numbers = (min(values), sum(values) / len(values), max(values))
        table.add_row(role, *(f"{v:.3f}" for v in numbers))
    yield table

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share search`: the subnet of an elastic model for a budget, written beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .cli_common import AsJson, Dtype, load, numbers_table, print_json, print_table, tell


Model = Annotated[
    str, typer.Argument(help="A Hub id or a folder with an elastic model or adapter.", show_default=False)
]
Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget",
        help="bits=3.0, bytes=1.2GB, params=9e8 or latency_ms=12; repeat it for several limits at once.",
        show_default=False,
    ),
]  # fmt: skip
SearchText = Annotated[
    str,
    typer.Option("--search-text", "--search_text", help="To choose on: stdlib, a file, or a data set id."),
]
ReportText = Annotated[
    str | None,
    typer.Option(
        "--report-text", "--report_text",
        help="To measure the chosen on; the held-out part of the search text if left out.",
    ),
]  # fmt: skip
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for subnets.json, table, plot; else the model's."),
]
Method = Annotated[str, typer.Option(help="sensitivity+knapsack+swaps, nsga2, evopress, llm-qfa, lim, ...")]
Evaluations = Annotated[
    int, typer.Option(min=0, help="Passes over all search text, or as much, after the sensitivity table.")
]
Rungs = Annotated[
    int, typer.Option(min=1, help="Budgets of the front from the smallest to the largest subnet.")
]
Context = Annotated[int, typer.Option(help="Tokens of a window, at most what the model takes.")]
SearchTokens = Annotated[
    int, typer.Option(min=2, help="Tokens of the search text; an evaluation reads them all.")
]
ReportTokens = Annotated[int, typer.Option(min=2, help="Tokens that a subnet is reported on.")]
Teacher = Annotated[
    str | None, typer.Option(help="What subnets should predict like; the largest subnet if left out.")
]
Latency = Annotated[
    Path | None, typer.Option(help='Milliseconds as JSON: {"rest": 5, site: {"2": 0.1, "3": 0.2}}.')
]
Batch = Annotated[int, typer.Option(min=1, help="Windows per forward pass.")]
Seed = Annotated[int, typer.Option(help="Of the draws; the same seed goes on where a search stopped.")]


def search(
    model: Model,
    budget: Budgets,
    search_text: SearchText = "stdlib",
    report_text: ReportText = None,
    output: Output = None,
    method: Method = "sensitivity+knapsack+swaps",
    evaluations: Evaluations = 150,
    rungs: Rungs = 9,
    context: Context = 256,
    search_tokens: SearchTokens = 8192,
    report_tokens: ReportTokens = 32768,
    teacher: Teacher = None,
    latency: Latency = None,
    batch: Batch = 8,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Search the best subnet for a budget: the bits of every weight; in a model without them, ffn and
    kv_groups of every sub-layer, or else the rank of every delta. A search that was stopped goes on where it
    was.
    """
    from .budget import Budget
    from .errors import ConfigError
    from .search.run import search as run
    from .window import window_of

    limits, folder = Budget.of(",".join(budget)), _folder(model, output)
    loaded, tokenizer = load(model, dtype)
    if tokenizer is None:
        raise ConfigError(f"a search reads text, but there is no tokenizer beside {model!r}")
    length = window_of(loaded.config, context)
    chosen_on, reported_on = _documents(search_text, report_text)
    found = run(
        loaded, limits, _windows(tokenizer, chosen_on, length, search_tokens),
        _windows(tokenizer, reported_on, length, report_tokens), method=method, evaluations=evaluations,
        rungs=rungs, teacher=None if teacher is None else load(teacher, dtype, tokenizer=False)[0],
        latency=_read(latency),
        batch=batch, seed=seed, output=folder,
    )  # fmt: skip
    if as_json:
        print_json(found.rows)
        return
    print_table("subnets, by loss on the report split", _table(found))
    tell(
        f"{found.best['name']} after {found.evaluations:g} evaluations' worth of search text in "
        f"{found.passes} passes, {found.measured} of them new; "
        f"written to {folder}"
    )
    if found.kept:
        tell(f"left as chosen: {', '.join(found.kept)}")


def _folder(model: str, output: Path | None) -> Path:
    from .errors import ConfigError

    if output is None and not Path(model).is_dir():
        raise ConfigError(f"{model!r} is no folder to write subnets.json into; name one with -o")
    return Path(model) if output is None else output


def _documents(search_text: str, report_text: str | None) -> tuple[Sequence[str], Sequence[str]]:
    from .train.text import load_text

    chosen_on = load_text(search_text)
    if report_text is None:
        return chosen_on.train, chosen_on.heldout
    reported_on = load_text(report_text)
    return tuple(chosen_on.train + chosen_on.heldout), tuple(reported_on.train + reported_on.heldout)


def _windows(tokenizer: Any, documents: Sequence[str], length: int, tokens: int) -> Any:
    """As many windows as `tokens` fill, at least one."""
    from .train.text import windows

    enough, left = [], 16 * max(tokens, length)  # characters: few tokens are longer
    for document in documents:
        enough.append(document[:left])
        left -= len(enough[-1])
        if left <= 0:
            break
    return windows(tokenizer, enough, length)[: max(tokens // length, 1)]


def _read(latency: Path | None) -> Any:
    from .files import read_json

    return None if latency is None else read_json(latency)


def _table(found: Any) -> Table:
    from .search.front import cells

    table = numbers_table("subnet", "mean bits", "bytes", "nll")
    for row in found.rows:
        style = "bold" if row["name"] == found.best["name"] else None
        table.add_row(*cells(row), style=style)
    return table

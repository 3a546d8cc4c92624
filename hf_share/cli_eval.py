# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share eval` and `hf-share compare`: models on tasks and on a text, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import AsJson, Dtype, numbers_table, print_json, print_table, require_place, tell


Models = Annotated[
    list[str],
    typer.Argument(
        help="Hub ids or folders; small@loops=1 is an elastic model at a choice, small@quant=nf4 a model in "
        "4 bits (or int8), me/small@revision=v2 a branch, tag or commit.", show_default=False
    ),
]
Tasks = Annotated[
    str | None, typer.Option(help="Tasks of lm-eval, such as hellaswag,piqa.", show_default=False)
]
IncludePath = Annotated[
    Path | None,
    typer.Option("--include_path", "--include-path", help="Folder with task files.", show_default=False),
]
Text = Annotated[
    Path | None, typer.Option(help="A text file to measure perplexity on.", show_default=False)
]
WikiText = Annotated[
    str | None,
    typer.Option(
        help="The same by the WikiText-2 protocol: a file of its lines, or a data set's id.",
        show_default=False,
    ),
]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens of a window; the model's context, at most 2048.")
]
Stride = Annotated[int | None, typer.Option(min=1, help="Tokens a window moves on; the window.")]
Batch = Annotated[
    str, typer.Option("--batch-size", "--batch_size", help="Rows of a forward pass, or auto.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="The first so many items of each task.")]
Fewshot = Annotated[
    int | None, typer.Option("--num-fewshot", "--num_fewshot", min=0, help="Examples before each item.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write OUT.json, OUT.md and, of several, OUT.png.", show_default=False
    ),
]


def evaluate(
    models: Models,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    text: Text = None,
    wikitext: WikiText = None,
    window: Window = None,
    stride: Stride = None,
    batch_size: Batch = "auto",
    limit: Limit = None,
    num_fewshot: Fewshot = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure decode speed too.")] = False,
    dtype: Dtype = "auto",
    output: Out = None,
    as_json: AsJson = False,
) -> None:
    """Score models on tasks of lm-eval and on a text; differences are to the first."""
    from .errors import ConfigError

    if not tasks and text is None and wikitext is None:
        raise ConfigError("nothing to evaluate on: give --tasks, --text or --wikitext")
    _run(
        models, output, as_json, tasks=tasks or "", include_path=include_path, batch=_rows(batch_size),
        limit=limit, num_fewshot=num_fewshot, window=window, stride=stride, speed=speed, dtype=dtype,
        **_text(text, wikitext),
    )  # fmt: skip


def compare(
    models: Models,
    text: Text = None,
    wikitext: WikiText = None,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    window: Window = None,
    stride: Stride = None,
    batch_size: Batch = "auto",
    limit: Limit = None,
    dtype: Dtype = "auto",
    output: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare models: size, parameters stored and used, decode speed, perplexity on a text, and tasks."""
    _run(
        models, output, as_json, tasks=tasks or "", include_path=include_path, batch=_rows(batch_size),
        limit=limit, window=window, stride=stride, speed=True, dtype=dtype,
        **(_text(text, wikitext) if text or wikitext else _own_text()),
    )  # fmt: skip


def _run(models: list[str], output: Path | None, as_json: bool, **ask: Any) -> None:
    from .eval.measure import evaluate as measure

    require_place(output, "--output")
    if ask["include_path"] is not None:
        ask["include_path"] = str(ask["include_path"])
    ask["tasks"] = [task for task in ask["tasks"].replace(" ", ",").split(",") if task]
    report = measure(list(models), progress=lambda name: tell(f"measuring {name}"), **ask)
    written = report.save(output) if output is not None else []
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    for path in written:
        tell(f"wrote {path}")


def _show(report: Any) -> None:
    table = numbers_table("model", *report.head(), *report.tasks)
    for row in report.rows():
        table.add_row(*row)
    print_table(table)
    if report.tasks and len(report.models) > 1:
        title = f"difference to {report.models[0].name} on the same items"
        changes = numbers_table("model", *report.tasks)
        for row in report.changes():
            changes.add_row(*row)
        print_table(title, changes)
    for note in report.notes():
        print_table(note.replace("**", ""))


def _rows(text: str) -> int | str:
    from .errors import ConfigError

    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise ConfigError(f"--batch-size {text!r}; auto, or a whole number of at least 1, fits")


def _text(text: Path | None, lines: str | None) -> dict[str, Any]:
    from .errors import ConfigError
    from .eval.perplexity import wikitext
    from .files import read_text

    if text is not None and lines is not None:
        raise ConfigError("--text and --wikitext are two ways to measure perplexity; give one")
    if text is not None:
        return {"text": read_text(text), "text_name": text.name}
    if lines is None:
        return {}
    return {"text": wikitext(_lines(lines)), "text_name": f"{Path(lines).name} (WikiText-2 protocol)"}


def _lines(source: str) -> list[str]:
    if Path(source).is_file():
        with Path(source).open(encoding="utf-8") as rows:  # a row ends where the data set's reader ends it
            return list(rows)
    from datasets import load_dataset

    place, _, name = source.partition(":")
    return list(load_dataset(place, name or None, split="test")["text"])


OWN_BYTES = 100_000


def _own_text() -> dict[str, Any]:
    """Held-out files of Python's standard library, which are on every machine."""
    from .train.text import stdlib_text

    text = "\n".join(stdlib_text().heldout)[:OWN_BYTES]
    return {"text": text, "text_name": "Python's standard library, held-out files"}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share`: the verbs on folders and Hub ids. A user's error is one line and exit code 2; `diff` of plans
that differ exits with 1, everything that was done with 0.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from . import (
    cli_diff,
    cli_eval,
    cli_export,
    cli_plan,
    cli_quantize,
    cli_search,
    cli_share,
    cli_slice,
    cli_train,
)
from .cli_common import (
    AsJson,
    Dtype,
    Force,
    Model,
    Output,
    console,
    load,
    print_json,
    require_free,
    save,
    tell,
    user_errors,
)


app = typer.Typer(
    help="Weight sharing and compression for Hugging Face models.", no_args_is_help=True,
    add_completion=False, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        print(sys.modules["hf_share"].__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="The version, and nothing else.")
]


@app.callback()
def options(version: Version = False) -> None:
    """Weight sharing and compression for Hugging Face models."""


app.command()(cli_plan.plan)
app.command()(cli_search.search)
app.add_typer(cli_train.app, name="train")
app.command()(cli_share.share)
app.command()(cli_quantize.quantize)
app.command("eval")(cli_eval.evaluate)
app.command()(cli_eval.compare)
app.command()(cli_export.export)
app.command("slice")(cli_slice.slice_files)
app.command()(cli_diff.diff)


@app.command("lm_eval", context_settings={"ignore_unknown_options": True, "help_option_names": []})
def lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(help="What lm_eval takes.")] = None,
) -> None:
    """Run lm_eval itself with hf_share in it: hf-share lm_eval run --model hf-share ..."""
    from .launch import launch

    launch(["lm_eval", *(arguments or ())])


@app.command()
def describe(
    model: Model,
    plot: Annotated[Path | None, typer.Option(help="Also draw the grid of depth x role as a PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model stores, uses and saves."""
    import hf_share

    loaded, _ = load(model, "auto", tokenizer=False)
    description: Any = hf_share.describe(loaded)
    if plot is not None:
        description.plot(plot)
    if as_json:
        print_json(description.to_dict())
    else:
        cli_share.report(description)


@app.command()
def materialize(
    model: Model, output: Output, dtype: Dtype = "auto", force: Force = False, as_json: AsJson = False
) -> None:
    """Write a shared model as a plain one, which loads without hf_share (vLLM, GGUF, ...)."""
    import hf_share

    from .hub.outline import file_bytes

    require_free(output, force)
    loaded, tokenizer = load(model, dtype)
    save(hf_share.materialize(loaded), tokenizer, output)
    if as_json:
        print_json({"output": str(output), "bytes": file_bytes(output)})
    tell(f"plain model in {output}")


Folder = Annotated[Path, typer.Argument(help="A saved checkpoint or adapter.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Hub id of the source model.")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="Hub id of training data; repeat it.")]
License = Annotated[str | None, typer.Option(help="The Hub's name of a license, such as apache-2.0.")]
Results = Annotated[
    Path | None,
    typer.Option(
        help="Scores as JSON: what hf-share eval -o or lm-eval writes, with errors, items and limits, or "
        "data set -> metric -> number.", show_default=False
    ),
]


Notes = Annotated[
    list[str] | None,
    typer.Option("--note", help="What a reader should know, such as the text it was healed on; repeat it."),
]


@app.command()
def card(
    folder: Folder,
    base_model: Base = None,
    dataset: Datasets = None,
    license: License = None,
    results: Results = None,
    note: Notes = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; the terminal if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model card from the plan in a folder and from measured scores."""
    import hf_share

    from .files import write_text

    if output is not None and output.exists() and not force:
        raise FileExistsError(f"{output} is there already; choose another file or add --force")
    made = hf_share.model_card(folder, **_card_options(folder, base_model, dataset, license, results, note))
    if output is not None:
        write_text(output, str(made))
    if as_json:
        print_json({"metadata": made.data.to_dict(), "text": made.text})
    elif output is None:
        print(made)


@app.command()
def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(help="Hub id to push to, made if new.", show_default=False)],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="For a new repository.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if new.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    base_model: Base = None,
    dataset: Datasets = None,
    license: License = None,
    results: Results = None,
    note: Notes = None,
    as_json: AsJson = False,
) -> None:
    """Upload a folder to the Hub in one commit, with a model card if it has none."""
    from .hub.push import push_folder

    options = _card_options(folder, base_model, dataset, license, results, note)
    done = push_folder(folder, repo, private=private, revision=revision, message=message, **options)
    tell(f"pushed to {done.repo_url.repo_id}, commit {done.oid}")
    if as_json:
        print_json({"repo": done.repo_url.repo_id, "commit": done.oid, "url": done.commit_url})
    else:
        print(done.commit_url)


def _card_options(
    folder: Path,
    base: str | None,
    datasets: list[str] | None,
    license: str | None,
    results: Path | None,
    notes: list[str] | None,
) -> dict[str, Any]:
    from .eval.carded import baseline_of, scores_of
    from .files import read_json

    found = None if results is None else read_json(results)
    return {
        "base_model": base, "datasets": datasets or (), "license": license, "notes": notes or (),
        "results": scores_of(found, folder), "baseline": baseline_of(found, folder),
    }  # fmt: skip


def main() -> None:
    """Entry point: a user's error is one line, not a traceback."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 layers warn of every cast, at every call
    try:
        app()
    except user_errors() as error:
        console.print("[red]error:[/red]", escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

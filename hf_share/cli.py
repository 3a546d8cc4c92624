# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share plan | share | describe | materialize | card | push`: the verbs on folders and Hub ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import cli_plan, cli_search


app = typer.Typer(
    help="Weight sharing and compression for Hugging Face models.", no_args_is_help=True,
    add_completion=False, rich_markup_mode="rich",
)  # fmt: skip
app.command()(cli_plan.plan)
app.command()(cli_search.search)
console = Console(stderr=True)

Model = Annotated[str, typer.Argument(help="A Hub id or a folder with a model.", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; it must not hold a model yet.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over a model in the output folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


@app.command()
def share(
    model: Model,
    output: Output,
    removal_rate: Annotated[
        float, typer.Option(help="Share of the layers to remove, least important first.")
    ] = 0.0,
    remove: Annotated[str | None, typer.Option(help="Layers to remove, such as 5,6.")] = None,
    group_size: Annotated[int, typer.Option(help="Neighbours that share one set of weights.")] = 1,
    groups: Annotated[str | None, typer.Option(help="Explicit groups, such as 0/1,2/3,4/5.")] = None,
    parent: Annotated[
        str, typer.Option(help="Weights of a group: its first member's, or the mean.")
    ] = "first",
    importance: Annotated[
        str, typer.Option(help="How layers are ranked: bi, block influence, or gate, learnable gates.")
    ] = "bi",
    relax: Annotated[
        str, typer.Option(help="What each member of a group has of its own: none, scale or lora.")
    ] = "none",
    stack: Annotated[str | None, typer.Option(help="Stack of layers, for models with several.")] = None,
    text: Annotated[
        str, typer.Option(help="Text to rank layers on: stdlib, a file, or a data set id.")
    ] = "stdlib",
    plan: Annotated[
        Path | None, typer.Option(help="A plan as JSON, instead of the options above.")
    ] = None,
    dtype: Dtype = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Share a model's weights and save it: each shared weight is written once."""
    import hf_share

    _writable(output, force)
    if plan is not None:
        config: Any = hf_share.SharePlan.from_json(plan.read_text(encoding="utf-8"))
    else:
        config = hf_share.FoldConfig(
            removal_rate=removal_rate, remove=_numbers(remove), group_size=group_size, groups=_groups(groups),
            parent=parent, importance=importance, relax=relax, stack=stack,
        )  # fmt: skip
    loaded, tokenizer = _load(model, dtype)
    shared = hf_share.share(loaded, config, calibration=_calibration(config, tokenizer, text))
    _save(shared, tokenizer, output)
    _report(hf_share.describe(shared), as_json)


@app.command()
def describe(
    model: Model,
    plot: Annotated[Path | None, typer.Option(help="Also draw the grid of depth x role as a PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model stores, uses and saves."""
    import hf_share

    loaded, _ = _load(model, "auto", tokenizer=False)
    description = hf_share.describe(loaded)
    if plot is not None:
        description.plot(plot)
    _report(description, as_json)


@app.command()
def materialize(model: Model, output: Output, dtype: Dtype = "auto", force: Force = False) -> None:
    """Write a shared model as a plain one, which loads without hf_share (vLLM, GGUF, ...)."""
    import hf_share

    _writable(output, force)
    loaded, tokenizer = _load(model, dtype)
    _save(hf_share.materialize(loaded), tokenizer, output)
    console.print(f"plain model in [bold]{output}[/bold]")


Folder = Annotated[Path, typer.Argument(help="A saved checkpoint or adapter.", show_default=False)]
Base = Annotated[str | None, typer.Option(help="Hub id of the source model.")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="Hub id of training data; repeat it.")]
License = Annotated[str | None, typer.Option(help="The Hub's name of a license, such as apache-2.0.")]
Results = Annotated[
    Path | None, typer.Option(help="Scores as JSON: data set -> metric -> number, or what lm-eval writes.")
]


@app.command()
def card(
    folder: Folder,
    base_model: Base = None,
    dataset: Datasets = None,
    license: License = None,
    results: Results = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; the terminal if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write a model card from the plan in a folder and from measured scores."""
    import hf_share

    if output is not None and output.exists() and not force:
        raise FileExistsError(f"{output} is there already; choose another file or add --force")
    made = hf_share.model_card(folder, **_card_options(base_model, dataset, license, results))
    if output is None:
        print(made)
    else:
        made.save(output)


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
) -> None:
    """Upload a folder to the Hub in one commit, with a model card if it has none."""
    from .hub.push import push_folder

    options = _card_options(base_model, dataset, license, results)
    done = push_folder(folder, repo, private=private, revision=revision, message=message, **options)
    console.print(f"pushed to [bold]{done.repo_url.repo_id}[/bold], commit {done.oid}")
    print(done.commit_url)


def _card_options(base: str | None, datasets: list[str] | None, license: str | None, results: Path | None):
    scores = None if results is None else json.loads(results.read_text(encoding="utf-8"))
    return {"base_model": base, "datasets": datasets or (), "license": license, "results": scores}


def _load(model: str, dtype: str, tokenizer: bool = True) -> tuple[Any, Any]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except OSError as error:
        raise OSError(f"no model at {model!r}: {error}") from None
    name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    auto = getattr(transformers, name, transformers.AutoModel)
    loaded = auto.from_pretrained(model, dtype=dtype)
    if not tokenizer:
        return loaded, None
    try:
        return loaded, transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        return loaded, None


def _calibration(config: Any, tokenizer: Any, text: str) -> Any:
    if not getattr(config, "needs_calibration", False):
        return None
    from .errors import ConfigError
    from .importance import tokenize
    from .train.text import load_text

    if tokenizer is None:
        raise ConfigError(
            "removal_rate ranks layers on text, but the model has no tokenizer; name layers with --remove"
        )
    return tokenize(tokenizer, load_text(text).train[:64], length=256)[:16]


def _writable(output: Path, force: bool) -> None:
    if (output / "config.json").exists() and not force:
        raise FileExistsError(f"{output} already holds a model; choose another folder or add --force")


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    """Write into a folder beside the output, then move: a full disk or a kill leaves no half a model."""
    import shutil
    import tempfile

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as part:
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        output.mkdir(exist_ok=True)
        for file in Path(part).iterdir():
            shutil.move(str(file), output / file.name)


def _report(description: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(description.to_dict(), indent=2))
        return
    table = Table(
        "group",
        "stored once",
        "visited",
        "saved",
        title=str(description).splitlines()[0],
        title_justify="left",
    )
    for group in description.groups:
        table.add_row(group.name, f"{group.stored:,}", str(group.visits), f"{group.saved:,}")
    Console().print(table if description.groups else str(description))


def _numbers(text: str | None) -> list[int] | None:
    from .errors import ConfigError

    try:
        return None if text is None else [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of layers such as 5,6") from None


def _groups(text: str | None) -> list[list[int]] | None:
    return None if text is None else [_numbers(part) or [] for part in text.split("/")]


def main() -> None:
    """Entry point: a user's error is one line, not a traceback."""
    import transformers

    from .errors import ShareError

    transformers.utils.logging.set_verbosity_error()
    try:
        app()
    except (ShareError, OSError, ValueError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands have in common: options, loading, saving, and numbers for people or for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


console = Console(stderr=True)
WIDE = 10_000  # columns of a pipe or a file

Model = Annotated[str, typer.Argument(help="A Hub id or a folder with a model.", show_default=False)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; it must not hold a model yet.")
]
Force = Annotated[bool, typer.Option("--force", help="Write over a model in the output folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Choose = Annotated[str | None, typer.Option(help="A subnet of the model's subnets.json.", show_default=False)]
Budget = Annotated[
    str | None,
    typer.Option(help='The best of them within "3.0 bits" or "1.2 MB".', show_default=False),
]
Bits = Annotated[
    int | None, typer.Option(help="The same width for all codes of an elastic model.", show_default=False)
]
Ffn = Annotated[
    float | None, typer.Option(help="Share of the neurons of all feed-forward blocks.", show_default=False)
]
Groups = Annotated[
    int | None, typer.Option("--kv-groups", help="Key-value groups of all attentions.", show_default=False)
]
Depth = Annotated[int | None, typer.Option(help="Number of layers.", show_default=False)]
Calibration = Annotated[
    str, typer.Option(help="Text to measure layers on: stdlib, a file, or a data set id.")
]
LowRank = Annotated[
    bool, typer.Option("--low-rank", help="For --target-bytes: try low-rank factors of every weight, too.")
]
Trials = Annotated[
    int | None, typer.Option(min=1, help="For --target-bytes: so many ways are tried.", show_default="64")
]
Method = Annotated[
    str | None, typer.Option(help="A method: fold, masa, mos, recursive, share_lora, svd, ...")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A number of the method, such as group_size=2; repeatable.")
]


def given(**choices: Any) -> dict[str, Any]:
    """The choices that were asked for."""
    return {name: value for name, value in choices.items() if value is not None}


def load(model: str, dtype: str, tokenizer: bool = True) -> tuple[Any, Any]:
    """The model of a folder or Hub id, by the class its config names, and its tokenizer if it has one.

    An adapter comes on the base it names.
    """
    from .hub.load import load_model, load_tokenizer

    loaded = load_model(model, dtype)
    return loaded, load_tokenizer(model) if tokenizer else None


def sharing_of(method: str | None, given: list[str], plan: Path | None) -> Any:
    """The config of `--method` with its numbers from `--set`, or the plan in a file; None of none."""
    from .config import ShareConfig
    from .errors import ConfigError

    if plan is not None and (method or given):
        raise ConfigError("--plan says everything; --method and --set go without it")
    if plan is not None:
        return plan_in(plan)
    if method is None and given:
        raise ConfigError("--set gives a number of a method; name it with --method")
    return None if method is None else ShareConfig(method=method, **dict(map(_pair, given)))


def plan_in(path: Path) -> Any:
    """The plan in a JSON file."""
    from .errors import PlanError
    from .files import read_text
    from .plan import SharePlan

    try:
        return SharePlan.from_json(read_text(path))
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    from .errors import ConfigError

    key, equals, value = text.partition("=")
    try:
        if not equals or not key.isidentifier():
            raise ValueError
        return key, yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"{text!r} is not of the form key=value, such as group_size=2") from None


def require_free(output: Path, force: bool) -> None:
    """Raise if `output` holds a model or an adapter that nobody allowed to write over."""
    if output.is_file():
        raise FileExistsError(f"{output} is a file; choose a folder")
    held = any((output / name).exists() for name in ("config.json", "adapter_config.json"))
    if held and not force:
        raise FileExistsError(f"{output} already holds a model; choose another folder or add --force")


def require_place(path: Path | None, option: str) -> None:
    """Raise if no file can be written at `path`, before the work that would be lost."""
    from .errors import ConfigError

    if path is not None and path.is_dir():
        raise ConfigError(f"{option} {path}: there is a folder of this name; give a file")
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """Write beside the output, then move: a full disk or a kill leaves no half a model."""
    from .files import filling

    with filling(output) as part:
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


def print_json(values: Any) -> None:
    """The only thing a command with --json writes to the standard output."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def print_table(*parts: Table | str) -> None:
    """Tables and texts on the standard output; brackets in a text are no markup. In a pipe nothing is cut."""
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for part in parts:
        text = isinstance(part, str)
        console.print(part, highlight=False, markup=not text, soft_wrap=text)


def tell(text: str) -> None:
    """A line beside the results, on the standard error."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def numbers_table(first: str, *columns: str) -> Table:
    """A table whose first column is names and whose others are numbers."""
    table = Table(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def user_errors() -> tuple[type[BaseException], ...]:
    """What is the user's to mend, and is told in a line without a traceback."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    from .errors import ShareError

    return (ShareError, OSError, ValueError, SafetensorError, HfHubHTTPError)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share diff`: two plans, step by step, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import AsJson, plan_in, print_json, print_table, tell


Plan = Annotated[
    str, typer.Argument(help="A plan as JSON, or the folder or Hub id of a model.", show_default=False)
]


def diff(first: Plan, second: Plan, as_json: AsJson = False) -> None:
    """Show what differs between two plans; exit code 1 if anything does."""
    from .difference import difference

    changes = difference(read_plan(first), read_plan(second))
    differs = any(change.kind != "same" for change in changes)
    if as_json:
        print_json({"equal": not differs, "steps": [change.to_dict() for change in changes]})
    else:
        for change in changes:
            print_table(str(change))
        print_table("the plans differ" if differs else "the plans are equal")
    raise typer.Exit(1 if differs else 0)


def read_plan(place: str) -> Any:
    """The plan in a JSON file, in a checkpoint's config.json or in an adapter's; empty for a dense model."""
    from .hub.record import stored_plan
    from .plan import SharePlan

    if Path(place).is_file() and Path(place).name not in ("config.json", "adapter_config.json"):
        return plan_in(Path(place))
    found = stored_plan(place)
    if found is None:
        tell(f"{place} has no plan: it is a plain model")
    return SharePlan() if found is None else found

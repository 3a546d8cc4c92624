# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share share`: make a model smaller by numbers of FoldGPT, any method, a plan, or for a number of
bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import (
    AsJson,
    Calibration,
    Dtype,
    Force,
    LowRank,
    Method,
    Model,
    Output,
    Set,
    Trials,
    load,
    numbers_table,
    print_json,
    print_table,
    require_free,
    save,
    sharing_of,
    tell,
)
from .cli_scan import measured_on, proposal, require_target, size, told


def share(
    model: Model,
    output: Output,
    target_bytes: Annotated[
        str | None,
        typer.Option(help="Plan and share in one step, for this much of the dense file: 0.6, 60%, 4GB."),
    ] = None,
    low_rank: LowRank = False,
    trials: Trials = None,
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
    text: Calibration = "stdlib",
    method: Method = None,
    set_: Set = None,
    plan: Annotated[Path | None, typer.Option(help="A plan as JSON, instead of the options above.")] = None,
    dtype: Dtype = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Share a model's weights and save it: each shared weight is written once."""
    import hf_share

    by_hand = {
        "removal_rate": removal_rate, "remove": _numbers(remove), "group_size": group_size,
        "groups": _groups(groups), "parent": parent, "importance": importance, "relax": relax,
    }  # fmt: skip
    _one_way(by_hand, {"--plan": plan, "--method": method, "--target-bytes": target_bytes})
    require_free(output, force)
    require_target(target_bytes, low_rank, trials)
    config = sharing_of(method, set_ or [], plan)
    if config is not None and stack is not None:
        raise hf_share.ConfigError("--stack is of the other ways to share; a method takes --set stack=...")
    if config is None and target_bytes is None:
        config = hf_share.FoldConfig(stack=stack, **by_hand)
    loaded, tokenizer = load(model, dtype)
    if target_bytes is not None:
        data = measured_on(loaded, tokenizer, text)
        made = proposal(loaded, target_bytes, data, stack, low_rank, trials)
        if not as_json:
            print_table(*told(made))
        shared, target = hf_share.share(loaded, made.plan, data), _target(target_bytes, made)
    else:
        data = measured_on(loaded, tokenizer, text) if _measures(config) else None
        shared, target = hf_share.share(loaded, config, data), None
    save(shared, tokenizer, output)
    _finish(hf_share.describe(shared), target, output, as_json)


def _measures(config: Any) -> bool:
    """True if the config, or a rule of the plan, weighs errors by text."""
    from .rules import step_rule

    steps = getattr(config, "generates", ())
    return getattr(config, "needs_calibration", False) or any(step_rule(s).calibrated for s in steps)


def _one_way(by_hand: dict[str, Any], whole: dict[str, Any]) -> None:
    """Raise unless there is one thing that says what is shared."""
    import hf_share

    default = hf_share.FoldConfig()
    given = [name for name, value in by_hand.items() if value != getattr(default, name)]
    ways = [option for option, value in whole.items() if value]
    if ways and (len(ways) > 1 or given):
        named = [*ways, *("--" + name.replace("_", "-") for name in given)]
        raise hf_share.ConfigError(f"{named[0]} says everything; leave out {', '.join(named[1:])}")
    if not ways and not given:
        raise hf_share.ConfigError(
            "nothing says what to share: --target-bytes 0.6, --group-size 2, --remove 5,6, "
            "--method svd --set ratio=0.6, or --plan FILE"
        )


def _target(asked: str, made: Any) -> dict[str, Any]:
    return {"target": asked, "asked": made.limit, "dense": made.dense, "why": made.why}


def _finish(description: Any, target: dict[str, Any] | None, output: Path, as_json: bool) -> None:
    if target is not None:
        from .hub.outline import file_bytes

        target["got"] = file_bytes(output)
    if as_json:
        print_json(description.to_dict() | ({} if target is None else {"target": target}))
        return
    report(description)
    if target is not None:
        sizes = (size(target[key], target["dense"]) for key in ("asked", "got"))
        tell("asked {}, got {} on disk".format(*sizes))
    tell(f"saved in {output}")


def report(description: Any) -> None:
    """What is stored, for each group that shares: once how much, visited how often, saved how much."""
    title = str(description).splitlines()[0]
    if not description.groups:
        print_table(str(description))
        return
    table = numbers_table("group", "stored once", "visited", "saved")
    for group in description.groups:
        table.add_row(group.name, f"{group.stored:,}", f"{group.visits} times", f"{group.saved:,}")
    print_table(title, table)


def _numbers(text: str | None) -> list[int] | None:
    from .errors import ConfigError

    try:
        return None if text is None else [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of layers such as 5,6") from None


def _groups(text: str | None) -> list[list[int]] | None:
    return None if text is None else [_numbers(part) or [] for part in text.split("/")]

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a card says of a model that works at several sizes: what may be chosen, and its named subnets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..depths import counts, loops
from ..markdown import table
from ..plan import SharePlan
from ..rules import RULES, step_rule


TOLD = ("bits", "ffn", "kv_groups", "depth", "loops")  # any low-rank delta has ranks
ALONE = ("bits", "ffn", "kv_groups")  # what a file can be read by
HEAD = ("subnet", "mean bits", "bytes", "NLL", "measured on")


def sizes(plan: SharePlan | None, rows: Sequence[Mapping[str, Any]], repo: str) -> str:
    """The paragraph on sizes, in Markdown; empty for a model that has one."""
    offered = _offered(plan)
    if not offered:
        return ""
    said = "; ".join(f"`{name}`: {', '.join(map(str, values))}" for name, values in offered.items())
    told = f"One file, several models. Chosen in place by `hf_share.choose(model, ...)`: {said}."
    parts = ["## Sizes", told]
    if rows:
        parts.append(table(HEAD, [_row(row) for row in rows]))
    names = [name for name in ALONE if name in offered]
    if names:
        asked = f'"{rows[0]["name"]}"' if rows else f"{names[0]}={offered[names[0]][0]!r}"
        parts.append(
            "One of them alone, of whose tensors no more is kept than it needs:\n\n```python\n"
            f'config = hf_share.subnet_config("{repo}", {asked})\n'
            f'model = AutoModelForCausalLM.from_pretrained("{repo}", config=config)\n```'
        )
    return "\n\n".join(parts) + "\n\n"


def _offered(plan: SharePlan | None) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for step in plan.generates if plan is not None else ():
        choices = step_rule(step).choices() if step.rule in RULES else {}
        found |= {name: values for name, values in choices.items() if name in TOLD}
    if plan is not None and counts(plan):
        found["depth"] = counts(plan)
    if plan is not None and any(step.pattern == "loops" for step in plan.arranges):
        found["loops"] = loops(plan)  # layers in groups may stop early, too, but are not made for it
    return {name: found[name] for name in TOLD if name in found}


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    bits, nll = row["mean_bits"], row["nll"]
    mean = "-" if bits is None else f"{bits:.3f}"
    return (row["name"], mean, f"{row['bytes']:,}", "-" if nll is None else f"{nll:.4f}", row["split"])

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan in sentences: one for each arrangement of layers and for each rule, with its paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..plan import SharePlan
from ..steps import Arrange, Generate


@dataclass(frozen=True)
class Line:
    """One sentence of the card, and the tag by which the Hub finds models like it."""

    tag: str
    text: str


# kind of step or rule -> tag, what it does, paper
KINDS = {
    "recursive": ("recursive", "a block of layers runs several times", "2410.20672"),
    "fold": ("foldgpt", "layers share the weights of others", "2407.00928"),
    "removal": ("layer-removal", "layers are left out", None),
    "atoms": ("masa", "weights are sums of a few shared matrices", "2508.04581"),
    "shards": ("mos", "low-rank factors are put together from a shared pool", "2410.00938"),
    "shared_low_rank": ("share-lora", "low-rank deltas share factors between layers", "2406.10785"),
    "low_rank": ("low-rank", "each weight has a low-rank delta of its own", None),
    "factors": ("low-rank", "weights are products of two thin matrices", None),
    "scale": ("scale", "each output of a weight has a factor of its own", None),
}


def explain(plan: SharePlan | None) -> list[Line]:
    """The sentences of `plan`, in the order of its steps; none for a model without a plan."""
    if plan is None:
        return []
    lines = [_arranged(step) for step in plan.arranges]
    for kind in dict.fromkeys(_kind(step) for step in plan.generates):
        lines.append(_generated(kind, [step for step in plan.generates if _kind(step) == kind]))
    return lines


def _arranged(step: Arrange) -> Line:
    source = step.origin or step
    order = [s for s in step.order if s is not None]
    unique = len(set(order))
    kind = "recursive" if _repeats(order) else "fold" if unique < len(order) else "removal"
    shown = " ".join("-" if s is None else str(s) for s in source.order)
    where = f"stack `{step.stack}`, {len(order)} depths, {unique} stored, of source layers {shown}"
    return _line(kind, where)


def _repeats(order: Sequence[int]) -> bool:
    """Whether a block comes round whole: 0 1 2 0 1 2."""
    block = list(dict.fromkeys(order))
    return 1 < len(block) < len(order) and list(order) == block * (len(order) // len(block))


def _kind(step: Generate) -> str:
    return "shared_low_rank" if step.rule == "low_rank" and step.args.get("share") else step.rule


def _generated(kind: str, steps: Sequence[Generate]) -> Line:
    sites = sum(len(step.sites) for step in steps)
    numbers = {f"{key} = {value}" for step in steps for key, value in _plain(step.args.items())}
    given = f"; {', '.join(sorted(numbers))}" if len(numbers) <= 6 and numbers else ""
    return _line(kind, f"{sites} weights in {len(steps)} groups{given}")


def _plain(items: Iterable[tuple[str, object]]) -> Iterable[tuple[str, object]]:
    return ((key, value) for key, value in items if isinstance(value, (bool, int, float, str)))


def _line(kind: str, where: str) -> Line:
    tag, does, paper = KINDS.get(kind, (kind.replace("_", "-"), f"the rule `{kind}` makes weights", None))
    link = f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    return Line(tag, f"{does}{link}: {where}")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf_share.search`: the subnet of an elastic model for a budget, chosen on one text, reported on another.

    1. s[d][o]   what each option of each weight does to KL(full || subnet), around a uniform subnet
    2. exact knapsacks over s for the budget, and for a ladder of budgets: a whole front at once
    3. swaps that keep the budget, each tried on the model

At most 2L + 1 evaluations for the table of L weights with three widths, and `evaluations` for the swaps. The
front's other subnets are not refined. Everything measured is kept in the output folder, where a search that
was killed goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from ..elastic import choose, chosen
from ..errors import ConfigError
from ..eval.perplexity import perplexity
from . import front
from .budget import Budget
from .elastic_space import current, elastic_space, importances, modules_of
from .evaluate import Evaluator
from .latency import Latencies, latency_cost, measure_latency
from .methods import DEFAULT, Task, run
from .objective import Divergence, fingerprint, text_hash
from .space import Candidate, Space
from .splits import require_disjoint, windows_of


EVALUATIONS = "evaluations.jsonl"
LATENCY = "latency.json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search gives: the subnet for the budget, the rows of the front with it, smallest first, and what
    it cost: `evaluations` on the search split, of which `measured` ran now and the others were kept.
    """

    best: front.Subnet
    rows: tuple[front.Subnet, ...]
    divergence: float  # KL of the best on the search split, nats per token
    evaluations: float
    measured: int

    def __str__(self) -> str:
        return front.table(self.rows)


def search(
    model: nn.Module,
    budget: Budget | str | Mapping[str, Any],
    search_data: Sequence[Any],
    report_data: Sequence[Any],
    *,
    method: str = DEFAULT,
    evaluations: int = 150,
    rungs: int = 9,
    teacher: nn.Module | None = None,
    latency: Latencies | None = None,
    batch: int = 8,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    progress: bool = True,
) -> Found:
    """The best subnet found within a budget, and a front around it. The model is left as it was; set the
    subnet with `choose(model, **found.best.choices)`.

    Args:
        budget: `"bits=3.0"`, `"bytes=1.2GB"`, `"latency_ms=12"`, several joined by commas, or a dict of them.
        search_data: texts, or token windows of shape (n, length), to choose on.
        report_data: the same, to measure the loss of what was chosen on; no text of `search_data`.
        method: see `hf_share/search/methods.py`.
        evaluations: of the method after its sensitivity table, each on all of `search_data`.
        rungs: budgets of the ladder from the smallest to the largest subnet; 0 gives the best alone.
        teacher: what subnets should predict like; the largest subnet if None.
        latency: milliseconds for a budget of `latency_ms`, `{"rest": ms, site: {width: ms}}`; measured on the
            model itself, one token at a time, if None.
        output: folder for evaluations, `subnets.json`, a table and a plot; nothing is written if None.

    Raises:
        ConfigError: for a budget below the smallest subnet, an empty split, splits that overlap, or a model
            that is not elastic; nothing has been evaluated then.

    Example:
        >>> found = hf_share.search(model, "bits=3.0", texts[:50], texts[50:])  # doctest: +SKIP
        >>> hf_share.choose(model, **found.best.choices)  # doctest: +SKIP
    """
    limits = Budget.of(budget)
    space = elastic_space(model)
    chosen_on, reported_on = (
        windows_of(model, d, n) for d, n in ((search_data, "search"), (report_data, "report"))
    )
    require_disjoint(chosen_on, reported_on)
    folder = None if output is None else Path(output)
    with chosen(model, **current(model, space)):
        if "latency_ms" in dict(limits.limits):
            space = _with_latency(model, space, latency, chosen_on[:1, :1], folder)
        space.check(limits)
        evaluate = Evaluator(
            Divergence(model, lambda c: _apply(model, space, c), space.largest, chosen_on, teacher=teacher, batch=batch),
            fingerprint=fingerprint(chosen_on, model, teacher),
            path=None if folder is None else folder / EVALUATIONS,
            fits=lambda candidate: space.fits(candidate, limits),
            progress=progress,
        )
        task = Task(
            space=space, evaluate=evaluate, budget=limits, evaluations=evaluations, seed=seed, rungs=rungs,
            importance=importances(model, space, chosen_on.split(batch)),
        )  # fmt: skip
        outcome = run(method, task)
        listed = {b.name: c for b, c in outcome.front} | {limits.name: outcome.best}
        split = {"search": _about(chosen_on), "report": _about(reported_on)}
        rows = []
        for name, candidate in tqdm(listed.items(), desc="report", unit="subnet", leave=False, disable=not progress):
            _apply(model, space, candidate)
            nll = perplexity(model, reported_on, batch=batch, progress=False).nll  # type: ignore[arg-type]
            rows.append(_row(space, name, candidate, nll, split))
    best = front.named(rows, limits.name)
    found = Found(
        best=best, rows=tuple(front.ordered(rows)), divergence=evaluate(outcome.best),
        evaluations=evaluate.spent, measured=evaluate.measured,
    )  # fmt: skip
    if folder is not None:
        write(found, folder)
    return found


def write(found: Found, folder: str | os.PathLike) -> None:
    """The rows into `subnets.json`, a table `front.md` and a plot `front.png` of all subnets in the folder."""
    path = front.write_subnets(folder, found.rows)
    rows = front.read_subnets(path.parent)
    part = path.with_name("front.md.part")
    part.write_text(front.table(rows) + "\n", encoding="utf-8")
    part.replace(path.with_name("front.md"))
    front.plot_front(rows, path.with_name("front.png"))


def _apply(model: nn.Module, space: Space, candidate: Candidate) -> None:
    choose(model, **space.choices(candidate))


def _row(
    space: Space, name: str, candidate: Candidate, nll: float, split: Mapping[str, str]
) -> front.Subnet:
    amounts = space.amounts(candidate)
    return front.Subnet(
        name=name, choices=space.choices(candidate), bytes=round(amounts["bytes"]),
        mean_bits=amounts.get("bits"), nll=nll, split=split, latency_ms=amounts.get("latency_ms"),
    )  # fmt: skip


def _about(windows: Tensor) -> str:
    return f"{len(windows)} windows of {windows.shape[1]} tokens, {text_hash(windows)}"


def _with_latency(
    model: nn.Module, space: Space, given: Latencies | None, ids: Tensor, folder: Path | None
) -> Space:
    """The space with a cost `latency_ms`. What is measured is kept, since a second measurement would differ
    and lead a search that goes on elsewhere.
    """
    kept = None if folder is None else folder / LATENCY
    if given is None and kept is not None and kept.exists():
        given = json.loads(kept.read_text(encoding="utf-8"))
    if given is None:
        given = measure_latency(model, space, lambda c: _apply(model, space, c), modules_of(model, space), ids)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(kept.name + ".part")
            part.write_text(json.dumps(given, indent=1) + "\n", encoding="utf-8")
            part.replace(kept)
    costs = {**space.costs, "latency_ms": latency_cost(space.decisions, given)}
    return Space(decisions=space.decisions, costs=costs)

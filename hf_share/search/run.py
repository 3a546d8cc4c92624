# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf_share.search`: the subnet of an elastic model for a budget, chosen on one text, reported on another.

    1. s[d][o]   what each option of each weight does to KL(full || subnet), around a uniform subnet
    2. exact knapsacks over s for the budget, and for a ladder of budgets: a whole front at once
    3. swaps that keep the budget, each tried on the model

An evaluation is a pass over all of the search text; a pass over a quarter of it, as most swaps get, counts a
quarter. At most 2L + 1 evaluations for the table of L weights with three widths, and `evaluations` for the
swaps. The front's other subnets are not refined. Everything measured is kept in the output folder, where a
search that was killed goes on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from ..budget import Budget
from ..elastic import bindings, choices, choose, chosen
from ..errors import ConfigError
from ..eval.perplexity import perplexity
from ..files import write_text
from ..lanes import Lanes
from ..registry import remember, subnets
from ..ties import weights_hash
from . import front
from .elastic_space import elastic_space, importances, modules_of
from .evaluate import Evaluator
from .latency import Latencies, latency_cost, measure_latency
from .methods import DEFAULT, Task, run
from .objective import Divergence, fingerprint, text_hash
from .rank_space import rank_space
from .space import Candidate, Space
from .splits import require_disjoint, windows_of
from .structure_space import structure_space


EVALUATIONS = "evaluations.jsonl"
LATENCY = "latency.json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search gives: the row for the budget, all rows of the front, smallest first, what it cost, and
    the choices `kept` that the model has besides and that stayed as they were.

    It cost the text of `evaluations` passes over the whole search split, read in `passes`, of which many saw
    a part of it. `measured` of these were made now, and the output folder answered the others.

    A row has the keys of `subnets.json`: `name, choices, bytes, mean_bits, nll, split`.
    """

    best: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    divergence: float  # KL of the best on the search split, nats per token
    evaluations: float
    passes: int
    measured: int
    kept: tuple[str, ...] = ()

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
    subnet with `choose(model, name=found.best["name"])`.

    Searched are the bits of every weight; in a model without that choice, the `ffn` and `kv_groups` of every
    sub-layer; in one without these, the `rank` of every low-rank delta, at the cost of the LoRA that
    `to_lora` makes of it. Other choices, such as depth, stay as they are chosen (`Found.kept`).

    Args:
        budget: `"bits=3.0"`, `"bytes=1.2GB"`, `"latency_ms=12"`, several joined by commas, or a dict of them.
        search_data: texts, or token windows of shape (n, length), to choose on.
        report_data: the same, to measure the loss of what was chosen on; no text of `search_data`.
        method: see `hf_share/search/methods.py`.
        evaluations: what the method may spend after its sensitivity table, in passes over all of
            `search_data`; a pass over a quarter of it counts a quarter.
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
        >>> hf_share.choose(model, name="3.0-bits")  # doctest: +SKIP
    """
    limits = Budget.of(budget)
    splits = [windows_of(model, d, n) for d, n in ((search_data, "search"), (report_data, "report"))]
    require_disjoint(*splits)
    folder = None if output is None else Path(output)
    with chosen(model):
        space = _space(model, limits, latency, splits[0][:1, :1], folder)
        evaluate = Evaluator(
            Divergence(model, _setter(model, space), space.largest, splits[0], teacher=teacher, batch=batch),
            fingerprint=fingerprint(splits[0], model, teacher),
            parts=len(splits[0]),
            path=None if folder is None else folder / EVALUATIONS,
            fits=lambda candidate: space.fits(candidate, limits),
            progress=progress,
        )
        task = Task(
            space=space, evaluate=evaluate, budget=limits, evaluations=evaluations, seed=seed, rungs=rungs,
            importance=importances(model, space, splits[0].split(batch)),
        )  # fmt: skip
        outcome = run(method, task)
        named = {b.name: c for b, c in outcome.front} | {limits.name: outcome.best}
        rows = _report(model, space, named, splits, batch, progress)
        divergence = evaluate(outcome.best)
    remember(model, front.merged(subnets(model), rows))
    if folder is not None:
        front.write(folder, rows)
    return Found(
        best=next(row for row in rows if row["name"] == limits.name), rows=tuple(rows),
        divergence=divergence, evaluations=evaluate.spent, passes=evaluate.passes,
        measured=evaluate.measured,
        kept=tuple(name for name in choices(model) if name not in _kinds(space)),
    )  # fmt: skip


def _report(
    model: nn.Module, space: Space, named: Mapping[str, Candidate], splits: Sequence[Tensor], batch: int,
    progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each named candidate, with its loss on the report split."""
    chosen_on, reported_on = map(_about, splits)
    rows, apply, standing = [], _setter(model, space), _standing(model)
    weights = weights_hash(model)
    for name, candidate in tqdm(named.items(), "report", unit="subnet", leave=False, disable=not progress):
        apply(candidate)
        nll = perplexity(model, splits[1], batch=batch, progress=False).nll  # type: ignore[arg-type]
        split = f"{reported_on}; chosen on {chosen_on}"
        row = _row(space, standing, name, candidate, nll if math.isfinite(nll) else None, split)
        rows.append({**row, "weights": weights} if weights else row)
    return front.ordered(rows)


def _setter(model: nn.Module, space: Space) -> Callable[[Candidate], object]:
    return lambda candidate: choose(model, **space.choices(candidate))


def _standing(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The sizes of sub-layers that are less than whole, which a search for widths leaves as they are."""
    found: dict[str, dict[str, Any]] = {}
    for binding in bindings(model):
        if isinstance(binding.rule, Lanes) and binding.rule.limits:
            found.setdefault(binding.rule.size_name, {})[binding.site.name] = binding.rule.size
    return found


def _row(
    space: Space, standing: dict[str, Any], name: str, candidate: Candidate, nll: float | None, split: str
) -> dict[str, Any]:
    amounts = space.amounts(candidate)
    return {
        "name": name, "choices": {**standing, **space.choices(candidate)}, "bytes": round(amounts["bytes"]),
        "mean_bits": amounts.get("bits"), "nll": nll, "split": split,
    }  # fmt: skip


def _about(windows: Tensor) -> str:
    return f"{len(windows)} windows of {windows.shape[1]} tokens, {text_hash(windows)}"


def _space(
    model: nn.Module, budget: Budget, given: Latencies | None, ids: Tensor, folder: Path | None
) -> Space:
    """The model's space, with a cost `latency_ms` if the budget has one. What is measured is kept, since a
    second measurement would differ and lead a search that goes on elsewhere.
    """
    space = _choices(model)
    if "latency_ms" in dict(budget.limits) and not _kinds(space) & {"bits", "rank"}:
        raise ConfigError("lanes that are left out still run here, so a smaller size takes no less time")
    smaller = _smaller(model, space)
    if "latency_ms" not in dict(budget.limits):
        space.check(budget, smaller)
        return space
    kept = None if folder is None else folder / LATENCY
    if given is None and kept is not None and kept.exists():
        given = json.loads(kept.read_text(encoding="utf-8"))
    if given is None:
        given = measure_latency(model, space, _setter(model, space), modules_of(model, space), ids)
        if kept is not None:
            write_text(kept, json.dumps(given, indent=1))
    costs = {**space.costs, "latency_ms": latency_cost(space.decisions, given)}
    space = Space(decisions=space.decisions, costs=costs)
    space.check(budget, smaller)
    return space


def _choices(model: nn.Module) -> Space:
    """The space of the bits of `model`, or of the sizes of its sub-layers, or of its ranks."""
    has = choices(model)
    if "bits" in has:
        return elastic_space(model)
    if "ffn" in has or "kv_groups" in has:
        return structure_space(model)
    if "rank" in has:
        return rank_space(model)
    others = f"; hf_share.choose sets {', '.join(has)}, which this model has" if has else ""
    raise ConfigError(
        "a search is for bits, ffn, kv_groups or rank, and this model has none of these choices; "
        f"hf_share.ElasticConfig(bits=...), (ffn=...) or (ranks=...) makes one{others}"
    )


def _kinds(space: Space) -> set[str]:
    return {decision.kind for decision in space.decisions}


def _smaller(model: nn.Module, space: Space) -> str:
    """The call that makes those sub-layers small whose sizes the search leaves as they are, if any is not."""
    rules = [b.rule for b in bindings(model) if isinstance(b.rule, Lanes) and b.rule.choices()]
    least = {r.size_name: r.sizes[0] for r in rules if r.active_lanes > r.count(r.sizes[0])}
    open_ = sorted((kind, size) for kind, size in least.items() if kind not in _kinds(space))
    said = ", ".join(f"{kind}={size!r}" for kind, size in open_)
    return f"hf_share.choose(model, {said})" if said else ""

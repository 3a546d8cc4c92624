# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Time of a forward pass as a cost that adds up: what each option of each decision takes, and the rest.

    t(c) = rest + sum_d t[d][c_d]

A table measured on the machine and the engine that will serve the model is the one to search with: how fast
3 bits are depends on its kernels. What can be measured here is the elastic model itself, whose weights are
formed from their codes on every call: each uniform candidate runs a few times, hooks time the module of each
decision, and medians are taken. Decisions whose weights are parts of one module share its time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import ConfigError
from ..importance import evaluating
from .space import Candidate, Cost, Decision, Space


REST = "rest"  # the key of what no decision changes
Latencies = Mapping[str, Any]  # {"rest": ms, site: {option: ms, ...}, ...}


def latency_cost(decisions: Sequence[Decision], table: Latencies) -> Cost:
    """The cost in milliseconds that a table says; options may be the strings that JSON makes of numbers."""
    rows = [table.get(d.name, {}) for d in decisions] if isinstance(table, Mapping) else [None]
    if not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError("a latency table is {site: {option: milliseconds}}, as measure_latency makes it")
    options = []
    for d in decisions:
        row = {str(option): ms for option, ms in dict(table.get(d.name, {})).items()}
        missing = [o for o in d.options if str(o) not in row]
        if missing:
            raise ConfigError(f"the latency table says nothing of {d.kind}={missing[0]!r} at {d.name!r}")
        options.append(tuple(float(row[str(o)]) for o in d.options))
    return Cost(options=tuple(options), fixed=float(table.get(REST, 0.0)))


def measure_latency(
    model: nn.Module,
    space: Space,
    apply: Callable[[Candidate], object],
    modules: Mapping[str, nn.Module],
    ids: Tensor,
    *,
    repeats: int = 5,
) -> dict[str, Any]:
    """A latency table of `model` itself on `ids` (rows, tokens).

    Args:
        apply: sets a candidate on the model.
        modules: the module that each decision is about, by the decision's name.
    """
    count = Counter(id(module) for module in modules.values())
    table: dict[str, Any] = {d.name: {} for d in space.decisions}
    rests = []
    for candidate in tqdm(space.uniform(), desc="latency", unit="candidate", leave=False):
        apply(candidate)
        whole, parts = _times(model, {id(m): m for m in modules.values()}, ids, repeats)
        for d, index in zip(space.decisions, candidate, strict=True):
            key = id(modules[d.name])
            table[d.name][d.options[index]] = 1e3 * parts[key] / count[key]
        rests.append(max(whole - sum(parts.values()), 0.0))
    return {REST: 1e3 * median(rests), **table}


@torch.no_grad()
def _times(
    model: nn.Module, modules: Mapping[int, nn.Module], ids: Tensor, repeats: int
) -> tuple[float, dict[int, float]]:
    """Median seconds of a forward pass and of each module in it."""
    started: dict[int, float] = {}
    spent: dict[int, float] = {}

    def start(module: nn.Module, args: Any) -> None:
        started[id(module)] = _now(ids)

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        spent[id(module)] = spent.get(id(module), 0.0) + _now(ids) - started[id(module)]

    handles = [m.register_forward_pre_hook(start) for m in modules.values()]
    handles += [m.register_forward_hook(stop) for m in modules.values()]
    wholes, parts = [], []
    try:
        with evaluating(model):
            for turn in range(repeats + 1):
                spent.clear()
                begin = _now(ids)
                model(input_ids=ids, use_cache=False)
                if turn:  # the first pass warms up
                    wholes.append(_now(ids) - begin)
                    parts.append(dict(spent))
    finally:
        for handle in handles:
            handle.remove()
    return median(wholes), {key: median(part.get(key, 0.0) for part in parts) for key in modules}


def _now(ids: Tensor) -> float:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    return time.perf_counter()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A comparison is a list of cells; a cell is a name, plain settings, and a function that gives plain numbers.

Every cell is written the moment it is done, one JSON line, and skipped when the comparison is run again: a
run that was killed goes on where it was. What cells there are may depend on results (a grid of learning rates
that grows while its best is at an edge), so they are asked for again after each one. Workers are processes of
one thread each, so that numbers do not depend on how many run.
"""

from __future__ import annotations

import fnmatch
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import ConfigError, unknown
from ..lines import append_line, drop_cut_line, read_lines
from .record import Record, keep_record


@dataclass(frozen=True)
class Cell:
    """One measurement: its name, unique in the comparison, and the settings its function gets. What a clock
    tells is measured `alone`, with no other cell beside it.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


Results = dict[str, dict[str, Any]]  # name -> what the cell's function gave


def read(path: str | Path) -> Results:
    """Results written so far. A last line that was cut short is a cell that was not done."""
    return {row["cell"]: row for row in read_lines(path) if "cell" in row}


def run(
    wanted: Callable[[Results], Iterable[Cell]],
    measure: Callable[[Mapping[str, Any]], dict[str, Any]],
    path: str | Path,
    *,
    record: Record | None = None,
    adopt: bool = False,
    only: str = "*",
    jobs: int = 1,
) -> Results:
    """Measure every cell that `wanted` names, given the results so far, and that has no result yet.

    Args:
        measure: a function of a module (workers import it) from settings to plain numbers.
        path: the JSON lines file of results, made if it does not exist.
        record: what decides the numbers beside the cells' settings; a file of something else is refused.
        adopt: take a file that does not say what it is of to be of `record`.
        only: a glob over names; other cells are left out.
        jobs: worker processes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_cut_line(path)
    if record is not None:
        keep_record(path, record, adopt)
    results = read(path)
    if only != "*" and not fnmatch.filter([c.name for c in wanted(results)] + list(results), only):
        raise unknown("cell", only, [c.name for c in wanted(results)], ConfigError)
    running: dict[Future, Cell] = {}
    failed: BaseException | None = None
    os.environ["TQDM_DISABLE"] = "1"  # of workers, whose bars would run into each other
    context = multiprocessing.get_context("spawn")
    with _progress() as bar, ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        task = bar.add_task("cells", total=None)
        while True:
            busy = {cell.name for cell in running.values()}
            asked = {c.name: c for c in wanted(results) if fnmatch.fnmatch(c.name, only)}
            left = [c for name, c in asked.items() if name not in results and name not in busy]
            bar.update(task, total=len(asked), completed=len(asked) - len(left) - len(busy))
            for cell in left[: jobs - len(running)] if failed is None else ():
                if running and any(c.alone for c in (cell, *running.values())):
                    break
                running[pool.submit(_timed, measure, dict(cell.settings))] = cell
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                failed = failed or future.exception()  # what else is running is still waited for and kept
                if future.exception() is None:
                    results[cell.name] = _write(path, cell, future.result())
                    bar.print(f"{cell.name}  {_short(results[cell.name])}")
    if failed is not None:
        raise failed
    return results


def _one_thread() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers.utils import logging

    sys.stdout = open(os.devnull, "w")  # Trainer prints; a cell says what it has to in its result
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _end_with_parent() -> None:
    """A comparison that is killed leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _timed(measure: Callable[[Mapping[str, Any]], dict[str, Any]], settings: dict[str, Any]) -> dict:
    start = time.perf_counter()
    result = measure(settings)
    seconds = round(time.perf_counter() - start, 1)
    return {**result, "seconds": seconds, "threads": torch.get_num_threads()}


def _write(path: Path, cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    numbers = {k: None if _is_lost(v) else v for k, v in result.items()}  # JSON has no NaN
    row = {"cell": cell.name, **dict(cell.settings), **numbers}
    append_line(path, row)
    return row


def _is_lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _short(row: Mapping[str, Any]) -> str:
    shown = ("valid_nll", "test_nll", "nll", "perplexity", "score", "step_seconds", "seconds")
    return "  ".join(f"{k} {row[k]:.4g}" for k in shown if isinstance(row.get(k), (int, float)))


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

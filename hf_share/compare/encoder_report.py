# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the encoder comparison: a table for each task, paired differences to LoRA, a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .cells import Results
from .plots import Panel, Point, plot
from .record import Record, told
from .report import CLOCK, by_seed, intro, step_seconds, table, told_budgets, write
from .stats import interval, paired


COMMAND = "compare_encoder.yaml --model MODEL --data GLUE --jobs 2"
LENGTHS = ": {steps} steps of {batch} rows, of the first {rows} that train; {search_steps} steps in a search"
INTRO = """{model} with mean pooling; adapters on all linear weights of the layers, fp32,
scale 2 for every LoRA-like method; learning rates searched on training rows kept apart. Mean and 95 %
interval over seeds. SST-2{lengths}; cross-entropy and accuracy on the dev set.
STS-B: two epochs; squared error of the cosine and Spearman's correlation.{budgets} {clock}"""


def _intro(arms: list[tuple[str, str]], results: Results, record: Record) -> str:
    lengths = LENGTHS.format(**record.of) if record.of else ""
    numbers = {"lengths": lengths, "budgets": told_budgets(arms, results), "clock": CLOCK}
    return intro(COMMAND, INTRO, model=told(record), **numbers)



PAIRS = (
    ("ShareA r=2", "LoRA r=1"),
    ("MoS e=1 p=0 r=4", "LoRA r=1"),
    ("MoS e=1 p=0 r=4", "VeRA r=576"),
    ("MoS e=1 p=0 r=4", "VB-LoRA r=7"),
    ("ShareA r=3", "LoRA r=2"),
    ("MoS e=2 p=1 r=6", "LoRA r=2"),
)


def page(
    tasks: list[str], arms: list[tuple[str, str]], results: Results, output: str, record: Record
) -> str:
    """Write `<output>.md` and `<output>.png`, and return the page. `arms` are (name, budget)."""
    parts = ["# Adapters on an encoder", _intro(arms, results, record)]
    panels = {}
    for task in tasks:
        name = "Spearman" if task == "stsb" else "accuracy"
        head = ("arm", "budget", "trained", "file kB", "rate", "loss", name, "s/step")
        parts += [f"## {task}", table(head, list(_rows(task, arms, results)))]
        parts += ["\n".join(_pairs(task, results))]
        curves = _curves(task, arms, results)
        panels |= {task: Panel(curves)} if curves else {}
    text = "\n\n".join(part for part in parts if part)
    write(output, text)
    if panels:
        path = Path(output).with_suffix(".png")
        plot(path, panels, "bytes saved (thousands)", "accuracy, Spearman's correlation", log=True)
    return text


def _final(task: str, arm: str, results: Results) -> list[dict]:
    wanted = (task, arm, "final")
    return [r for r in results.values() if (r.get("task"), r.get("arm"), r.get("part")) == wanted]


def _rows(task: str, arms: list[tuple[str, str]], results: Results) -> Iterator[list]:
    for arm, budget in arms:
        rows = _final(task, arm, results)
        if rows:
            size = rows[0].get("file_bytes")
            kilobytes = None if size is None else f"{size / 1e3:.0f}"
            scores = [str(interval([r[k] for r in rows if r[k] is not None])) for k in ("loss", "score")]
            rate = f"{rows[0]['rate']:.1e}"
            yield [arm, budget, rows[0]["trained"], kilobytes, rate, *scores, step_seconds(rows)]


def _pairs(task: str, results: Results) -> Iterator[str]:
    for ours, theirs in PAIRS:
        one, two = (by_seed(results, "score", task=task, arm=arm, part="final") for arm in (ours, theirs))
        if one and two:
            yield f"- {ours} minus {theirs}: {paired(one, two)}"


def _curves(task: str, arms: list[tuple[str, str]], results: Results) -> dict[str, list[Point]]:
    """Method -> its points, one for each budget, over what it saves; the whole model is in the table only."""
    curves: dict[str, list[Point]] = {}
    for arm, budget in arms:
        rows = [r for r in _final(task, arm, results) if r.get("file_bytes")]
        if rows:
            size, score = ([r[k] for r in rows] for k in ("file_bytes", "score"))
            found = Point(interval([s / 1e3 for s in size]), interval(score), budget)
            curves.setdefault(arm.split()[0], []).append(found)
    return curves

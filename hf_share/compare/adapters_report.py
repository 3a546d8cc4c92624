# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the adapter comparison: a table for each domain, verdicts from paired differences, a plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .cells import Results
from .claims import Claim, said
from .plots import Panel, Point, plot
from .record import Record, told
from .report import CLOCK, intro, step_seconds, table, told_budgets, write
from .stats import interval


HEAD = ("arm", "budget", "trained", "file kB", "rate", "test NLL", "bits/byte", "forgetting NLL", "s/step")
MARGIN = 0.02  # nat: what H2 calls as good
FINAL = {"part": "final"}


def _claim(name: str, ours: str, theirs: str, margin: float | None = None) -> Claim:
    return Claim(name, {"arm": ours}, {"arm": theirs}, margin)


CLAIMS = (
    _claim("H1", "MoS e=1 p=0 r=4", "VB-LoRA r=6"),
    _claim("H1", "MoS e=1 p=0 r=4", "VeRA r=317"),
    _claim("H1", "MoS e=2 p=1 r=6", "VB-LoRA r=14"),
    _claim("H2, 0.87 of the parameters", "ShareA r=3", "LoRA r=2", MARGIN),
    _claim("H2, equal rank", "ShareA r=2", "LoRA r=2", MARGIN),
)


def page(
    domains: list[str], arms: list[tuple[str, str]], results: Results, output: str, record: Record
) -> str:
    """Write `<output>.md` and `<output>.png`, and return the page. `arms` are (name, budget)."""
    parts = ["# Adapters at equal budgets", _intro(arms, results, record)]
    for domain in domains:
        rows = list(_rows(domain, arms, results))
        if rows:
            parts += [f"## To {domain}", table(HEAD, rows)]
            parts += [said(CLAIMS, results, "test_nll", domain=domain, **FINAL)]
    text = "\n\n".join(part for part in parts if part)
    write(output, text)
    panels = dict(_panels(domains, arms, results))
    if panels:
        path = Path(output).with_suffix(".png")
        plot(path, panels, "forgetting: NLL on the model's own text", "test NLL")
    return text


def _panels(domains: list[str], arms: list[tuple[str, str]], results: Results) -> Iterator[tuple[str, Panel]]:
    """Each domain twice: between its ends, the frozen and the fully trained model, and the adapters alone."""
    ends = [("frozen", "-"), *(arm for arm in arms if arm[1] == "-")]
    for domain in domains:
        close = _curves(domain, [arm for arm in arms if arm[1] != "-"], results)
        points = {**_curves(domain, ends, results), **close}
        if points:
            yield domain, Panel({n: [replace(p, label="") for p in found] for n, found in points.items()})
        if close:
            yield f"{domain}, adapters alone at budgets A and B", Panel(close)


COMMAND = "compare_adapters.yaml --model MODEL --data FOLDER --jobs 2"
LENGTHS = ", {steps} steps of {batch} x {context} tokens, {search_steps} in the search of learning rates"
INTRO = """{model} learns another kind of text: all linear weights, fp32, no dropout,
scale 2 for every LoRA-like method{lengths}. The learning rate of each arm is the best of its grid on
validation text. Mean and 95 % interval over seeds; NLL in nats per token.{budgets} VB-LoRA trains far more
and is matched, as its paper counts, on the bytes it saves. Forgetting is the NLL on text of the kind the
model was trained on. {clock} Verdicts are of paired differences over seeds, confirmed or refuted where the
95 % interval says so."""


def _intro(arms: list[tuple[str, str]], results: Results, record: Record) -> str:
    lengths = LENGTHS.format(**record.of) if record.of else ""
    numbers = {"lengths": lengths, "budgets": told_budgets(arms, results), "clock": CLOCK}
    return intro(COMMAND, INTRO, model=told(record), **numbers)


def _rows(domain: str, arms: list[tuple[str, str]], results: Results) -> Iterator[list]:
    frozen = results.get(f"{domain}/frozen")
    if frozen:
        numbers = [frozen[k] for k in ("test_nll", "test_bits_per_byte", "source_nll")]
        yield ["frozen", "-", 0, None, None, *numbers, None]
    for arm, budget in arms:
        rows = [r for r in results.values() if _is_final(r, domain, arm)]
        if not rows:
            continue
        size = rows[0].get("file_bytes")
        columns = [str(interval(_numbers(rows, k))) for k in ("test_nll", "test_bits_per_byte", "source_nll")]
        kilobytes = None if size is None else f"{size / 1e3:.0f}"
        rate = f"{rows[0]['rate']:.1e}"
        yield [arm, budget, rows[0]["trained"], kilobytes, rate, *columns, step_seconds(rows)]


def _numbers(rows: list[dict], key: str) -> list[float]:
    return [r[key] for r in rows if r[key] is not None]


def _is_final(row: dict, domain: str, arm: str) -> bool:
    return (row.get("domain"), row.get("arm"), row.get("part")) == (domain, arm, "final")


def _curves(domain: str, arms: list[tuple[str, str]], results: Results) -> dict[str, list[Point]]:
    """Method -> its points, one for each budget."""
    curves: dict[str, list[Point]] = {}
    for arm, budget in arms:
        rows = [r for r in results.values() if _is_final(r, domain, arm)]
        if rows:
            source, test = (interval(_numbers(rows, k)) for k in ("source_nll", "test_nll"))
            curves.setdefault(arm.split()[0], []).append(Point(source, test, budget))
    return curves

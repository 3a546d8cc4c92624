# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the structure comparison: tables by size, NF4, verdicts from paired differences, plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .cells import Results
from .claims import Claim, said
from .plots import Panel, Point, plot
from .record import Record, told
from .report import by_seed, intro, matches, table, write
from .stats import interval, paired


HEAD = ("structure", "at most", "stored", "MB", "before", "healed", "bits/byte", "MFLOPs/token", "tok/s")
ATTENTION = ("MASA, 1 atom", "MASA, free", "whitened SVD, attention")

COMMAND = "compare_structure.yaml --model MODEL --train FILE --test FILE --task_folder FOLDER --jobs 2"
LENGTHS = "{steps} steps of {batch} x {context} tokens"
INTRO = """{model}, shared to at most a share of its parameters, then all its
weights trained for the same {lengths}, half on the text and half on what the dense model says
(forward KL). Perplexity on held-out text as NLL in nats per token, mean and 95 % interval over seeds;
the size is the largest each structure reaches within the bound. The dense row had the same healing. tok/s is
greedy decoding of one row on one thread, with nothing beside it. Verdicts are of paired differences over
seeds: confirmed or refuted where the 95 % interval excludes 0. H3: recursion with a LoRA for each visit beats
strict recursion. H4: the LoRA that starts from the SVD of what the average leaves beats one that starts from
zero. H5: Matrix PCA with one atom and refinement beats whitened SVD at equal attention bytes; free to choose,
the allocator takes no atoms on this model, so that its rows are low-rank factors with ranks by error. H6:
folded layers beat left-out ones at no more than 0.6 of the size."""


def _intro(record: Record) -> str:
    lengths = LENGTHS.format(**record.of) if record.of else "tokens"
    return intro(COMMAND, INTRO, model=told(record), lengths=lengths)


FIRST = {"part": None}  # cells of the comparison itself, not of a longer run
SPEED = {"part": "speed"}  # how fast a structure decodes
CODES = {"part": "codes"}  # the healed structure in codes of four bits


def _claim(name: str, ours: tuple[str, float], theirs: tuple[str, float]) -> Claim:
    return Claim(name, *({"arm": arm, "ratio": ratio} for arm, ratio in (ours, theirs)))


CLAIMS = (
    _claim("H3, equal tokens", ("relaxed, SVD", 0.7), ("recursive", 0.7)),
    _claim("H3, equal bytes", ("relaxed, SVD", 0.58), ("recursive", 0.7)),
    *(_claim("H4", ("relaxed, SVD", ratio), ("relaxed, zero", ratio)) for ratio in (0.9, 0.7, 0.5)),
    *(_claim("H5", ("MASA, 1 atom", ratio), ("whitened SVD, attention", ratio)) for ratio in (0.9, 0.7, 0.5)),
    *(
        _claim("H5, free", ("MASA, free", ratio), ("whitened SVD, attention", ratio))
        for ratio in (0.9, 0.7, 0.5)
    ),
    *(_claim("H6", ("fold", ratio), ("ShortGPT", ratio)) for ratio in (0.58, 0.5)),
)


def page(arms: list[str], results: Results, output: str, record: Record) -> str:
    """Write `<output>.md` and its plots, and return the page."""
    whole = [arm for arm in dict.fromkeys(arms) if arm not in ATTENTION]
    parts = ["# Structures at equal sizes", _intro(record), "## The whole model"]
    parts += [table(HEAD, list(_rows(whole, results)))]
    attention = list(_rows(list(ATTENTION), results))
    if attention:
        parts += ["## Attention alone", ATTENTION_INTRO, table(HEAD, attention)]
    scores = list(_scores([*whole, *ATTENTION], results))
    if scores:
        head = ("structure", "at most", *scores[0][0])
        parts += ["## Story tasks", TASKS, table(head, [row for _, row in scores])]
    parts += ["## With NF4 inside", NF4, table(NF4_HEAD, list(_nf4([*whole, *ATTENTION], results)))]
    codes = list(_codes([*whole, *ATTENTION], results))
    if codes:
        parts += ["## In codes of four bits", CODES_INTRO, table(CODES_HEAD, codes)]
    verdicts = said(CLAIMS, results, "nll", **FIRST)
    if verdicts:
        parts += ["## Verdicts", verdicts]
    text = "\n\n".join(part for part in parts if part)
    write(output, text)
    for name, (key, scale, label) in PLOTS.items():
        panels = dict(_panels(whole, results, key, scale))
        if panels:
            path = Path(output).with_name(f"{Path(output).stem}_{name}.png")
            plot(path, panels, label, "NLL", log=name == "size")
    return text


PLOTS = {
    "size": ("bytes", 1e6, "MB of the file"), "flops": ("flops_a_token", 1e6, "MFLOPs a token"),
    "speed": ("tokens_per_second", 1.0, "decoded tokens a second"),
}  # fmt: skip
SHARE = 0.8  # of the points are within the plots


ATTENTION_INTRO = "The bound is on the weights of the attention; the rest of the model is dense."
NF4 = """The healed model, quantised while it loads. What a rule stores stays in fp32. *Minus dense*: the
paired difference over seeds to the dense model, healed alike, with NF4 as well."""
NF4_HEAD = ("structure", "at most", "MB", "NLL", "MB with NF4", "NLL with NF4", "minus dense")

CODES_INTRO = """NF4 leaves factors as they are. Here all that the healed model stores but embeddings and
norms is in codes of four bits (`hf_share.quantize`, groups of 64, no text). *Minus dense* as above."""
CODES_HEAD = ("structure", "at most", "MB", "NLL", "minus dense")


TASKS = "Accuracy of the healed model of seed 0 and its standard error; next sentence: chance is 0.25."


def _scores(arms: list[str], results: Results) -> Iterator[tuple[tuple[str, ...], list]]:
    for arm, ratio, rows in _grid(arms, results):
        for found in (r["scores"] for r in rows if r.get("scores")):
            shown = [f"{s['acc']:.3f} ± {s['stderr']:.3f}" for s in found.values()]
            yield tuple(found), [arm, f"{ratio}", *shown]


def _of(results: Results, **wanted: Any) -> list[dict]:
    return [r for r in results.values() if matches(r, wanted)]


def _grid(arms: list[str], results: Results) -> Iterator[tuple[str, float, list[dict]]]:
    """Each arm at each ratio, with its rows; how fast it decodes stands in all of them."""
    for arm in arms:
        for ratio in sorted({r["ratio"] for r in _of(results, arm=arm, **FIRST)}, reverse=True):
            clock = [r.get("tokens_per_second") for r in _of(results, arm=arm, ratio=ratio, **SPEED)]
            speed = {"tokens_per_second": clock[0] if clock else None}
            yield arm, ratio, [{**r, **speed} for r in _of(results, arm=arm, ratio=ratio, **FIRST)]


def _rows(arms: list[str], results: Results) -> Iterator[list]:
    for arm, ratio, rows in _grid(arms, results):
        if not rows[0]["reachable"]:
            smallest = f"not reachable: {rows[0]['of_dense']:.3f} is its smallest"
            yield [arm, f"{ratio}", smallest, *([None] * 6)]
            continue
        before, after, bits = (
            str(interval([r[part][key] for r in rows]))
            for part, key in (("before", "nll"), ("after", "nll"), ("after", "bits_per_byte"))
        )
        first, speed = rows[0], rows[0]["tokens_per_second"]
        stored, size = f"{first['of_dense']:.3f}", f"{first['bytes'] / 1e6:.2f}"
        flops = f"{first['flops_a_token'] / 1e6:.2f}"
        yield [arm, f"{ratio}", stored, size, before, after, bits, flops, speed and f"{speed:.0f}"]


def _nf4(arms: list[str], results: Results) -> Iterator[list]:
    for arm, ratio, rows in _grid(arms, results):
        if rows[0]["reachable"]:
            plain, small = (str(interval([r[k] for r in rows])) for k in ("nll", "nf4_nll"))
            sizes = [f"{rows[0][k] / 1e6:.2f}" for k in ("bytes", "nf4_bytes")]
            less = _minus_dense(results, "nf4_nll", arm, ratio, FIRST)
            yield [arm, f"{ratio}", sizes[0], plain, sizes[1], small, less]


def _codes(arms: list[str], results: Results) -> Iterator[list]:
    for arm, ratio, _ in _grid(arms, results):
        rows = [r for r in _of(results, arm=arm, ratio=ratio, **CODES) if "codes_nll" in r]
        if rows:
            nll, size = str(interval([r["codes_nll"] for r in rows])), f"{rows[0]['codes_bytes'] / 1e6:.2f}"
            yield [arm, f"{ratio}", size, nll, _minus_dense(results, "codes_nll", arm, ratio, CODES)]


def _minus_dense(
    results: Results, key: str, arm: str, ratio: float, part: Mapping[str, Any]
) -> str | None:
    """The paired difference over seeds to the dense model, in cells of one part of the comparison."""
    ours = by_seed(results, key, arm=arm, ratio=ratio, **part)
    dense = by_seed(results, key, arm="dense", **part)
    return str(paired(ours, dense)) if arm != "dense" and ours.keys() & dense.keys() else None


def _panels(arms: list[str], results: Results, key: str, scale: float) -> Iterator[tuple[str, Panel]]:
    """Each structure over its sizes; where these are bytes, with NF4 inside beside it."""
    dense = [r["nll"] for r in _of(results, arm="dense", **FIRST)]
    level = ("dense, healed", interval(dense).mean) if dense else None
    curves = _curves(arms, results, key, scale, "nll")
    if curves:
        yield "after healing", Panel(curves, level, SHARE)
    if curves and key == "bytes":
        small = _curves(arms, results, "nf4_bytes", scale, "nf4_nll")
        yield "with NF4 inside", Panel(small, level, SHARE, hollow=True)


def _curves(arms: list[str], results: Results, key: str, scale: float, nll: str) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for arm, _, rows in _grid(arms, results):
        if rows[0]["reachable"] and rows[0][key] is not None:
            across = interval([r[key] / scale for r in rows])
            curves.setdefault(arm, []).append(Point(across, interval([r[nll] for r in rows])))
    return curves

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_nested.py --models DIR [DIR ...] --text valid.txt [--jobs 2]

One file for 2, 3 and 4 bits against a file for each: what the codes lose before any training, what they take
on disk, whether two planes give the two-bit model to the bit, and whether pooled deltas merge exactly. Every
cell is written when it is done and skipped when the command is run again.
"""

import copy
import functools
import tempfile
from pathlib import Path

import torch
from _common import recorded, resumable
from _prototype import MODEL, Figure, section

import hf_share
from hf_share.compare import cells
from hf_share.compare.plots import Panel, Point, plot
from hf_share.compare.report import table, write
from hf_share.compare.stats import Interval, interval
from hf_share.costs import Costs


WIDTHS = (2, 3, 4)
BASES = ("minmax", "hqq", "gptq")
SLICINGS = ("own", "copies", "matquant")
OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "elastic_nested.jsonl"
BOUNDS = {2: 0.25, 3: 0.02, 4: 0.02}  # nats over separate models
PROTOTYPE = {  # NLL at 2, 3 and 4 bits
    "copies": (3.643, 1.847, 1.527),
    "own": (3.826, 1.835, 1.518),
    "matquant": (5.348, 3.217, 1.526),
}
LABELS = {"own": "nested", "copies": "separate", "matquant": "matquant"}
INTRO = """`python scripts/bench/elastic_nested.py --models stories260k tinystories-7m --text valid.txt`

NLL of held-out stories (windows of 128 tokens from byte 60,000 on) before any training; groups of 32
inputs, scales and offsets in fp16. *Separate* is a code for each width, clip-searched by itself
(`slicing="copies"`); *nested* is one code with a line for each width, *matquant* one code with one line,
rounded. GPTQ is calibrated on the first 60,000 bytes. File: all three widths, against three files of one
width each."""


def wanted(models, results):
    for model in models:
        name = Path(model).name
        yield cells.Cell(f"{name}/dense", {"model": name, "slicing": "dense", "base": ""})
        for base in BASES:
            for slicing in SLICINGS:
                settings = {"model": name, "slicing": slicing, "base": base, "group_size": 32}
                yield cells.Cell(f"{name}/{base}/{slicing}", settings)


def measure(s, models, text, tokens):
    from transformers import AutoModelForCausalLM

    place = next(m for m in models if Path(m).name == s["model"])
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    held_out, calibration = windows(place, text, tokens)
    if s["slicing"] == "dense":
        return {"nll": nll(model, held_out)}
    deltas = {"pooled": True, "r_private": 2, "r_shared": 2} if s["slicing"] == "own" else {}
    config = {"group_size": s["group_size"], "base": s["base"], "slicing": s["slicing"]}
    plain = hf_share.ElasticConfig(**config, r_private=0, r_shared=0)
    shared = hf_share.share(copy.deepcopy(model), plain, calibration=calibration)
    costs, found = Costs.of(shared), {}
    for b in WIDTHS:
        found[f"nll_{b}"] = nll(hf_share.choose(shared, bits=b), held_out)
    with tempfile.TemporaryDirectory() as folder:
        shared.save_pretrained(folder)
        whole = (Path(folder) / "model.safetensors").stat().st_size
        found |= {"file_bytes": whole, "bytes_by_width": [costs.bytes(costs.uniform(b)) for b in WIDTHS]}
        small = AutoModelForCausalLM.from_pretrained(folder, config=hf_share.subnet_config(folder, bits=2))
    ids = held_out[:4]
    with torch.no_grad():
        two = hf_share.choose(shared, bits=2)(input_ids=ids).logits
        found["two_planes_bit_equal"] = bool(torch.equal(small.eval()(input_ids=ids).logits, two))
    if deltas:
        pooled = hf_share.ElasticConfig(**config, **deltas)
        found["merge_error"] = merge_error(model, pooled, calibration, ids)
    return found


@torch.no_grad()
def merge_error(model, config, calibration, ids):
    """The largest relative change of the logits when random pooled deltas are merged into the offsets."""
    shared = hf_share.share(copy.deepcopy(model), config, calibration=calibration)
    gen, worst = torch.Generator().manual_seed(0), 0.0
    for name, value in shared.named_parameters():
        if ".share." in name and ".g_" not in name:
            value.copy_(0.02 * torch.randn(value.shape, generator=gen))
    merged = hf_share.merge_deltas(copy.deepcopy(shared))
    for b in WIDTHS:
        before = hf_share.choose(shared, bits=b)(input_ids=ids).logits
        after = hf_share.choose(merged, bits=b)(input_ids=ids).logits
        worst = max(worst, float((after - before).norm() / before.norm()))
    return worst


def windows(place, text, tokens, context=128, split=60_000, most=2_000_000, rows=128):
    """Windows to measure on, from at most `most` bytes behind `split`, and batches of `rows` windows to
    calibrate on, from before it.
    """
    from transformers import AutoTokenizer

    tokenizer, data = AutoTokenizer.from_pretrained(place), Path(text).read_bytes()
    parts = [data[:split], data[split : split + most]]
    ids = [torch.tensor(tokenizer(part.decode(errors="ignore")).input_ids) for part in parts]
    cut = [part[: len(part) // context * context].view(-1, context) for part in ids]
    return cut[1][: tokens // context], list(cut[0][:rows].split(8))


def nll(model, ids):
    from hf_share.eval.perplexity import perplexity

    return perplexity(model, ids, progress=False).nll


def page(results):
    columns = ("2 bits", "3 bits", "4 bits", "file kB", "of 3 files", "2 planes", "merge")
    rows, points = [], {}
    for name in dict.fromkeys(row["model"] for row in results.values()):
        dense = results.get(f"{name}/dense")
        rows += [[f"**{name}**", "dense", None, None, None, None, None, None, None]] if dense else []
        if dense:
            rows[-1][4] = dense["nll"]
        for base in BASES:
            apart = results.get(f"{name}/{base}/copies")
            for slicing in SLICINGS:
                row = results.get(f"{name}/{base}/{slicing}")
                if row is None:
                    continue
                three = sum(apart["bytes_by_width"]) if apart else None
                over = row["file_bytes"] / three if three else None
                nats = [row[f"nll_{b}"] for b in WIDTHS]
                label = LABELS[slicing]
                merge = f"{row['merge_error']:.0e}" if "merge_error" in row else None
                same = "bit-equal" if row["two_planes_bit_equal"] else "DIFFERS"
                rows.append([f"{name}, {base}", label, *nats, row["file_bytes"] // 1000, over, same, merge])
                if base == "minmax":
                    bytes_of = interval([row["file_bytes"] / 1e6])
                    points.setdefault(name, {})[label] = [Point(bytes_of, interval([sum(nats) / 3]))]
    shown = table(("model, base", "codes", *columns), rows)
    text = ["# One file for several widths", INTRO, shown, *verdicts(results)]
    text += section(list(_figures(results)), "separate")
    write(OUTPUT, "\n\n".join(text))
    if points:
        panels = {name: Panel(curves) for name, curves in points.items()}
        plot(OUTPUT.with_suffix(".png"), panels, "MB of the file of all widths", "mean NLL of 2, 3, 4 bits")
    return "\n\n".join(text)


def _figures(results):
    """The clip-searched codes above a code for each width, where the prototype has a number for them."""
    apart = results.get(f"{MODEL}/minmax/copies")
    for slicing in ("own", "matquant"):
        row = results.get(f"{MODEL}/minmax/{slicing}")
        if apart is None or row is None:
            continue
        for i, b in enumerate(WIDTHS):
            there, here = PROTOTYPE[slicing][i], row[f"nll_{b}"]
            above = Interval(here - apart[f"nll_{b}"], 0.0, 1)  # nothing is drawn
            what = f"{LABELS[slicing]} at {b} bits"
            yield Figure(what, there, [here], there - PROTOTYPE["copies"][i], above)


def verdicts(results):
    """Bounds against separate models of the same base, and what came of them."""
    for name in dict.fromkeys(row["model"] for row in results.values()):
        pair = [results.get(f"{name}/minmax/{slicing}") for slicing in ("own", "copies")]
        if None in pair:
            continue
        more = {b: pair[0][f"nll_{b}"] - pair[1][f"nll_{b}"] for b in WIDTHS}
        told = ", ".join(f"{b} bits {more[b]:+.4f} (at most +{BOUNDS[b]})" for b in WIDTHS)
        held = all(more[b] <= BOUNDS[b] for b in WIDTHS)
        over = pair[0]["file_bytes"] / sum(pair[1]["bytes_by_width"])
        yield (
            f"{name}: nested minus separate {told}: {'held' if held else 'NOT held'}; file {over:.2f} of the "
            f"three (at most 0.60): {'held' if over <= 0.6 else 'NOT held'}."
        )


def main():
    parser = resumable(__doc__)
    parser.add_argument("--text", required=True, help="plain text, of which the first 60,000 bytes calibrate")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens an NLL is measured on")
    options = parser.parse_args()
    places = {"models": options.models, "text": options.text, "tokens": options.tokens}
    results = cells.run(
        functools.partial(wanted, options.models), functools.partial(measure, **places), OUTPUT,
        record=recorded(options), adopt=options.adopt, only=options.cells, jobs=options.jobs,
    )  # fmt: skip
    print(page(results))


if __name__ == "__main__":
    main()

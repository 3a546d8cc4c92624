# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_structure.py --models DIR [DIR ...] --train train.txt --text valid.txt

Neurons, key-value groups and layers that may be left out: what each size loses by the order in which they
were sorted, before any training, and what one run over all sizes gives back. Every cell is written when it is
done and skipped when the command is run again.
"""

import copy
import functools
from pathlib import Path

import torch
from _common import recorded, resumable
from elastic_nested import nll, windows

import hf_share
from hf_share.compare import cells
from hf_share.compare.plots import Panel, Point, plot
from hf_share.compare.report import table, write
from hf_share.compare.stats import interval, paired


ORDERS = ("none", "l2", "activation")
KINDS = ("ffn", "kv_groups", "depth")
SHARES = (0.5, 0.75, 0.875)
OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "elastic_structure.jsonl"
INTRO = """`python scripts/bench/elastic_structure.py --models stories260k tinystories-7m --train train.txt
--text valid.txt`

NLL of held-out stories (windows of 128 tokens from byte 60,000 on); *change* is the largest change of a logit
that sorting alone makes to the whole model, over its largest logit. "activation" is measured on the first
60,000 bytes. *Trained*: 200 steps of 8 x 128 tokens of the training text, one size for the whole model drawn
anew at each step (preset matformer: 1, 1/2, 1/4 or 1/8 of the neurons), all weights, AdamW, 1e-3; beside it
the dense model trained alike, on as many tokens. Mean and 95 % interval over seeds."""


def wanted(models, seeds, results):
    for model in models:
        name = Path(model).name
        for kind in KINDS:
            for order in ORDERS:
                yield cells.Cell(f"{name}/{kind}/{order}", {"model": name, "kind": kind, "order": order})
        for seed in range(seeds):
            for what in ("matformer", "dense"):
                yield cells.Cell(
                    f"{name}/trained/{what}/seed={seed}",
                    {"model": name, "kind": "trained", "order": "activation", "what": what, "seed": seed},
                )


def measure(s, places):
    from transformers import AutoModelForCausalLM

    place = next(m for m in places["models"] if Path(m).name == s["model"])
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    held_out, calibration = windows(place, places["text"], places["tokens"], rows=64)
    if s["kind"] == "trained":
        return trained(s, model, place, held_out, calibration, places)
    config = hf_share.ElasticConfig(bits=[], order=s["order"], **{s["kind"]: sizes(model, s["kind"])})
    ids = held_out[:4]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        shared = hf_share.share(model, config, calibration=calibration)
        change = (shared(input_ids=ids).logits - before).abs().max() / before.abs().max()
    return {"change": float(change), "nll": by_size(shared, s["kind"], held_out)}


def sizes(model, kind):
    if kind == "ffn":
        return list(SHARES)
    if kind == "kv_groups":
        heads = model.config.num_key_value_heads
        return sorted({max(1, heads // 2), max(1, heads * 3 // 4)})
    layers = model.config.num_hidden_layers
    return list(range(-(-layers // 2), layers))


def by_size(model, kind, held_out):
    found = {}
    for size in hf_share.choices(model)[kind]:
        with hf_share.chosen(model, **{kind: size}):
            found[str(size)] = nll(model, held_out)
    return found


def trained(s, model, place, held_out, calibration, places):
    """The loss at each size after one run over all of them, or of the dense model after as many steps."""
    from hf_share.train.elastic import ElasticRunConfig, train_elastic

    train = windows(place, places["train"], 1_700_000, split=0, most=4_000_000)[0]
    config = hf_share.ElasticConfig(preset="matformer", order="activation")
    shared = hf_share.share(copy.deepcopy(model), config, calibration=calibration)
    dense = s["what"] == "dense"
    numbers = {"sampler": {"kind": "every", "warm": 10**6}} if dense else {}  # the largest alone
    run = ElasticRunConfig(
        preset="matformer", steps=200, batch=8, context=128, learning_rate=1e-3, warmup_steps=10,
        seed=s["seed"], report_to="none", save_steps=0, output="runs/elastic_structure", **numbers,
    )  # fmt: skip
    train_elastic(shared, train, None, run)
    return {"nll": by_size(shared, "ffn", held_out)}


def page(results):
    text = ["# Neurons, heads and layers that may be left out", INTRO]
    points = {}
    for name in dict.fromkeys(row["model"] for row in results.values()):
        for kind in KINDS:
            rows = []
            for order in ORDERS:
                row = results.get(f"{name}/{kind}/{order}")
                if row is not None:
                    rows.append([order, *row["nll"].values(), f"{row['change']:.0e}"])
                    head = [f"{kind} {size}" for size in row["nll"]]
                    if kind == "ffn":
                        mine = points.setdefault(name, {})
                        mine[order] = [
                            Point(interval([float(size)]), interval([value]))
                            for size, value in row["nll"].items()
                        ]
            if rows:
                text += [f"## {name}: {kind}", table(("order", *head, "change"), rows)]
        rows = []
        for what in ("matformer", "dense"):
            found = [r for r in results.values() if r["model"] == name and r.get("what") == what]
            if found:
                shown = [interval([row["nll"][size] for row in found]) for size in found[0]["nll"]]
                rows.append([what, *shown, len(found)])
                head = [f"ffn {size}" for size in found[0]["nll"]]
        if rows:
            text += [f"## {name}: trained", table(("run", *head, "seeds"), rows)]
            told = verdict(name, results)
            text += [told] if told else []
    write(OUTPUT, "\n\n".join(text))
    if points:
        panels = {name: Panel(curves) for name, curves in points.items()}
        plot(OUTPUT.with_suffix(".png"), panels, "share of the neurons", "NLL before any training")
    return "\n\n".join(text)


def verdict(name, results):
    """What the whole model pays for being elastic, over the seeds that both runs have."""
    runs = [
        {row["seed"]: row["nll"]["1.0"] for row in results.values() if _is(row, name, what)}
        for what in ("matformer", "dense")
    ]
    found = paired(*runs)
    return f"The whole model, elastic minus dense run: {found}" if found.count > 1 else None


def _is(row, name, what):
    return row["model"] == name and row.get("what") == what


def main():
    parser = resumable(__doc__)
    parser.add_argument("--train", required=True, help="plain text to train on")
    parser.add_argument("--text", required=True, help="plain text, of which the first 60,000 bytes calibrate")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens an NLL is measured on")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    places = {k: getattr(options, k) for k in ("models", "train", "text", "tokens")}
    results = cells.run(
        functools.partial(wanted, options.models, options.seeds), functools.partial(measure, places=places),
        OUTPUT, record=recorded(options), adopt=options.adopt, only=options.cells, jobs=options.jobs,
    )  # fmt: skip
    print(page(results))


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/importance.py --model MODEL --text TEXT [--rate 0.25] [--parts 5]

Two measures of what a layer is worth, block influence and learnable gates, on one model and several parts of
a text: both columns, their rank correlation, the layers each would remove, and the perplexity that leaves on
text which none has seen. A picture of the first part lies beside the numbers.
"""

import copy
from pathlib import Path

from _common import of_model, report
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_share
from hf_share.eval.perplexity import perplexity
from hf_share.plots import plot_importance
from hf_share.train.text import load_text, windows


MEASURES = ("bi", "gate")


def main() -> None:
    parser = of_model(__doc__)
    parser.add_argument("--text", default="stdlib", help="stdlib, a text or .jsonl file, or a data set id")
    parser.add_argument("--rate", type=float, default=0.25, help="share of the layers to remove")
    parser.add_argument("--length", type=int, default=128, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=128, help="windows to measure on, and again held out")
    parser.add_argument("--parts", type=int, default=5, help="parts of the text, each measured on by itself")
    parser.add_argument("--steps", type=int, default=100, help="training steps of the gates")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32").eval()
    text = load_text(options.text)
    rows = windows(tokenizer, text.train, options.length)
    parts = rows[: options.parts * options.windows].split(options.windows)
    heldout = windows(tokenizer, text.heldout, options.length)[: options.windows]

    found = [measure(model, list(part.split(4)), heldout, options) for part in parts]
    first = {name: found[0][name]["scores"] for name in MEASURES}
    table(first)
    name = f"importance-{Path(options.model).name}"
    plot_importance(first, picture(name))
    report(name, {
        "model": Path(options.model).name, "text": Path(options.text).name, "rate": options.rate,
        "windows": [options.windows, options.length], "gate_steps": options.steps,
        "dense_perplexity": round(perplexity(model, heldout).perplexity, 3),
        "rank_correlation": spread(part["rank_correlation"] for part in found),
        **{name: {"perplexity": spread(part[name]["perplexity"] for part in found)} for name in MEASURES},
        "parts": found,
    })  # fmt: skip


def measure(model, calibration, heldout, options):
    """Both measures on one part of the text."""
    found = {}
    for name in MEASURES:
        config = hf_share.FoldConfig(removal_rate=options.rate, importance=name, gate_steps=options.steps)
        plan = config.resolve(model, calibration)
        step = plan.arranges[0]
        short = hf_share.share(copy.deepcopy(model), plan)
        found[name] = {
            "scores": [round(score, 4) for score in step.scores],
            "removes": [layer for layer in range(len(step.scores)) if layer not in step.order],
            "perplexity": round(perplexity(short, heldout).perplexity, 3),
        }
    both = (found[name]["scores"] for name in MEASURES)
    return {**found, "rank_correlation": round(hf_share.rank_correlation(*both), 3)}


def spread(values):
    """Mean, and the least and the largest."""
    values = list(values)
    return {"mean": round(sum(values) / len(values), 3), "least": min(values), "largest": max(values)}


def table(scores: dict[str, list[float]]) -> None:
    print(f"{'layer':>5}" + "".join(f"{name:>10}" for name in scores))
    for layer, row in enumerate(zip(*scores.values(), strict=True)):
        print(f"{layer:>5}" + "".join(f"{value:>10.4f}" for value in row))


def picture(name: str) -> Path:
    folder = Path(__file__).resolve().parents[2] / "model_cards" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"


if __name__ == "__main__":
    main()

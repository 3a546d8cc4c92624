# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_train.py --models DIR [DIR ...] --train FILE --test FILE [--jobs 2]

One elastic run against the paper's recipe, and against a run for each width: 300 steps of 8 x 128 tokens, the
same text in the same order, adapters of about equal size. Every cell is written when it is done and skipped
when the command is run again.
"""

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

from _common import recorded, resumable
from _prototype import MODEL, Figure, section

from hf_share.compare import cells
from hf_share.compare.plots import Panel, Point, plot
from hf_share.compare.report import by_seed, table, write
from hf_share.compare.stats import interval, paired, verdict


WIDTHS = (2, 3, 4)
MIXES = (2.5, 3.0, 3.5)
DRAWS = 4  # subnets of each mix, the same for every recipe and seed
BREAK = "<|endoftext|>"
OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "elastic_train.jsonl"
TRAINING = {"context": 128, "batch": 8, "learning_rate": 3e-3, "warmup_steps": 15, "log_steps": 1000}
GROUPS = {"method": "elastic", "group_size": 32}
PLAIN = {"r_private": 4, "r_shared": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "ours": {"preset": "ours", "structure": GROUPS},
    # the stronger rival: the paper's codes, sampling and adapters, with what helps both of us
    "LLM-QFA + KD, un-pooled": {
        "preset": "llm-qfa", "teacher": "dense",
        "structure": {**GROUPS, "preset": "llm-qfa", "base": "minmax", "pooled": False, **PLAIN},
    },
    # pooled adapters are smaller, so their rank is higher
    "LLM-QFA": {"preset": "llm-qfa", "structure": {**GROUPS, "preset": "llm-qfa", "r_private": 8}},
    "ours, private deltas only": {
        "preset": "ours", "structure": {**GROUPS, **PLAIN},
    },
    "ours, one delta for all widths": {
        "preset": "ours", "structure": {**GROUPS, "r_private": 0, "r_shared": 12, "gated": False},
    },
}  # fmt: skip
ALONE = {**GROUPS, **PLAIN, "slicing": "copies"}
APART = {b: {"preset": "ours", "structure": {**ALONE, "bits": [b]}} for b in WIDTHS}
PROTOTYPE = {  # what -> recipe, key, and NLL of it and of ours
    "the mean of LLM-QFA + KD, un-pooled": ("LLM-QFA + KD, un-pooled", "mean", 1.864, 1.766),
    "LLM-QFA + KD, un-pooled at 2 bits": ("LLM-QFA + KD, un-pooled", "nll_2", 2.186, 1.968),
    "LLM-QFA + KD, un-pooled at 3 bits": ("LLM-QFA + KD, un-pooled", "nll_3", 1.722, 1.642),
    "LLM-QFA + KD, un-pooled at 4 bits": ("LLM-QFA + KD, un-pooled", "nll_4", 1.489, 1.473),
    "apart at 2 bits": ("apart, 2 bits", "nll_2", 2.176, 1.968),
    "apart at 3 bits": ("apart, 3 bits", "nll_3", 1.575, 1.642),
    "apart at 4 bits": ("apart, 4 bits", "nll_4", 1.465, 1.473),
}
INTRO = """`python scripts/bench/elastic_train.py --models M [M ...] --train T --test V --jobs 2`

NLL of held-out stories in nats a token, mean and 95 % interval over seeds: 300 steps of 8 x 128 tokens,
groups of 32 inputs, learning rate 3e-3. A mix is the mean of four random choices of widths with that mean,
the same for all. *Mean* is over 2 bits, the three mixes and 4 bits. *Apart* is a run for each width, a third
of the steps each, so of the same total cost."""


def wanted(models, seeds, results):
    for model in models:
        name = Path(model).name
        for seed in range(seeds):
            for recipe in RECIPES:
                yield _cell(name, recipe, seed, 300)
            for b in WIDTHS:
                yield _cell(name, f"apart, {b} bits", seed, 100)


def _cell(model, recipe, seed, steps):
    settings = {"model": model, "recipe": recipe, "seed": seed, "steps": steps}
    return cells.Cell(f"{model}/{recipe}/seed={seed}", settings)


def measure(s, models, train, test, tokens):
    import torch
    from transformers import AutoTokenizer

    import hf_share
    from hf_share.train.elastic import ElasticRunConfig, load, train_elastic
    from hf_share.train.text import windows

    place = next(m for m in models if Path(m).name == s["model"])
    tokenizer = AutoTokenizer.from_pretrained(place)
    learn = Path(train).read_bytes()[:6_000_000].decode(errors="ignore")
    held_out = Path(test).read_bytes()[60_000:2_060_000].decode(errors="ignore")
    data = windows(tokenizer, learn.split(BREAK), TRAINING["context"])
    ids = windows(tokenizer, held_out.split(BREAK), TRAINING["context"])[: tokens // TRAINING["context"]]
    bits = int(s["recipe"].split()[1]) if s["recipe"].startswith("apart") else None
    recipe = RECIPES[s["recipe"]] if bits is None else APART[bits]
    with tempfile.TemporaryDirectory() as folder:
        numbers = {**TRAINING, **recipe, "steps": s["steps"], "seed": s["seed"]}
        config = ElasticRunConfig(model=place, output=folder, save_steps=0, eval_steps=0, **numbers)
        model, teacher = load(config, tokenizer, learn.split(BREAK))
        added = (p for n, p in model.named_parameters() if ".share." in n or "shared_stores" in n)
        found = {"adapters": sum(p.numel() for p in added)}
        if bits is None:
            found["before"] = {b: _nll(hf_share.choose(model, bits=b), ids) for b in WIDTHS}
        torch.manual_seed(s["seed"])
        train_one = _train_alone if bits is not None else train_elastic
        model = train_one(model, data, teacher, config)
    if bits is not None:
        return {**found, "nll": _nll(model, ids)}
    found |= {f"nll_{b}": _nll(hf_share.choose(model, bits=b), ids) for b in WIDTHS}
    for mean in MIXES:
        drawn = [_nll(hf_share.choose(model, bits=m), ids) for m in mixes(model, mean)]
        found[f"mix_{mean}"] = sum(drawn) / DRAWS
    keys = ("nll_2", *(f"mix_{mean}" for mean in MIXES), "nll_4")
    return {**found, "mean": sum(found[key] for key in keys) / len(keys)}


def _train_alone(model, data, teacher, config):
    """One width has nothing to sample: the same loss, steps and data, in the trainer below."""
    from hf_share.train.arguments import training_arguments
    from hf_share.train.distill import DistillTrainer
    from hf_share.train.elastic import choose_trained
    from hf_share.train.text import as_rows

    choose_trained(model)
    arguments = training_arguments(config, evaluates=False)
    DistillTrainer(model=model, args=arguments, train_dataset=as_rows(data), teacher=teacher).train()
    return model.eval()


def mixes(model, mean):
    """Random choices of widths whose mean, weighted by weights, is the nearest to `mean` that moves reach."""
    from hf_share.costs import Costs

    costs = Costs.of(model)
    for draw in range(DRAWS):
        rng = random.Random(f"{mean} {draw}")
        chosen = {unit.name: rng.choice(WIDTHS) for unit in costs.units}
        names = list(chosen)
        rng.shuffle(names)
        for name in names * 2:
            wish = 1 if costs.mean_bits(chosen) < mean else -1
            moved = {**chosen, name: min(max(chosen[name] + wish, WIDTHS[0]), WIDTHS[-1])}
            if abs(costs.mean_bits(moved) - mean) < abs(costs.mean_bits(chosen) - mean):
                chosen = moved
        yield costs.expand(chosen)


def _nll(model, ids):
    from hf_share.eval.perplexity import perplexity

    return perplexity(model, ids, progress=False).nll


def page(results):
    parts, points = ["# One elastic run against the paper's recipe", INTRO], {}
    for name in dict.fromkeys(row["model"] for row in results.values()):
        rows = list(_rows(name, results))
        head = ("recipe", "adapters", *(f"{b} bits" for b in WIDTHS), *(f"mix {m}" for m in MIXES), "mean")
        parts += [f"## {name}", table(head, rows), "\n".join(_verdicts(name, results))]
        points[name] = {
            recipe: [Point(interval([r["adapters"] / 1e3 for r in found]), _mean(found))]
            for recipe in RECIPES
            if (found := _of(name, recipe, results))
        }
    parts += section(list(_figures(results)), "ours")
    text = "\n\n".join(part for part in parts if part)
    write(OUTPUT, text)
    panels = {name: Panel(curves) for name, curves in points.items() if curves}
    if panels:
        plot(OUTPUT.with_suffix(".png"), panels, "thousand adapter parameters", "mean NLL over widths")
    return text


def _mean(rows):
    return interval([r["mean"] for r in rows])


def _of(model, recipe, results):
    return [r for r in results.values() if (r["model"], r["recipe"]) == (model, recipe)]


def _rows(model, results):
    keys = (*(f"nll_{b}" for b in WIDTHS), *(f"mix_{mean}" for mean in MIXES), "mean")
    for recipe in RECIPES:
        found = _of(model, recipe, results)
        if found:
            yield [recipe, found[0]["adapters"], *(str(interval([r[key] for r in found])) for key in keys)]
    apart = {b: _of(model, f"apart, {b} bits", results) for b in WIDTHS}
    if all(apart.values()):
        nats = [str(interval([r["nll"] for r in apart[b]])) for b in WIDTHS]
        yield ["apart", apart[4][0]["adapters"], *nats, None, None, None, None]


def _figures(results):
    """Each recipe above ours, where the prototype has a number for it."""
    for what, (recipe, key, there, ours_there) in PROTOTYPE.items():
        ours = by_seed(results, key, model=MODEL, recipe="ours")
        field = "nll" if recipe.startswith("apart") else key
        rival = by_seed(results, field, model=MODEL, recipe=recipe)
        if ours.keys() & rival.keys():
            yield Figure(what, there, list(rival.values()), there - ours_there, paired(rival, ours))


def _verdicts(model, results):
    for rival in ("LLM-QFA + KD, un-pooled", "LLM-QFA"):
        pair = [by_seed(results, "mean", model=model, recipe=recipe) for recipe in ("ours", rival)]
        if all(pair) and pair[0].keys() & pair[1].keys():
            less = paired(*pair)
            yield f"- the mean of ours below {rival}: {less} nat, **{verdict(less)}**"
    for b in WIDTHS:
        recipes = ("ours", "LLM-QFA + KD, un-pooled")
        pair = [by_seed(results, f"nll_{b}", model=model, recipe=recipe) for recipe in recipes]
        if all(pair) and pair[0].keys() & pair[1].keys():
            more = paired(*pair)
            held = "held" if more.mean <= 0.015 else "NOT held"
            yield f"- at {b} bits ours minus {recipes[1]}: {more} (at most +0.015 on the mean): {held}"


def main():
    parser = resumable(__doc__)
    parser.add_argument("--train", required=True, help="plain text")
    parser.add_argument("--test", required=True, help="plain text, measured from byte 60,000 on")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens an NLL is measured on")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    places = {name: getattr(options, name) for name in ("models", "train", "test", "tokens")}
    results = cells.run(
        functools.partial(wanted, options.models, options.seeds), functools.partial(measure, **places),
        OUTPUT, record=recorded(options), adopt=options.adopt, only=options.cells, jobs=options.jobs,
    )  # fmt: skip
    print(page(results))


if __name__ == "__main__":
    main()

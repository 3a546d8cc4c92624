# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_search.py --models DIR [DIR ...] --text valid.txt [--jobs 2]

The widths of an elastic model's weights for a budget, chosen by each search on the same text: what the choice
loses on other text, and what finding it costs. Nothing is trained. Every cell is written when it is done and
skipped when the command is run again. The page is made by elastic_search_page.py.
"""

import copy
import functools
import time
from dataclasses import dataclass
from pathlib import Path

from _common import recorded, resumable
from elastic_nested import nll, windows
from elastic_search_page import AFTER_TABLE, AT_THE_BITS_OF, BUDGETS, EQUAL_BITS, FIXED, OURS, OUTPUT, page

from hf_share.compare import cells


CONTEXT, GROUP_SIZE = 128, 32


@dataclass(frozen=True)
class Run:
    """A search and its evaluations: a number, those after its own table, or as many as ours and its table."""

    method: str
    evaluations: int | str = "after a table"


CLAIMED = {  # what the claims are about; measured first
    OURS: Run("sensitivity+knapsack+swaps"),
    "uniform": Run(""),
    "LIM": Run("lim"),
    "ZD": Run("zd"),
    "LLM-QFA [100, 50]": Run("llm-qfa", 150),
    "NSGA-II, unseeded": Run("nsga2-unseeded", 400),
}
OTHERS = {
    "sensitivity + knapsack": Run("sensitivity+knapsack"),
    "evolutionary swaps": Run("evopress", "as ours"),
    "NSGA-II, seeded": Run("nsga2"),
    "random": Run("random", "as ours"),
}
RUNS = CLAIMED | OTHERS
ONE_SEED = {("tinystories-7m", "NSGA-II, unseeded"), ("tinystories-7m", "NSGA-II, seeded")}  # hours a seed


def wanted(models, seeds, results):
    """Methods at both budgets for the first seed, then for the next; and ours again at the bits that rivals
    reach, as soon as these are known.
    """
    for runs in (CLAIMED, OTHERS):
        for seed in range(seeds):
            for name in (Path(model).name for model in models):
                for bits in BUDGETS:
                    for label in runs:
                        if seed == 0 or (label not in FIXED and (name, label) not in ONE_SEED):
                            yield _cell(name, label, bits, seed)
                    yield from _at_the_bits_of_rivals(runs, name, bits, seed, results)


def _at_the_bits_of_rivals(runs, name, bits, seed, results):
    reached = {}
    for rival in (rival for rival in EQUAL_BITS if rival in runs):
        found = results.get(_cell(name, rival, bits, 0 if rival in FIXED else seed).name)
        if found is not None:
            reached.setdefault(found["mean_bits"], []).append(rival)
        elif rival in FIXED:
            return  # it is quick, and another rival may reach the same bits
    for mean_bits, rivals in reached.items():
        yield _cell(name, AT_THE_BITS_OF + " and ".join(rivals), bits, seed, mean_bits)


def _cell(model, label, bits, seed, limit=None):
    settings = {"model": model, "label": label, "bits": bits, "seed": seed, "limit": limit or bits}
    return cells.Cell(f"{model}/{bits} bits/{label}/seed={seed}", settings)


class Remembered:
    """A measure that answers what it was asked before, in whatever cell, and adds what that took then to
    `seconds` (clock, CPU): searches ask for many of the same candidates.
    """

    def __init__(self, measure):
        self.measure, self.known, self.seconds = measure, {}, [0.0, 0.0]

    def __call__(self, candidate, share=1.0):
        key = (candidate, share)
        if key in self.known:
            value, *took = self.known[key]
            self.seconds = [before + more for before, more in zip(self.seconds, took, strict=True)]
            return value
        start = _clocks()
        value = self.measure(candidate, share)
        self.known[key] = (value, *_since(start))
        return value


def _clocks():
    return time.perf_counter(), time.process_time()


def _since(start):
    return [now - then for now, then in zip(_clocks(), start, strict=True)]


def measure(s, models, text, search_tokens, report_tokens):
    from hf_share.elastic import choose

    place = next(m for m in models if Path(m).name == s["model"])
    model, space, search, report, divergence = _prepared(place, text, search_tokens, report_tokens)
    divergence.seconds, start = [0.0, 0.0], _clocks()
    candidate, found = _chosen(s, model, space, search, divergence)
    clock, cpu = (now + before for now, before in zip(_since(start), divergence.seconds, strict=True))
    found |= {"search_seconds": round(clock, 2), "search_cpu_seconds": round(cpu, 2)}
    choose(model, **space.choices(candidate))
    found |= {"linears": len(space.decisions), "mean_bits": space.costs["bits"].of(candidate)}
    return {**found, "bytes": space.costs["bytes"].of(candidate), "nll": nll(model, report)}


@functools.cache
def _prepared(place, text, search_tokens, report_tokens):
    """An elastic model and its space, the two splits, which share no text, and how far a candidate is from
    the dense model on the first.
    """
    import torch
    from transformers import AutoModelForCausalLM

    import hf_share
    from hf_share.elastic import choose
    from hf_share.search.elastic_space import elastic_space
    from hf_share.search.objective import Divergence
    from hf_share.search.splits import require_disjoint

    report, before = windows(place, text, report_tokens, CONTEXT)
    search = torch.cat(before)[: search_tokens // CONTEXT]
    require_disjoint(search, report)
    dense = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    codes = hf_share.ElasticConfig(group_size=GROUP_SIZE, base="minmax", r_private=0, r_shared=0)
    model = hf_share.share(copy.deepcopy(dense), codes)
    space = elastic_space(model)
    divergence = Divergence(
        model, lambda c: choose(model, **space.choices(c)), space.largest, search, teacher=dense
    )
    return model, space, search, report, Remembered(divergence)


def _chosen(s, model, space, search, divergence):
    """The candidate a search finds, and what it took: evaluations, and the divergence it got down to."""
    from hf_share.budget import Budget
    from hf_share.search.elastic_space import importances
    from hf_share.search.evaluate import Evaluator
    from hf_share.search.methods import Task, run

    budget = Budget.of({"bits": s["limit"]})
    if s["label"] == "uniform":
        fitting = [c for c in space.uniform() if space.fits(c, budget)]
        return fitting[-1], {"evaluations": 0}
    how = RUNS.get(s["label"], RUNS[OURS])
    evaluate = Evaluator(divergence, parts=len(search), fits=lambda c: space.fits(c, budget), progress=False)
    task = Task(
        space=space, evaluate=evaluate, budget=budget, seed=s["seed"],
        evaluations=_evaluations(how, space), importance=importances(model, space, search.split(8)),
    )  # fmt: skip
    best = run(how.method, task).best
    spent = evaluate.spent  # before the answer is looked at, which methods without evaluations never do
    return best, {"evaluations": round(spent, 3), "divergence": evaluate(best)}


def _evaluations(how, space):
    from hf_share.search.sensitivity import evaluations

    if how.evaluations == "as ours":
        return evaluations(space) + AFTER_TABLE
    return AFTER_TABLE if how.evaluations == "after a table" else how.evaluations


def main():
    parser = resumable(__doc__)
    parser.add_argument("--text", required=True, help="plain text; searched on before byte 60,000")
    parser.add_argument("--search-tokens", type=int, default=8_192, help="tokens of an evaluation")
    parser.add_argument("--report-tokens", type=int, default=32_768, help="tokens an NLL is measured on")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    places = {name: getattr(options, name) for name in ("models", "text", "search_tokens", "report_tokens")}
    results = cells.run(
        functools.partial(wanted, options.models, options.seeds), functools.partial(measure, **places),
        OUTPUT, record=recorded(options), adopt=options.adopt, only=options.cells, jobs=options.jobs,
    )  # fmt: skip
    print(page(results, OUTPUT))


if __name__ == "__main__":
    main()

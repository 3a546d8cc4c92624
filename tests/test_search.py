# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Searches on a toy space with a known objective: budgets, exact knapsacks, swaps, rivals, resumption."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from hf_share.budget import Budget, label
from hf_share.errors import CheckpointError, ConfigError
from hf_share.search import baselines, methods
from hf_share.search.blocks import lim, two_levels, zd
from hf_share.search.evaluate import Evaluator
from hf_share.search.knapsack import ladder, solve
from hf_share.search.sensitivity import evaluations, predicted, sensitivity
from hf_share.search.space import Cost, Decision, Space
from hf_share.search.swaps import fill, swap, swap_search


WIDTHS = (2, 3, 4)


def toy(count: int = 8, seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> Space:
    """`count` weights of different sizes, two to a block, with bits and bytes."""
    rng = random.Random(seed)
    sizes = [rng.randrange(1, 9) * 1000 for _ in range(count)]
    decisions = tuple(
        Decision(kind="bits", name=f"w{i}", options=widths, block=str(i // 2)) for i in range(count)
    )
    bits = Cost(options=tuple(tuple(w * n for w in widths) for n in sizes), over=sum(sizes))
    stored = Cost(options=tuple(tuple(w * n // 8 + 64 for w in widths) for n in sizes), fixed=5000)
    return Space(decisions=decisions, costs={"bits": bits, "bytes": stored})


class Objective:
    """An error that halves with each level, of another weight at each decision, and pairs that interact."""

    def __init__(self, space: Space, seed: int = 1, pairs: float = 0.3):
        rng = random.Random(seed)
        self.weights = [rng.random() ** 3 + 0.01 for _ in space.sizes]
        self.pairs, self.calls = pairs, []

    def __call__(self, candidate, share=1.0):
        self.calls.append(candidate)
        errors = [w * 0.4**level for w, level in zip(self.weights, candidate, strict=True)]
        return sum(errors) + self.pairs * sum(a * b for a, b in zip(errors, errors[1:], strict=False))


def quiet(measure, **more) -> Evaluator:
    return Evaluator(measure, progress=False, **more)


# budgets


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("bits=3.0", (("bits", 3.0),)),
        ("3.0 bits", (("bits", 3.0),)),
        ("3.0-bits", (("bits", 3.0),)),
        ("bytes=1.2GB", (("bytes", 1.2e9),)),
        ("bytes=3gb", (("bytes", 3e9),)),
        ("bytes=2 KiB", (("bytes", 2048.0),)),
        ("1.5 MB", (("bytes", 1.5e6),)),
        ("1200000 bytes", (("bytes", 1.2e6),)),
        ("1.2e6 bytes", (("bytes", 1.2e6),)),
        ("latency_ms=12ms", (("latency_ms", 12.0),)),
        ("bits=3,bytes=12kB", (("bits", 3.0), ("bytes", 12000.0))),
        ({"bits": 3, "latency_ms": 2.5}, (("bits", 3.0), ("latency_ms", 2.5))),
    ],
)
def test_budgets_that_people_write(given, limits):
    assert Budget.of(given).limits == limits
    assert Budget.of(Budget.of(given)) == Budget.of(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bits", "such as bits=3.0"),
        ("bits=", "such as bits=3.0"),
        ("bits=many", "no amount"),
        ("bits=-1", "above 0"),
        ({"bits": True}, "no amount"),
        ({"bits": float("nan")}, "no amount|above 0"),
        ("bytes=3Go", "unit of bytes 'Go'.*'GB'"),
        ("bits=3,bits=4", "each cost once"),
        ({}, "each cost once"),
        (3.0, "budget is 3.0.*such as bits=3.0"),
    ],
)
def test_bad_budgets_say_what_fits(given, message):
    with pytest.raises(ConfigError, match=message):
        Budget.of(given)


def test_names_of_budgets():
    assert Budget.of("bits=3").name == "3.0-bits"
    assert Budget.of({"bytes": 63421, "latency_ms": 12}).name == "63.42-kB_12.0-ms"
    assert label("params", 14_850) == "14.85k-params" and label("params", 12) == "12.0-params"
    assert label("bytes", 999) == "999.0-B" and label("bytes", 1.2e9) == "1.2-GB"


def test_a_budget_below_the_smallest_subnet_names_the_smallest():
    space = toy()
    with pytest.raises(ConfigError, match=r"bits=1.5 is below the smallest subnet, which has bits=2$"):
        solve(space, [[0, 0, 0]] * 8, Budget.of("bits=1.5"))
    least = space.costs["bytes"].smallest
    with pytest.raises(ConfigError, match=f"bytes={least:.0f}"):
        space.check(Budget.of({"bytes": least - 1}))
    space.check(Budget.of({"bytes": least}))
    with pytest.raises(ConfigError, match="did you mean 'bits'"):
        space.check(Budget.of("bit=3"))


# spaces


def test_costs_add_up_exactly():
    space = toy()
    for level, candidate in enumerate(space.uniform()):
        assert space.amounts(candidate)["bits"] == WIDTHS[level]
    by_hand = 5000 + sum(o[2] for o in space.costs["bytes"].options)
    assert space.amounts(space.largest)["bytes"] == by_hand == space.costs["bytes"].largest


def test_choices_there_and_back():
    space = toy(3)
    choices = space.choices((0, 2, 1))
    assert choices == {"bits": {"w0": 2, "w1": 4, "w2": 3}}
    assert space.candidate(json.loads(json.dumps(choices))) == (0, 2, 1)
    with pytest.raises(ConfigError, match="2, 3, 4 fit"):
        space.candidate({"bits": {"w0": 8, "w1": 4, "w2": 3}})


def test_the_base_is_the_uniform_candidate_nearest_the_budget():
    space = toy()
    levels = {"bits=2.2": 0, "bits=2.5": 1, "bits=3.0": 1, "bits=3.6": 2, "bits=9": 2}
    for budget, level in levels.items():
        assert space.nearest_uniform(Budget.of(budget)) == (level,) * 8


def test_malformed_spaces():
    with pytest.raises(ConfigError, match="offers no choice"):
        Space(decisions=(), costs={})
    one = Decision(kind="bits", name="w", options=(2, 3))
    with pytest.raises(ConfigError, match="one name"):
        Space(decisions=(one, one), costs={})
    with pytest.raises(ConfigError, match="one number for each option"):
        Space(decisions=(one,), costs={"bits": Cost(options=((1.0,),))})
    with pytest.raises(ConfigError, match="different options"):
        Decision(kind="bits", name="w", options=(2, 2))


# evaluations


def test_evaluations_are_counted_once_and_kept(tmp_path):
    space, path = toy(3), tmp_path / "kept" / "evaluations.jsonl"
    measure = Objective(space)
    first = quiet(measure, path=path, fingerprint="a")
    values = [first(c) for c in space.uniform()] + [first(space.smallest)]
    assert first.spent == first.measured == 3 and len(measure.calls) == 3
    again = quiet(measure, path=path, fingerprint="a")
    assert [again(c) for c in space.uniform()] == values[:3]
    assert again.spent == 3 and again.measured == 0  # the price of the search is the same
    other = quiet(measure, path=path, fingerprint="b")
    other(space.smallest)
    assert other.measured == 1  # another model or other text


def test_a_share_of_the_data_is_whole_windows_and_counted_as_such():
    shares = []
    evaluate = quiet(lambda c, share: shares.append(share) or 1.0, parts=4)
    for share in (1 / 64, 0.25, 0.3, 0.5, 1.0):
        evaluate((0,), share)
    assert shares == [0.25, 0.5, 1.0] and evaluate.spent == 1.75


def test_a_half_written_last_line_is_dropped(tmp_path):
    space, path = toy(3), tmp_path / "evaluations.jsonl"
    first = quiet(Objective(space), path=path)
    for candidate in space.uniform():
        first(candidate)
    whole = path.read_text()
    path.write_text(whole[:-20])
    again = quiet(Objective(space), path=path)
    for candidate in space.uniform():
        again(candidate)
    assert again.measured == 1 and path.read_text() == whole
    path.write_text(whole.rstrip("\n"))  # whole but for its end of line
    assert quiet(Objective(space), path=path)(space.largest) == first(space.largest)
    assert path.read_text() == whole
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="something else"):
        quiet(Objective(space), path=path)
    path.write_text("nonsense\n" + whole)
    with pytest.raises(CheckpointError, match="line 1"):
        quiet(Objective(space), path=path)


def test_what_is_no_number_is_the_worst(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    for _ in range(2):
        evaluate = quiet(lambda c, share: float("nan") if c == (0,) else 1.0, path=path)
        assert evaluate((0,)) == float("inf") and evaluate((1,)) == 1.0
        assert evaluate.best == ((1,), 1.0)
    assert evaluate.measured == 0


def test_progress_shows_the_best_that_fits(capsys):
    space = toy(3)
    evaluate = Evaluator(Objective(space), fits=lambda c: space.fits(c, Budget.of("bits=3")))
    with evaluate.stage("trial", 3):
        for candidate in space.uniform():
            evaluate(candidate)
    shown = capsys.readouterr()
    assert f"best so far {evaluate((1, 1, 1)):.5g}" in " ".join(shown.err.split()) and not shown.out


# sensitivity and the knapsack


def test_a_table_costs_two_evaluations_a_weight_and_one():
    space = toy(5)
    evaluate = quiet(Objective(space, pairs=0.0))
    table = sensitivity(space, evaluate, (1,) * 5)
    assert evaluate.spent == evaluations(space) == 11
    assert all(row[1] == 0.0 and row[0] > 0.0 > row[2] for row in table)
    for candidate in itertools.product(range(3), repeat=5):  # errors of weights that do not interact add up
        expected = evaluate((1,) * 5) + predicted(table, candidate)
        assert abs(expected - evaluate(candidate)) < 1e-12


def brute_force(space: Space, table, budget: Budget) -> float:
    every = itertools.product(*(range(n) for n in space.sizes))
    return min(predicted(table, c) for c in every if space.fits(c, budget))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", ["bits=2.0", "bits=2.3", "bits=3.0", "bits=4", "bits=3.2,bytes=16kB"])
def test_the_knapsack_equals_brute_force(seed, budget):
    space, rng = toy(6, seed), random.Random(seed)
    table = tuple(tuple(rng.gauss(0, 1) for _ in WIDTHS) for _ in range(6))  # not even monotone
    limits = Budget.of(budget)
    if "bytes" in budget:  # between the smallest and the largest
        stored = space.costs["bytes"]
        limits = Budget((limits.limits[0], ("bytes", (stored.smallest + stored.largest) / 2)))
    found = solve(space, table, limits)
    assert space.fits(found, limits)
    assert predicted(table, found) == brute_force(space, table, limits)


def test_the_knapsack_is_exact_with_costs_in_the_billions():
    rng = random.Random(0)
    names = [Decision(kind="bits", name=str(i), options=WIDTHS) for i in range(7)]
    cost = Cost(options=tuple(tuple(sorted(rng.randrange(10**9) for _ in WIDTHS)) for _ in range(7)))
    space = Space(decisions=tuple(names), costs={"bytes": cost})
    table = tuple(tuple(rng.random() for _ in WIDTHS) for _ in range(7))
    for candidate in itertools.islice(itertools.product(range(3), repeat=7), 0, None, 300):
        budget = Budget((("bytes", cost.of(candidate)),))  # met with nothing to spare
        found = solve(space, table, budget)
        assert cost.of(found) <= budget.limit
        assert predicted(table, found) == brute_force(space, table, budget)


def test_limits_that_exclude_each_other():
    one = Decision(kind="bits", name="w", options=(2, 3))
    costs = {"a": Cost(options=((1.0, 5.0),)), "b": Cost(options=((5.0, 1.0),))}
    with pytest.raises(ConfigError, match="at once"):
        solve(Space(decisions=(one,), costs=costs), [[0.0, 0.0]], Budget.of({"a": 2, "b": 2}))


def test_a_ladder_climbs_from_the_smallest_to_the_largest():
    space = toy(6)
    table = sensitivity(space, quiet(Objective(space)), (1,) * 6)
    climbed = ladder(space, table, Budget.of("bits=3"), 9)
    assert climbed[0] == (2.0, space.smallest) and climbed[-1] == (4.0, space.largest)
    values = [predicted(table, c) for _, c in climbed]
    assert values == sorted(values, reverse=True) and len(set(climbed)) == len(climbed)
    assert all(space.costs["bits"].of(c) <= limit + 1e-9 for limit, c in climbed)


# swaps


def test_moves_keep_the_budget_and_spend_it():
    space, budget, rng = toy(8), Budget.of("bits=2.9"), random.Random(0)
    now = fill(space, space.smallest, budget, rng)
    for _ in range(50):
        now = swap(space, now, budget, rng)
        assert space.fits(now, budget)
        assert not any(
            space.fits((*now[:d], level + 1, *now[d + 1 :]), budget)
            for d, level in enumerate(now) if level < 2
        )  # fmt: skip
    assert swap(space, space.largest, Budget.of("bits=4"), rng) == space.largest


@pytest.mark.parametrize("stages", [((1, 1.0),), ((4, 0.25), (1, 1.0))])
def test_swaps_improve_within_their_evaluations_and_repeat(stages):
    space, budget = toy(8), Budget.of("bits=2.8")
    start = baselines.filled(space, budget, 0)
    runs = []
    for _ in range(2):
        evaluate = quiet(Objective(space))
        found = swap_search(space, evaluate, start, budget, evaluations=40, seed=3, stages=stages)
        assert evaluate.spent <= 40 and evaluate(found) < evaluate(start) and space.fits(found, budget)
        runs.append((found, list(evaluate.seen)))
    assert runs[0] == runs[1]
    other = quiet(Objective(space))
    swap_search(space, other, start, budget, evaluations=40, seed=4, stages=stages)
    assert list(other.seen) != runs[0][1]


def test_swaps_stop_when_nothing_is_new():
    space, budget = toy(2), Budget.of("bits=4")
    evaluate = quiet(Objective(space))
    assert swap_search(space, evaluate, space.largest, budget, evaluations=100) == space.largest
    assert evaluate.spent == 1
    assert swap_search(space, evaluate, space.largest, budget, evaluations=0) == space.largest


# rivals


@pytest.mark.parametrize("name", [n for n in methods.METHODS if "nsga2" not in n])
def test_every_method_keeps_the_budget_and_repeats(name):
    space, budget = toy(8), Budget.of("bits=2.8")
    importance = {k: lambda: {str(i): float(i) for i in range(4)} for k in ("lim", "zd")}
    outcomes = []
    for _ in range(2):
        evaluate = quiet(Objective(space))
        task = methods.Task(
            space=space, evaluate=evaluate, budget=budget, evaluations=30, rungs=5, importance=importance
        )
        found = methods.run(name, task)
        assert space.fits(found.best, budget) and evaluate.spent <= 30 + evaluations(space)
        assert all(space.fits(c, rung) for rung, c in found.front)
        outcomes.append(found)
    assert outcomes[0] == outcomes[1]


def test_the_default_beats_the_rivals_on_a_toy():
    space, budget = toy(12), Budget.of("bits=2.8")
    reached = {}
    for name in (methods.DEFAULT, "sensitivity+knapsack", "random", "llm-qfa"):
        evaluate = quiet(Objective(space))
        found = methods.run(name, methods.Task(space=space, evaluate=evaluate, budget=budget, evaluations=60))
        reached[name] = evaluate(found.best)
    assert reached[methods.DEFAULT] <= reached["sensitivity+knapsack"]
    assert reached["sensitivity+knapsack"] < reached["llm-qfa"] <= reached["random"]


def test_unknown_methods_and_impossible_budgets():
    task = methods.Task(space=toy(3), evaluate=quiet(Objective(toy(3))), budget=Budget.of("bits=3"))
    with pytest.raises(ConfigError, match="did you mean 'llm-qfa'"):
        methods.run("llmqfa", task)
    low = methods.Task(space=task.space, evaluate=task.evaluate, budget=Budget.of("bits=1.9"))
    for name in methods.METHODS:
        with pytest.raises(ConfigError, match="which has bits=2"):
            methods.run(name, low)
    assert task.evaluate.spent == 0


def test_llm_qfa_shrinks_around_what_matters():
    space = toy(8)
    weights = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    rng = random.Random(0)
    drawn = [tuple(rng.randrange(3) for _ in range(8)) for _ in range(1000)]
    values = [-sum(w * level for w, level in zip(weights, c, strict=True)) for c in drawn]
    lower, narrow = baselines.shrunk(space, drawn, values)
    assert lower == (1, 1, 0, 0, 0, 0, 0, 0)
    assert [d.options for d in narrow.decisions] == [(3, 4)] * 2 + [(2, 3, 4)] * 4 + [(2, 3)] * 2
    moved = (0,) * 8
    back = tuple(a + b for a, b in zip(moved, lower, strict=True))
    assert narrow.amounts(moved) == space.amounts(back)


def test_higher_lim_is_more_important():
    space, budget = toy(8), Budget.of("bits=3.0")
    influence = [0.01, 0.9, 0.02, 0.03]  # 1 - cos: the second block turns its input most
    scores = dict(zip("0123", lim(influence), strict=True))
    assert max(scores, key=scores.__getitem__) == "1"
    found = two_levels(space, scores, budget)
    assert found[2:4] == (2, 2) and set(found) == {0, 2} and space.fits(found, budget)
    with pytest.raises(ConfigError, match="block '3'"):
        two_levels(space, {"0": 1.0, "1": 0.0, "2": 0.0}, budget)


def test_zd_counts_the_weights_above_one_deviation():
    heavy = torch.zeros(1000)
    heavy[:10] = 100.0  # few weights far out: a low ZD
    flat = torch.linspace(-1, 1, 1000)
    assert zd([heavy]) == 0.01
    assert abs(zd([flat[:500], flat[500:]]) - (1 - 3**-0.5) / 2) < 2e-3
    with pytest.raises(ConfigError, match="without weights"):
        zd([])


# NSGA-II


@pytest.mark.parametrize("name", ["nsga2", "nsga2-unseeded"])
def test_nsga2_gives_a_front_within_the_budget_and_resumes(name, tmp_path):
    pytest.importorskip("optuna", reason="the extra `search` is not installed")
    space, budget, path = toy(8), Budget.of("bits=2.8,bytes=25kB"), tmp_path / "evaluations.jsonl"

    def task(kept=None):
        evaluate = quiet(Objective(space), path=kept, fits=lambda c: space.fits(c, budget))
        return methods.Task(space=space, evaluate=evaluate, budget=budget, evaluations=40, seed=2)

    whole = task(path)
    found = methods.run(name, whole)
    points = [(whole.evaluate(c), *space.amounts(c).values()) for _, c in found.front]
    assert len(points) > 3 and all(space.fits(c, budget) for _, c in found.front)
    for a, b in itertools.permutations(points, 2):
        assert not all(x <= y for x, y in zip(a, b, strict=True))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + '{"candi')  # killed in the middle
    again = task(path)
    assert methods.run(name, again) == found
    assert again.evaluate.measured == len(lines) - len(lines) // 2


def test_nsga2_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    task = methods.Task(space=toy(3), evaluate=quiet(Objective(toy(3))), budget=Budget.of("bits=3"))
    with pytest.raises(ConfigError, match=r"hf_share\[search\]"):
        methods.run("nsga2-unseeded", task)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Samplers of subnets: their distributions, their periods, and that nothing but (seed, step, micro-step)
decides.
"""

from __future__ import annotations

from collections import Counter
from math import log
from statistics import fmean, pstdev

import pytest

from hf_share import ConfigError
from hf_share.train.draws import max_entropy, pick, uniform
from hf_share.train.samplers import SAMPLERS, Space, make_sampler


# weights of the linears of a layer: attention with two groups of heads, three of the FFN
SIZES = {"q": 4096, "k": 2048, "v": 2048, "o": 4096, "gate": 11008, "up": 11008, "down": 11008}
SITES = {f"layers.{depth}.{role}": size for depth in range(5) for role, size in SIZES.items()}
SPACE = Space(values={"bits": (2, 3, 4)}, units={"bits": tuple((site,) for site in SITES)})
KINDS = sorted(SAMPLERS)
GOLDEN = [4, 4, "22", "44", "44", 4, "32", "22", 3]  # bits of seed 9: everywhere, or of two sites


def mean_bits(choices) -> float:
    bits = choices["bits"]
    by_site = bits if isinstance(bits, dict) else dict.fromkeys(SITES, bits)
    return sum(SITES[s] * b for s, b in by_site.items()) / sum(SITES.values())


def means(kind: str, steps: int = 3000, **numbers) -> list[float]:
    sampler = make_sampler(kind, SPACE, **numbers)
    return [mean_bits(s.choices) for step in range(steps) for s in sampler.subnets(step)]


def share(found: list[float], low: float, high: float) -> float:
    return fmean(low <= m <= high for m in found)


@pytest.mark.parametrize("level", [0.0, 1e-9, 0.1, 0.5, 0.83, 1.0])
@pytest.mark.parametrize("values", [(2, 3, 4), (1, 8, 32), (0.5, 1.0), tuple(range(1, 65))])
def test_maximum_entropy_has_its_mean_and_equal_log_steps(values, level):
    p = max_entropy(values, level)
    assert sum(p) == pytest.approx(1.0)
    mean = sum(v * q for v, q in zip(values, p, strict=True))
    assert mean == pytest.approx(values[0] + level * (values[-1] - values[0]), abs=1e-6)
    slopes = [
        log(q / r) / (w - v)
        for v, w, r, q in zip(values, values[1:], p, p[1:], strict=False)
        if min(q, r) > 1e-300
    ]
    assert slopes == pytest.approx(slopes[:1] * len(slopes), rel=1e-6, abs=1e-6)


def test_uniform_draws_hardly_leave_the_middle():
    found = means("uniform")
    assert fmean(found) == pytest.approx(3.0, abs=0.01)
    assert pstdev(found) == pytest.approx(0.163, abs=0.008)
    assert share(found, 2.4, 3.6) > 0.999
    bits = make_sampler("uniform", SPACE)
    drawn = Counter(b for t in range(300) for b in bits.subnets(t)[0].choices["bits"].values())
    assert all(n == pytest.approx(300 * 35 / 3, rel=0.05) for n in drawn.values()) and len(drawn) == 3


def test_uniform_draws_of_32_layers_have_the_papers_spread():
    """sqrt(2/3 / 32) for a value of 2, 3, 4 each; 93.5 % of all lie in the middle quarter."""
    space = Space(values={"bits": (2, 3, 4)}, units={"bits": tuple((f"layers.{d}",) for d in range(32))})
    sampler = make_sampler("uniform", space)
    found = [fmean(sampler.subnets(t)[0].choices["bits"].values()) for t in range(6000)]
    assert pstdev(found) == pytest.approx(0.1443, abs=0.003)
    assert share(found, 2.75, 3.25) == pytest.approx(0.935, abs=0.007)
    assert share(found, 2.0, 2.5 - 1e-9) < 1e-3


@pytest.mark.parametrize("kind", ["triangular", "random_mean"])
def test_a_moving_mean_reaches_all_sizes(kind):
    found = means(kind, **({"period": 1000} if kind == "triangular" else {}))
    assert fmean(found) == pytest.approx(3.0, abs=0.03)
    assert pstdev(found) == pytest.approx(0.585, abs=0.02)  # uniform over [2, 4] alone: 0.577
    assert share(found, 2.0, 2.4) == pytest.approx(0.2, abs=0.02)
    assert share(found, 3.6, 4.0) == pytest.approx(0.2, abs=0.02)


def test_the_wave_has_its_period():
    wave = make_sampler("triangular", SPACE, period=8)
    levels = [wave.level(t) for t in range(16)]
    assert levels[:9] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.25, 0.5, 0.75, 1.0] and levels[8:] == levels[:8]
    assert mean_bits(wave.subnets(0)[0].choices) == 4.0 and wave.subnets(0)[0].largest
    assert mean_bits(wave.subnets(4)[0].choices) == 2.0
    middle = [mean_bits(wave.subnets(t)[0].choices) for t in range(2, 4000, 8)]
    assert fmean(middle) == pytest.approx(3.0, abs=0.02)
    assert make_sampler("triangular", SPACE, period=0.8, steps=300).period == 240


def test_a_mixture_holds_its_part_of_uniform_nets():
    drawn = [make_sampler("mixture", SPACE, p=0.4).subnets(t)[0].choices["bits"] for t in range(2000)]
    alike = [bits for bits in drawn if isinstance(bits, int)]
    assert len(alike) / 2000 == pytest.approx(0.4, abs=0.03)
    assert all(n / len(alike) == pytest.approx(1 / 3, abs=0.05) for n in Counter(alike).values())
    rest = [mean_bits({"bits": bits}) for bits in drawn if not isinstance(bits, int)]
    assert pstdev(rest) == pytest.approx(0.585, abs=0.03)


def test_a_sandwich_has_both_ends_and_different_fillings():
    found = make_sampler("sandwich", SPACE, n=3).subnets(5, 1)
    assert [s.choices["bits"] for s in found[:2]] == [4, 2] and len(found) == 5
    assert [s.largest for s in found] == [True, False, False, False, False]
    assert all(s.weight == 1.0 for s in found)
    fillings = [tuple(s.choices["bits"].values()) for s in found[2:]]
    assert len(set(fillings)) == 3 and all(len(f) == 35 for f in fillings)


def test_every_is_each_value_once():
    space = Space(values={"bits": (2, 3, 4), "rank": (8, 16)})
    found = make_sampler("every", space).subnets(3)
    assert [dict(s.choices) for s in found] == [
        {"bits": 4, "rank": 16}, {"bits": 3, "rank": 8}, {"bits": 2, "rank": 8}
    ]  # fmt: skip
    assert sum(s.weight for s in found) == pytest.approx(1.0) and found[0].largest


def test_delayed_nets_start_with_the_largest_and_grow_in_weight():
    sampler = make_sampler("sandwich", SPACE, n=1, warm=3, ramp=4)
    weights = [[s.weight for s in sampler.subnets(t)] for t in range(9)]
    assert weights[:3] == [[1.0]] * 3
    assert weights[3:8] == [[1.0, w, w] for w in (0.2, 0.4, 0.6, 0.8, 1.0)] and weights[8] == weights[7]
    assert all(sampler.subnets(t)[0].choices == {"bits": 4} for t in range(9))
    assert make_sampler("uniform", SPACE, warm=0.5, ramp=0.1, steps=40).subnets(20)[1].weight == 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_only_seed_step_and_micro_step_decide(kind):
    numbers = {"period": 50} if kind == "triangular" else {}
    one, two = (make_sampler(kind, SPACE, seed=3, **numbers) for _ in range(2))
    later = {(t, m): two.subnets(t, m) for t in reversed(range(12)) for m in (1, 0)}
    assert all(one.subnets(t, m) == later[t, m] for t in range(12) for m in (0, 1))
    if kind != "every":
        assert len({repr(later[t, m]) for t in range(12) for m in (0, 1)}) > 8
        assert later[5, 0] != later[5, 1]
        assert make_sampler(kind, SPACE, seed=4, **numbers).subnets(5) != one.subnets(5)


def test_a_draw_is_the_same_on_every_machine_and_among_other_sites():
    drawn = []
    for sites in ("ba", "anb"):
        space = Space(values={"bits": (2, 3, 4)}, units={"bits": tuple((site,) for site in sites)})
        sampler = make_sampler("mixture", space, seed=9)
        found = [sampler.subnets(t)[0].choices["bits"] for t in range(9)]
        drawn.append([bits if isinstance(bits, int) else f"{bits['a']}{bits['b']}" for bits in found])
    assert drawn[0] == drawn[1] == GOLDEN


def test_sites_of_a_unit_take_one_value_and_a_choice_without_units_is_the_models():
    units = (("q", "k", "v"), ("o",))
    space = Space(values={"bits": (2, 3, 4), "loops": (1, 2)}, units={"bits": units})
    found = [make_sampler("uniform", space).subnets(t)[0].choices for t in range(40)]
    assert all(c["bits"]["q"] == c["bits"]["k"] == c["bits"]["v"] for c in found)
    assert {c["bits"]["q"] == c["bits"]["o"] for c in found} == {True, False}
    assert {c["loops"] for c in found} == {1, 2}


def test_a_pick_follows_its_weights():
    assert [pick("abc", (1, 0, 3), u) for u in (0.0, 0.24, 0.25, 0.9999)] == ["a", "a", "c", "c"]
    drawn = [uniform("seed", i) for i in range(4000)]
    assert fmean(drawn) == pytest.approx(0.5, abs=0.02) and pstdev(drawn) == pytest.approx(0.2887, abs=0.01)


BAD = {
    "kind": (lambda: make_sampler("triangel", SPACE), "unknown sampler 'triangel'; did you mean 'triangul"),
    "number": (lambda: make_sampler("mixture", SPACE, q=0.5), "unknown number of sampler 'mixture' 'q'"),
    "text": (lambda: make_sampler("mixture", SPACE, p="half"), "p='half' is not a number"),
    "p": (lambda: make_sampler("mixture", SPACE, p=1.5), "p=1.5 must lie in"),
    "period": (lambda: make_sampler("triangular", SPACE, period=1), "period=1; a wave takes 2"),
    "fraction": (lambda: make_sampler("triangular", SPACE, period=2.5), "period=2.5 is neither a whole"),
    "warm": (lambda: make_sampler("uniform", SPACE, warm=-1), "warm=-1 and ramp=0 count steps"),
    "n": (lambda: make_sampler("sandwich", SPACE, n=-1), "n=-1 counts subnets"),
    "inner": (lambda: make_sampler("sandwich", SPACE, inner="sandwich"), "unknown inner sampler 'sandwich'"),
    "nothing": (lambda: Space(values={"bits": (4,)}), "there is nothing to sample"),
    "order": (lambda: Space(values={"bits": (4, 2)}), "must be distinct and stand smallest first"),
    "unit": (lambda: Space(values={"bits": (2, 4)}, units={"bit": ()}), "unknown choice 'bit'; did you mean"),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_that_do_not_fit_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        make()

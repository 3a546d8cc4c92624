# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Elastic bits: codes that hold their narrower versions, adapters by width, one size taken out of a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from itertools import chain, product

import pytest
import torch
import transformers as tf
import zoo

import hf_share
from hf_share import (
    ConfigError,
    ElasticConfig,
    FoldConfig,
    MosConfig,
    PlanError,
    Refused,
    ShareConfig,
    ShareLoraConfig,
)
from hf_share.codes import _nearest, nested_codes
from hf_share.costs import Costs
from hf_share.elastic import bindings
from hf_share.modules import linear_weight
from hf_share.nested import Nested
from hf_share.planes import pack, read, spell, unpack
from hf_share.registry import remember
from hf_share.sites import Site


LINES = {"llama": 28, "gpt2": 16}


def elastic(arch="llama", seed=0, **args):
    """An elastic model whose deltas are trained a little: drawn at random."""
    config = ElasticConfig(**{"group_size": 16, **args})
    model = hf_share.share(zoo.build(arch), config).eval()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".share." in name or "shared_stores" in name:
                value.copy_(0.05 * torch.randn(value.shape, generator=gen))
    return model


def site(rows, columns):
    return Site(name="w", module="w", part=None, kind="linear", in_features=columns, out_features=rows)


@pytest.mark.parametrize("width", [8, 13, 64])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_planes_hold_their_top_bits(width, bits):
    codes = torch.randint(2**bits, (5, width), dtype=torch.uint8)
    planes = pack(codes, bits)
    assert all(plane.shape == (5, -(-width // 8)) for plane in planes)
    for b in range(1, bits + 1):
        assert torch.equal(unpack(planes[:b], width), codes >> (bits - b))


@pytest.mark.parametrize("widths", [(2, 3, 4), (2, 4, 8), (1, 5), (4,), (8,)])
def test_the_best_code_is_the_best_of_all(widths):
    """Against a search through every code, also for lines that fall or are flat, and errors that count 0."""
    gen = torch.Generator().manual_seed(3)
    w, bits = torch.randn(5, 2, 7, generator=gen), widths[-1]
    lines = torch.randn(5, 2, len(widths), 2, generator=gen)
    lines[..., 0] *= torch.tensor([2.0 ** -b for b in widths])
    lines[0, 0, -1, 0] = 0.0
    first_only = [1.0, *[0.0] * (len(widths) - 1)]
    for weights in ([1.0] * len(widths), [2.0 ** (b - bits) for b in widths], first_only):
        of = dict(zip(widths, weights, strict=True))

        def error(q, of=of):
            values = [lines[..., i, :1] * (q >> (bits - b)) + lines[..., i, 1:] for i, b in enumerate(widths)]
            pairs = zip(of.values(), values, strict=True)
            return sum(weight * (w - value).square() for weight, value in pairs)

        least = torch.stack([error(torch.full(w.shape, q)) for q in range(2**bits)]).amin(0)
        found = error(_nearest(w, lines, bits, of).long())
        torch.testing.assert_close(found, least, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind, tolerance", [("fp16", 1e-3), ("fp32", 0.0)])
def test_numbers_are_spelled_by_whole_ones(kind, tolerance):
    values = torch.randn(7, 3)
    spelled = spell(values, kind)
    assert not spelled.is_floating_point() and not spelled.to("meta").is_floating_point()
    assert ((read(spelled) - values).abs() <= tolerance * values.abs()).all()


def test_codes_are_the_best_of_all_for_their_lines():
    """Against every code of four bits for every weight, with the lines that were found."""
    torch.manual_seed(0)
    W, lambdas = torch.randn(6, 21), {2: 0.25, 3: 0.5, 4: 1.0}
    coded = nested_codes(W, 4, lambdas, 8)
    group = torch.arange(21) // 8

    def loss(q):
        lines = ((b, coded.scale[b][:, group], coded.offset[b][:, group]) for b in lambdas)
        return sum(lambdas[b] * (W - s * (q >> (4 - b)) - z).square() for b, s, z in lines)

    own = loss(coded.codes)
    better = torch.stack([loss(torch.full_like(coded.codes, q)) for q in range(16)]).amin(0)
    # the lines were fitted once more after the last choice of codes, so a few weights would now move
    assert (own.sum() - better.sum()) / own.sum() < 0.01
    for b, (row, g) in product(lambdas, [(0, 0), (3, 1), (5, 2)]):
        here = group == g
        q = (coded.codes[row, here] >> (4 - b)).float()
        basis = torch.stack([q, torch.ones_like(q)], 1)
        best = torch.linalg.lstsq(basis, W[row, here][:, None]).solution.flatten()
        torch.testing.assert_close(
            torch.stack([coded.scale[b][row, g], coded.offset[b][row, g]]), best, rtol=1e-3, atol=1e-4
        )


def error_of(rule, W, M, bits):
    here = site(*W.shape)
    values = rule.fit({"w": W}, [here], {"w": M})["w"]
    assert {name: tuple(value.shape) for name, value in values.items()} == rule.private(here)
    made = dataclasses.replace(rule, bits=bits)
    lost = W - made.weight(made.form({**values, **rule.constants(here, [here])}))
    return float(((lost @ M) * lost).sum() / ((W @ M) * W).sum())


@pytest.mark.parametrize("slicing", ["own", "matquant", "copies"])
@pytest.mark.parametrize("base", ["minmax", "hqq", "gptq"])
def test_every_width_is_near_and_wider_is_nearer(slicing, base):
    torch.manual_seed(0)
    W, X = torch.randn(24, 60), torch.randn(400, 60) @ torch.randn(60, 60)
    M = X.T @ X / 400
    rule = Nested(widths=(2, 3, 4), group_size=20, slicing=slicing, base=base)
    errors = [error_of(rule, W, M, b) for b in (2, 3, 4)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.03, errors


def test_calibration_pays_on_inputs_that_go_together():
    torch.manual_seed(1)
    X = torch.randn(600, 48) @ torch.diag(torch.logspace(1, -2, 48)) @ torch.randn(48, 48)
    W, M = torch.randn(32, 48), X.T @ X / 600
    plain, gptq = (Nested(widths=(2, 3, 4), group_size=16, base=base) for base in ("minmax", "gptq"))
    for b in (2, 3):
        assert error_of(gptq, W, M, b) < 0.7 * error_of(plain, W, M, b)


def test_own_lines_are_what_cutting_needs():
    """At the narrowest width a line of its own beats the one of the widest code."""
    torch.manual_seed(0)
    W, M = torch.randn(24, 64), torch.eye(64)
    own, one = (Nested(widths=(2, 3, 4), group_size=32, slicing=s) for s in ("own", "matquant"))
    assert error_of(own, W, M, 2) < 0.8 * error_of(one, W, M, 2)


@pytest.mark.parametrize("slicing, code_bits", [("own", 4), ("copies", 9), ("matquant", 4)])
def test_stored_bits_are_the_code_and_its_lines(slicing, code_bits):
    rule = Nested(widths=(2, 3, 4), group_size=64, slicing=slicing)
    here = site(32, 128)
    shapes = rule.private(here)
    bits = sum(torch.Size(s).numel() * rule.whole(n).itemsize * 8 for n, s in shapes.items()) / (32 * 128)
    lines = 1 if slicing == "matquant" else 3
    assert bits == code_bits + lines * 32 / 64


@pytest.mark.parametrize("arch", LINES)
def test_a_size_taken_out_is_that_size(arch, tmp_path):
    """In memory and read from the file of all: bit-equal logits, the same file, of the bytes told."""
    model = elastic(arch, r_private=2, r_shared=2)
    batch = zoo.inputs(model)
    model.save_pretrained(tmp_path / "all")
    costs = Costs.of(model)
    assert len(costs.units) == LINES[arch] and costs.widths == (2, 3, 4)
    draw = random.Random(0)
    mixed = {unit.name: draw.choice([2, 3, 4]) for unit in costs.units}
    for n, choices in enumerate([costs.uniform(2), costs.uniform(4), mixed]):
        bits = costs.expand(choices)
        hf_share.choose(model, bits=bits)
        expected = zoo.logits(model, **batch)
        small = hf_share.extract(copy.deepcopy(model))
        assert torch.equal(zoo.logits(small, **batch), expected) and not hf_share.choices(small)
        small.save_pretrained(tmp_path / f"{n}")
        file = tmp_path / f"{n}" / "model.safetensors"
        assert file.stat().st_size == costs.bytes(choices)
        config = hf_share.subnet_config(tmp_path / "all", bits=bits)
        part = type(model).from_pretrained(tmp_path / "all", config=config)
        assert torch.equal(zoo.logits(part, **batch), expected)
        part.save_pretrained(tmp_path / "part")
        assert (tmp_path / "part" / "model.safetensors").read_bytes() == file.read_bytes()
        again = type(model).from_pretrained(tmp_path / f"{n}")
        assert torch.equal(zoo.logits(again, **batch), expected)
    weights = {unit.name: unit.weights for unit in costs.units}
    mean = sum(weights[name] * b for name, b in mixed.items()) / sum(weights.values())
    assert costs.mean_bits(mixed) == pytest.approx(mean) and costs.mean_bits(costs.uniform(3)) == 3.0


def test_the_narrow_model_reads_the_planes_it_needs(tmp_path):
    elastic(r_private=0, r_shared=0).save_pretrained(tmp_path)
    config = hf_share.subnet_config(tmp_path, bits=2)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    held = {name.rpartition(".")[2] for name in small.state_dict() if ".share." in name}
    assert held == {"plane_0", "plane_1", "scale_2", "offset_2"}


def test_a_tied_weight_keeps_one_code(tmp_path):
    fold = FoldConfig(group_size=2)
    both = ShareConfig(methods=[fold, ElasticConfig(bits=[2, 4], group_size=16, private=MosConfig(r=4))])
    model = hf_share.share(zoo.build("llama"), both).eval()
    costs = Costs.of(model)
    assert len(costs.units) == LINES["llama"] // 2 and all(len(unit.sites) == 2 for unit in costs.units)
    codes = [b for b in bindings(model) if b.rule.name == "nested"]
    assert len({id(b.store) for b in codes}) == len(codes) // 2
    expected = {b: zoo.logits(hf_share.choose(model, bits=b), **zoo.inputs(model)) for b in (2, 4)}
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    for b, logits in expected.items():
        assert torch.equal(zoo.logits(hf_share.choose(loaded, bits=b), **zoo.inputs(model)), logits)
        small = hf_share.extract(copy.deepcopy(loaded), bits=b)
        small.save_pretrained(tmp_path / "small")
        found = (tmp_path / "small" / "model.safetensors").stat().st_size
        assert found == costs.bytes(costs.uniform(b))
    # and on a model that was folded before
    folded = hf_share.share(zoo.build("llama"), fold)
    assert len(Costs.of(hf_share.share(folded, ElasticConfig(group_size=16))).units) == LINES["llama"] // 2


def test_only_the_active_width_trains():
    model = elastic(r_private=2, r_shared=2, bits=[2, 3]).train()
    batch = zoo.inputs(model)
    for bits, other in ((2, 3), (3, 2)):
        model.zero_grad()
        hf_share.choose(model, bits=bits)(**batch).logits.square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if ".share." in n}
        assert all(g is None for n, g in grads.items() if n.endswith(f"_{other}bit"))
        assert all(g is not None for n, g in grads.items() if not n.endswith(f"_{other}bit"))


def test_gates_start_open_but_for_the_widest():
    model = hf_share.share(zoo.build("llama"), ElasticConfig(group_size=16))
    for name, start in (("g_2bit", 1.0), ("g_3bit", 1.0), ("g_4bit", 0.0)):
        gates = [p for n, p in model.named_parameters() if n.endswith(f".share.{name}")]
        assert len(gates) == LINES["llama"] and all(g.tolist() == [start] for g in gates)


def test_choices_survive_and_casts_leave_codes_alone(tmp_path):
    model = elastic()
    sites = [s for step in model._hf_share.plan.generates for s in step.sites]
    hf_share.choose(model, bits={sites[0]: 2, sites[5]: 3})
    expected = zoo.logits(model, **zoo.inputs(model))
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(zoo.logits(loaded, **zoo.inputs(model)), expected)
    before = {n: t for n, t in chain(model.named_buffers()) if ".share." in n}
    half = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    after = {n: t for n, t in half.named_buffers() if ".share." in n}
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    assert half.dtype == torch.bfloat16 and hf_share.materialize(half).dtype == torch.bfloat16
    plain = hf_share.materialize(half)
    assert all(p.dtype == torch.bfloat16 for p in plain.parameters())
    hf_share.choose(model, bits=None)
    assert "bits" not in model._hf_share.plan.generates[0].args


def test_kept_weights_serve_training_and_every_width():
    model = hf_share.form_weights(elastic(), "materialised")
    batch = zoo.inputs(model)
    made = {b: zoo.logits(hf_share.choose(model, bits=b), **batch) for b in (2, 4, 2)}
    binding = next(b for b in bindings(model) if b.rule.name == "nested")
    assert len(binding._kept) == 2
    held = [kept.value["W"] for kept in binding._kept.values()]
    with torch.inference_mode():
        hf_share.choose(model, bits=3)(**batch)
    hf_share.choose(model, bits=3).train()(**batch).logits.square().mean().backward()
    assert [kept.value["W"] for kept in binding._kept.values()][:2] == held or len(binding._kept) == 3
    fresh = elastic()
    for b, logits in made.items():
        assert torch.equal(zoo.logits(hf_share.choose(fresh, bits=b), **batch), logits)


def test_named_subnets_are_chosen_saved_and_read(tmp_path):
    model = elastic()
    costs = Costs.of(model)
    rows = [
        {
            "name": f"{b}.0-bits", "choices": {"bits": costs.expand(costs.uniform(b))}, "bytes":
            costs.bytes(costs.uniform(b)), "mean_bits": float(b), "nll": 5.0 - b, "split": "none",
        }
        for b in (4, 2, 3)
    ]  # fmt: skip
    remember(model, rows)
    wanted = {b: zoo.logits(hf_share.choose(model, bits=b), **zoo.inputs(model)) for b in (2, 3, 4)}
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [row["name"] for row in hf_share.subnets(loaded)] == ["2.0-bits", "3.0-bits", "4.0-bits"]
    hf_share.choose(loaded, name="2.0-bits")
    assert torch.equal(zoo.logits(loaded, **zoo.inputs(model)), wanted[2])
    hf_share.choose(loaded, budget="3.5 bits")
    assert torch.equal(zoo.logits(loaded, **zoo.inputs(model)), wanted[3])
    config = hf_share.subnet_config(tmp_path, budget=f"{rows[2]['bytes']} bytes")
    part = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    assert torch.equal(zoo.logits(part, **zoo.inputs(model)), wanted[3])
    part.save_pretrained(tmp_path / "part")
    assert hf_share.subnets(part) == [] and not (tmp_path / "part" / "subnets.json").exists()
    with pytest.raises(ConfigError, match="no subnet is called '3.0-bit'.*'3.0-bits'"):
        hf_share.choose(loaded, name="3.0-bit")
    hf_share.choose(loaded, budget={"bits": 3.5, "bytes": f"{rows[1]['bytes'] / 1000} kB"})
    assert torch.equal(zoo.logits(loaded, **zoo.inputs(model)), wanted[2])
    with pytest.raises(ConfigError, match="the smallest has 2.0 mean bits"):
        hf_share.choose(loaded, budget="1.5 bits")
    with pytest.raises(ConfigError, match="budget is '3 hours'"):
        hf_share.choose(loaded, budget="3 hours")
    (tmp_path / "subnets.json").write_text(json.dumps([{"name": "x", "choice": {}}]))
    with pytest.raises(hf_share.CheckpointError, match="'choice'.*'choices'"):
        hf_share.subnets(tmp_path)


def test_passing_the_config_alone_is_refused(tmp_path):
    """transformers would keep the stored one, and so load another subnet than was asked for."""
    elastic().save_pretrained(tmp_path)
    config = hf_share.subnet_config(tmp_path, bits=2)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    for given in (small.config.quantization_config, tf.BitsAndBytesConfig(load_in_8bit=True)):
        with pytest.raises(ValueError, match=r"hf_share.inner_config\(.*hf_share.subnet_config\("):
            tf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=given)
    stored = tf.AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config
    assert repr(stored).startswith("SharedConfig {"), "what a person reads has the name of the class"


def test_the_order_of_widths_says_nothing():
    one = elastic(bits=[4, 2, 3], lambdas=[3.0, 1.0, 2.0])
    two = elastic(bits=[2, 3, 4], lambdas=[1.0, 2.0, 3.0])
    assert hf_share.choices(one) == {"bits": (2, 3, 4)}
    assert one._hf_share.plan == two._hf_share.plan
    assert torch.equal(zoo.logits(one), zoo.logits(two))


@pytest.mark.parametrize(
    "config, text",
    [
        ({"preset": "llm_qfa"}, "llm-qfa"),
        ({"bits": [4, 2, 4]}, "rising"),
        ({"bits": [2, 9]}, "from 1 to 8"),
        ({"master_bits": 6}, "has planes that no width"),
        ({"group_size": 0}, "group_size is 0"),
        ({"base": "awq"}, "base"),
        ({"lambdas": [1, 1]}, "lambdas"),
        ({"bits": [], "ranks": None}, "give one of them"),
        ({"preset": "nls", "r_private": 2}, "need bits"),
        ({"private": FoldConfig(remove=[0])}, "adapter's config"),
        ({"ranks": [4, 2, 2]}, "ranks"),
    ],
)
def test_bad_configs_are_named(config, text):
    with pytest.raises((ConfigError, PlanError), match=text):
        hf_share.share(zoo.build("llama"), ElasticConfig(**config))


def test_bad_choices_change_nothing():
    model = elastic()
    plan = model._hf_share.plan
    for settings, text in (
        ({"bits": 5}, "not offered"),
        ({"bits": {"layers.0.mlp.up_proj": 5}}, "layers.0.mlp.up_proj.*has 2, 3, 4"),
        ({"bits": {"layers.0.mlp.up": 2}}, "layers.0.mlp.up_proj"),
        ({"name": "x", "bits": 2}, "not several"),
        ({"name": "x"}, "no named subnets"),
    ):
        with pytest.raises(ConfigError, match=text):
            hf_share.choose(model, **settings)
    assert model._hf_share.plan == plan
    with pytest.raises(ConfigError, match="no choice of bits"):
        hf_share.extract(hf_share.extract(model, bits=2))
    with pytest.raises(ConfigError, match="no choice of bits"):
        Costs.of(zoo.build("llama"))


def test_a_hostile_plan_is_refused_before_anything_is_made():
    args = {"widths": [2, 3], "bits": [2] * 27}
    names = tuple(f"layers.{i}.mlp.up_proj" for i in range(4))
    for bad, text in (
        (args, "27 values for 4 sites"),
        ({"widths": [2, 3], "bits": [2, 3, 2, 4]}, "bits is 4"),
        ({"widths": [2, 3], "kept": [4]}, "kept"),
        ({"widths": list(range(1, 200))}, "widths"),
        ({"widths": [2], "lambdas": "all"}, "lambdas"),
    ):
        plan = hf_share.SharePlan((hf_share.Generate(rule="nested", sites=names, group="g", args=bad),))
        with pytest.raises(PlanError, match=text):
            hf_share.share(zoo.build("llama"), plan)
    inner = {"rule": "by_width", "args": {"widths": [2], "inner": {"rule": "low_rank", "args": {"r": 1}}}}
    step = hf_share.Generate(rule="gated", sites=names, group="g", args={"widths": [2], "inner": inner})
    with pytest.raises(PlanError, match="around another itself"):
        hf_share.share(zoo.build("llama"), hf_share.SharePlan((step,)))


def test_codes_do_not_ride_in_an_adapter():
    from peft import get_peft_model

    with pytest.raises(Refused, match="stores whole numbers"):
        get_peft_model(zoo.build("llama"), ElasticConfig(group_size=16))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("deltas", [{"r_private": 2, "r_shared": 2}, {"r_private": 0, "gated": False}])
def test_pooled_deltas_merge_into_offsets(arch, deltas, tmp_path):
    model = elastic(arch, pooled=True, **deltas)
    batch = zoo.inputs(model)
    expected = {b: zoo.logits(hf_share.choose(model, bits=b), **batch) for b in (2, 3, 4)}
    merged = hf_share.merge_deltas(copy.deepcopy(model))
    assert not [n for n, _ in merged.named_parameters() if ".share." in n]
    merged.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for b, logits in expected.items():
        got = zoo.logits(hf_share.choose(merged, bits=b), **batch)
        assert (got - logits).norm() <= 1e-5 * logits.norm()
        assert torch.equal(zoo.logits(hf_share.choose(loaded, bits=b), **batch), got)
    with pytest.raises(ConfigError, match="no pooled deltas"):
        hf_share.merge_deltas(merged)


@pytest.mark.parametrize("shared", [None, ShareLoraConfig(r=3, share="A")])
def test_without_gates_every_width_has_the_same_delta(shared, tmp_path):
    model = elastic(r_private=0, r_shared=3, gated=False, shared=shared)
    assert not [name for name, _ in model.named_parameters() if ".g_" in name]
    codes = elastic(r_private=0, r_shared=0)
    place = "model.layers.1.mlp.up_proj"
    deltas = []
    for b in (2, 3, 4):
        for each in (model, codes):
            hf_share.choose(each, bits=b)
        ours, plain = (linear_weight(each.get_submodule(place)) for each in (model, codes))
        deltas.append(ours - plain)
    assert deltas[0].norm() > 0
    torch.testing.assert_close(deltas[0], deltas[2], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = zoo.inputs(model)
    assert torch.equal(zoo.logits(loaded, **batch), zoo.logits(model, **batch))
    with pytest.raises(ConfigError, match="gated is 'no'"):
        ElasticConfig(gated="no")


def test_deltas_that_do_not_fit_offsets_stay(tmp_path):
    with pytest.raises(ConfigError, match="no pooled deltas"):
        hf_share.merge_deltas(elastic())
    fold = ShareConfig(methods=[FoldConfig(group_size=2), ElasticConfig(group_size=16, pooled=True)])
    with pytest.raises(Refused, match="no other depth uses"):
        hf_share.merge_deltas(hf_share.share(zoo.build("llama"), fold))


def test_a_model_that_looks_at_its_weights_type_runs_in_bfloat16(tmp_path):
    """T5 casts what comes to `wo` to the type of its weight, which is made here."""
    model = hf_share.share(zoo.build("t5").to(torch.bfloat16), ElasticConfig(bits=[2, 4]))
    inputs = zoo.inputs(model)
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype="auto")
    assert zoo.logits(loaded, **inputs).dtype == torch.bfloat16
    assert torch.equal(zoo.logits(loaded, **inputs), zoo.logits(model, **inputs))

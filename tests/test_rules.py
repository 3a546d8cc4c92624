# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Law 1 for every registered rule: `weight()` is the definition. And a rule and a method of a third party,
which need nothing but a registration to go all the way.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.machinery
import importlib.metadata
import sys
import types

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
import zoo
from atoms import AtomsConfig, SumOfAtoms

import hf_share
from hf_share import Arrange, ConfigError, Generate, PlanError, Refused, ShareConfig, SharePlan, SiteError
from hf_share.config import METHODS, method
from hf_share.fit import build
from hf_share.modules import Share, SharedLinear, linear_weight
from hf_share.planes import spell
from hf_share.rules import RULES, generator, make_rule, rule
from hf_share.sites import resolve, sites


# every registered rule, with the arguments and the targets of each of its variants
VARIANTS = [
    *(
        ("low_rank", {"r": 3, "scale": 0.5, "share": share, "init": "random"})
        for share in ("", "A", "B", "AB")
    ),
    *(("low_rank", {"r": 4, "rank": 2, "share": share, "init": "random"}) for share in ("", "A", "B", "AB")),
    ("low_rank", {"r": 3, "init": "svd"}),
    *(
        ("shards", {"e": 2, "init": "random", **more})
        for more in (
            {"r": 2, "p": 2},
            {"r": 3, "l": 2, "p": 1, "scale": 0.5},
            {"r": 4, "dissociate": False},
            {"r": 4, "select": False},
        )
    ),
    ("scale", {}),
    ("atoms", {"S": 2}),
    ("atoms", {"S": 3, "init": "random"}),
    ("atoms", {"S": 2, "init": "random", "coef": "mlp"}),
    ("factors", {"r": 3}),
    ("factors", {"r": 3, "init": "random"}),
    *(("nested", {"widths": [2, 3, 4], "group_size": 5, "bits": b}) for b in (2, 3, None)),
    ("nested", {"widths": [2, 4], "planes": 6, "slicing": "matquant", "bits": 2}),
    ("nested", {"widths": [2, 4], "slicing": "copies", "affine": "fp32", "bits": 2}),
    ("by_width", {"widths": [2, 3], "inner": {"rule": "low_rank", "args": {"r": 3}}, "bits": 2}),
    ("by_width", {"widths": [2, 3], "inner": {"rule": "shards", "args": {"e": 2, "r": 3, "l": 2, "p": 1}}}),
    ("gated", {"widths": [2, 3], "inner": {"rule": "low_rank", "args": {"r": 3, "share": "A"}}, "bits": 2}),
    ("gated", {"widths": [2, 3], "inner": {"rule": "pooled", "args": {"r": 2, "group_size": 5}}}),
    ("pooled", {"r": 2, "group_size": 7}),
    ("coded", {"inner": {"rule": "factors", "args": {"r": 3}}, "group_size": 5}),
    ("coded", {"inner": {"rule": "atoms", "args": {"S": 2}}, "bits": 3, "base": "hqq", "affine": "fp32"}),
    ("coded_delta", {"inner": {"rule": "low_rank", "args": {"r": 3, "share": "A"}}, "group_size": 5}),
    ("coded_delta", {"inner": {"rule": "shards", "args": {"e": 2, "r": 3, "l": 2, "p": 1}}, "bits": 2}),
    *(
        ("sparse_delta", {"r": 4, "init": "random", **more})
        for more in ({"rank": 2}, {"share": "A", "scale": 0.5}, {"sparsity": 0.5, "pattern": "2:4"})
    ),
    ("test_atoms", {"atoms": 2}),
    ("test_squash", {}),
]
SITES = {
    "llama linear": ("llama", "layers.{}.self_attn.q_proj"),
    "gpt2 conv1d": ("gpt2", "h.{}.mlp.c_fc"),
    "gpt2 block of a fused weight": ("gpt2", "h.{}.attn.c_attn:v"),
    "neox heads of a fused weight": ("neox", "layers.{}.attention.query_key_value:k"),
}


def _some(rule, name, value, gen):
    if rule.whole(name) is None:
        return 0.1 * torch.randn(value.shape, generator=gen)
    if "plane" in name:
        return torch.randint(256, value.shape, generator=gen)
    kind = {2: "fp16", 4: "fp32"}[value.shape[-1]]
    return spell(0.1 * torch.randn(value.shape[:-1], generator=gen), kind)


def test_every_registered_rule_is_in_the_table():
    limits = {name for name, made in RULES.items() if made.kind == "limit"}  # test_lanes.py has them
    assert {name for name, _ in VARIANTS} == set(RULES) - limits, "add the new rule's variants to VARIANTS"


@pytest.mark.parametrize("where", SITES.values(), ids=SITES)
@pytest.mark.parametrize(
    "name, args", VARIANTS, ids=[f"{n}-{'-'.join(map(str, a.values()))}" for n, a in VARIANTS]
)
def test_forward_is_the_product_with_weight(name, args, where):
    arch, path = where
    model = zoo.build(arch)
    names = tuple(path.format(i) for i in (0, 2))
    if RULES[name].kind == "replace" and ":" in path:
        with pytest.raises(Refused, match="replaces a whole weight"):
            hf_share.share(model, SharePlan((Generate(rule=name, sites=names, group="g", args=args),)))
        return
    hf_share.share(model, SharePlan((Generate(rule=name, sites=names, group="g", args=args),)))
    for site_name in names:
        module = resolve(model.base_model, site_name.partition(":")[0])
        share = module._modules["share"]
        assert isinstance(share, Share)
        binding = share.bindings[0]
        x = torch.randn(2, 5, binding.site.in_features)
        gen = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, value in share.stored(binding).items():
                value.copy_(_some(binding.rule, name, value, gen))
        tensors, part = share.tensors(binding), binding.site.part
        own = linear_weight(module) if binding.rule.kind == "map" else None
        before = torch.zeros(()) if own is None else own if part is None else own[part.rows()]
        if own is not None:
            tensors = {**tensors, "W": before, "y": x @ before.T}
        dense = binding.rule.weight(tensors)
        assert dense.shape == binding.site.shape and (dense - before).abs().max() > 0
        torch.testing.assert_close(binding.rule.apply(x, tensors), x @ dense.T)
        whole = share.weight(own)
        if own is None:
            torch.testing.assert_close(share(x), x @ whole.T)
        else:
            torch.testing.assert_close(module(x), F.linear(x, own + whole, module.bias))
        if part is not None:
            rows = part.rows()
            torch.testing.assert_close(whole[rows], dense - before)
            outside = whole.detach().clone()
            outside[rows] = 0
            assert not outside.any(), "nothing outside the part"
        factors = binding.rule.factors(tensors)
        if factors is not None:
            torch.testing.assert_close(factors[1] @ factors[0], dense)


@pytest.mark.parametrize("share", ["", "A", "AB"])
def test_starting_values_follow_from_seed_and_name_only(share):
    args = {"r": 2, "share": share, "init": "random"}
    names = [f"layers.{i}.mlp.up_proj" for i in range(4)]
    model = zoo.build("llama")

    def values(names, seed, steps_before=()):
        made = copy.deepcopy(model)
        step = Generate(rule="low_rank", sites=tuple(names), group="g", args=args)
        build(made, SharePlan((*steps_before, step)), seed=seed)
        return {n: p.clone() for n, p in made.named_parameters() if "up_proj.share" in n or "_stores.g." in n}

    other = Generate(rule="low_rank", sites=("layers.0.mlp.down_proj",), group="other", args={"r": 2})
    one = values(names, 0)
    assert one and all(one[n].equal(v) for n, v in values(names[::-1], 0, (other,)).items())
    few = values(names[1:3], 0)
    assert few and all(one[n].equal(v) for n, v in few.items())
    assert not any(one[n].equal(v) for n, v in values(names, 1).items())
    state = torch.get_rng_state()
    build(copy.deepcopy(model), SharePlan((other,)), seed=3)
    assert torch.get_rng_state().equal(state), "the global generator is not used where a seed is given"
    torch.manual_seed(0)
    first, second = values(names, None), values(names, None)
    torch.manual_seed(0)
    assert all(v.equal(first[n]) for n, v in values(names, None).items()), "torch's seed gives it otherwise"
    assert not any(v.equal(first[n]) for n, v in second.items() if v.any()), "and moves on"


def test_generators_differ_by_seed_and_every_name():
    draws = {
        torch.rand(1, generator=generator(*key)).item()
        for key in ((0, "a", "b"), (1, "a", "b"), (0, "ab"), (0, "b", "a"), (0, "a", "b", ""), (-1, "a"))
    }
    assert len(draws) == 6


@pytest.mark.parametrize(
    "arch, targets", [("llama", ["q_proj", "up_proj"]), ("gpt2", ["mlp.c_fc"]), ("bert", ["query"])]
)
def test_a_third_partys_rule_goes_all_the_way(arch, targets, tmp_path):
    plain = zoo.build(arch)
    inputs, before = zoo.inputs(plain), zoo.logits(plain)
    model = hf_share.share(copy.deepcopy(plain), AtomsConfig(atoms=4, target_modules=targets))
    kinds = [m for m in model.modules() if isinstance(m, SharedLinear)]
    assert len(kinds) == 4 * len(targets) and all("weight" not in m._parameters for m in kinds)
    torch.testing.assert_close(zoo.logits(model), before)  # four atoms for four layers: exact

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert zoo.logits(loaded).equal(zoo.logits(model))
    assert set(loaded.state_dict()) == set(model.state_dict())

    dense = hf_share.materialize(loaded)
    assert not any(isinstance(m, (SharedLinear, Share)) for m in dense.modules())
    linear = {type(m) for n, m in dense.named_modules() if n.endswith(tuple(targets))}
    assert linear == {type(m) for n, m in plain.named_modules() if n.endswith(tuple(targets))}
    assert set(dense.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(zoo.logits(dense, **inputs), before)
    dense.save_pretrained(tmp_path / "plain")
    assert zoo.logits(type(plain).from_pretrained(tmp_path / "plain").eval()).equal(zoo.logits(dense))


def test_a_third_partys_rule_with_fewer_atoms_trains():
    model = hf_share.share(zoo.build("llama"), AtomsConfig(atoms=2, target_modules=["q_proj"]))
    ids = zoo.inputs(model)["input_ids"]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    new = {n: p for n, p in model.named_parameters() if "shared_stores.atoms" in n or ".share." in n}
    assert len(new) == 1 + 4 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in new.values())


def test_two_replaces_of_one_weight_are_refused():
    sites = ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")
    one = Generate(rule="test_atoms", sites=sites, group="one", args={"atoms": 1})
    two = dataclasses.replace(one, sites=sites[1:], group="two")
    model = zoo.build("llama")
    with pytest.raises(
        PlanError, match="'layers.1.self_attn.q_proj' is replaced by two groups, 'one' and 'two'"
    ):
        hf_share.share(model, SharePlan((one, two)))
    hf_share.share(model, SharePlan((one,)))
    with pytest.raises(PlanError, match="layers.1.self_attn.q_proj"):
        hf_share.share(model, SharePlan((two,)))


def test_a_replace_owns_all_visits_of_a_tied_weight_or_none():
    tie = Arrange(stack="layers", order=(0, 1, 1, 3))
    names = [f"layers.{i}.self_attn.q_proj" for i in range(4)]

    def plan(*depths):
        sites = tuple(names[d] for d in depths)
        return SharePlan((tie, Generate(rule="test_atoms", sites=sites, group="g", args={"atoms": 1})))

    for depths in ((1,), (0, 2)):
        with pytest.raises(PlanError, match="layers.[12].self_attn.q_proj.*all visits or none"):
            hf_share.share(zoo.build("llama"), plan(*depths))
    for depths in ((0, 3), (1, 2)):
        hf_share.share(zoo.build("llama"), plan(*depths))
    shared = hf_share.share(zoo.build("llama"), SharePlan((tie,)))
    with pytest.raises(PlanError, match="all visits or none"):
        hf_share.share(shared, SharePlan(plan(1).generates))


def test_rules_and_methods_are_registered_once():
    with pytest.raises(PlanError, match="two rules are called 'low_rank'"):
        rule(type("Other", (SumOfAtoms,), {"name": "low_rank"}))
    with pytest.raises(PlanError, match="unknown kind of rule 'ad'"):
        rule(type("Other", (SumOfAtoms,), {"name": "other", "kind": "ad"}))
    with pytest.raises(ConfigError, match="two methods are called 'fold'"):
        method(type("Other", (AtomsConfig,), {"name": "fold"}))
    assert method(AtomsConfig) is AtomsConfig and rule(SumOfAtoms) is SumOfAtoms  # again is harmless


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("low_rnk", {}, "unknown rule 'low_rnk'; did you mean 'low_rank'"),
        ("low_rank", {}, "rule 'low_rank' needs r"),
        (
            "low_rank",
            {"r": 2, "shre": "A"},
            "unknown argument of rule 'low_rank' 'shre'; did you mean 'share'",
        ),
        ("low_rank", {"r": 0}, "r is 0"),
        ("low_rank", {"r": True}, "r is True"),
        ("low_rank", {"r": "2"}, "r is '2'"),
        ("low_rank", {"r": 2, "rank": 3}, "rank 3 is more than r = 2"),
        ("low_rank", {"r": 2, "share": "BA"}, "share"),
        ("low_rank", {"r": 2, "init": "gausian"}, "did you mean 'gaussian'"),
        ("low_rank", {"r": 2, "dropout": 1.0}, "dropout is 1.0"),
        ("low_rank", {"r": 2, "scale": "1"}, "scale is '1'"),
        ("low_rank", {"r": 2, "share": ("A",)}, "share"),
        ("low_rank", {"r": 2, "init": ("gaussian",)}, "init"),
    ],
)
def test_a_rules_arguments_are_checked(name, args, message):
    with pytest.raises(PlanError, match=message):
        make_rule(name, args)


def test_a_third_partys_method_is_found_by_its_entry_point(monkeypatch):
    made = types.ModuleType("someones_method")
    source = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from hf_share.config import ShareConfig, method\n\n"
        "@method\n@dataclass\nclass SomeConfig(ShareConfig):\n"
        "    name: ClassVar[str] = 'test_someones'\n    x: int = 1\n"
    )

    class Loader:
        def create_module(self, spec):
            return made

        def exec_module(self, module):
            exec(source, module.__dict__)

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, Loader()) if name == "someones_method" else None

    group = "hf_share.methods"
    entries = [
        importlib.metadata.EntryPoint("test_someones", "someones_method", group),
        importlib.metadata.EntryPoint("test_broken", "no_such_module_here", group),
    ]
    monkeypatch.setattr(hf_share.methods, "entry_points", lambda group: entries)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    with pytest.warns(UserWarning, match="method 'test_broken' of 'no_such_module_here' was not loaded"):
        hf_share.methods.discover()
    try:
        config = ShareConfig(method="test_someones", x=3)
        assert type(config).__name__ == "SomeConfig" and config.x == 3
    finally:
        METHODS.pop("test_someones", None)
        sys.modules.pop("someones_method", None)


def test_sites_of_the_shared_model_are_those_of_the_plain_one():
    plain = zoo.build("llama")
    model = hf_share.share(copy.deepcopy(plain), AtomsConfig(target_modules=["q_proj"]))
    assert [s.name for s in sites(model)] == [s.name for s in sites(plain)]
    with pytest.raises(SiteError, match="did you mean"):
        hf_share.share(model, AtomsConfig(target_modules=["q_prj"]))


def test_auto_classes_know_a_third_partys_checkpoint(tmp_path):
    model = hf_share.share(zoo.build("llama"), AtomsConfig(atoms=4, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert zoo.logits(loaded).equal(zoo.logits(model))


@pytest.mark.parametrize("arch, targets", [("llama", ["q_proj", "up_proj"]), ("gpt2", ["mlp.c_fc"])])
def test_a_rule_that_makes_weights_works_in_an_adapter(arch, targets, tmp_path):
    plain = zoo.build(arch)
    inputs, before = zoo.inputs(plain), zoo.logits(plain)
    config = AtomsConfig(atoms=2, target_modules=targets)
    model = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    out = zoo.logits(model, **inputs)
    shared = zoo.logits(hf_share.share(copy.deepcopy(plain), AtomsConfig(atoms=2, target_modules=targets)))
    torch.testing.assert_close(out, shared)
    assert (out - before).abs().max() > 1e-3, "two atoms for four layers lose something"
    assert model.get_nb_trainable_parameters()[0] > 0
    with model.disable_adapter():
        torch.testing.assert_close(zoo.logits(model, **inputs), before)

    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "adapter").eval()
    assert zoo.logits(loaded, **inputs).equal(out)

    model.merge_adapter()
    torch.testing.assert_close(zoo.logits(model, **inputs), out)
    model.unmerge_adapter()
    assert zoo.logits(model, **inputs).equal(out)
    merged = copy.deepcopy(model).merge_and_unload()
    assert type(merged) is type(plain) and set(merged.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(zoo.logits(merged, **inputs), out)
    torch.testing.assert_close(zoo.logits(copy.deepcopy(model).unload(), **inputs), before)

    small = hf_share.compressed(model)
    torch.testing.assert_close(zoo.logits(small, **inputs), out)
    small.save_pretrained(tmp_path / "small")
    assert zoo.logits(type(plain).from_pretrained(tmp_path / "small").eval()).equal(zoo.logits(small))


def test_two_adapters_that_make_one_weight_are_refused_and_rows_may_differ():
    model = peft.get_peft_model(zoo.build("llama"), AtomsConfig(atoms=2, target_modules=["q_proj"])).eval()
    inputs = zoo.inputs(model.get_base_model())
    model.add_adapter("other", AtomsConfig(atoms=1, target_modules=["q_proj"]))
    one = zoo.logits(model, **inputs)
    model.set_adapter("other")
    two = zoo.logits(model, **inputs)
    with torch.no_grad():
        mixed = model(**inputs, adapter_names=["default", "other"]).logits
    torch.testing.assert_close(mixed[0], one[0])
    torch.testing.assert_close(mixed[1], two[1])
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(Refused, match="'default' and 'other' both make the weight of 'layers.0.self_attn.q_"):
        zoo.logits(model, **inputs)

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Plans as plain data: JSON there and back, equality, two forms, limits, errors with the nearest word."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo

from hf_share import Arrange, Generate, Insert, PlanError, ShareError, ShareLoraConfig, SharePlan, SiteError
from hf_share.attach import attach
from hf_share.plan import MAX_BYTES, VERSION
from hf_share.steps import MAX_VISITS


FOLD = Arrange(stack="layers", order=(0, 1, 1, 4), depth=5, private=("norm",))
SCORED = dataclasses.replace(FOLD, scores=(0.9, 0.1, 0.25, 1e-7, 1.0), scored_by="gate")
ROTATE = Arrange(stack="layers", order=(2, 0, 1, 0), sources=(2, 0, 1, 3), merge="mean")
ENCODER = Arrange(stack="encoder.block", order=(0, 0, 3))
DECODER = Arrange(stack="decoder.block", order=(0, 2, 2))
DROP_ATTENTION = Arrange(stack="layers", order=(0, 1, None, 3), roles=("self_attn",))
LORA = Generate(rule="low_rank", sites=("layers.0.q", "layers.1.q"), group="q", args={"r": 2, "share": "A"})
GATE = Insert(kind="gate", sites=("layers.0",), args={"init": 1.0})

PLANS = {
    "empty": SharePlan(),
    "fold": SharePlan((FOLD,)),
    "scores": SharePlan((SCORED,)),
    "permutation": SharePlan((ROTATE,)),
    "two stacks": SharePlan((ENCODER, DECODER)),
    "sub-layer": SharePlan((DROP_ATTENTION,)),
    "everything": SharePlan((FOLD, LORA, GATE)),
    "nested args": SharePlan(
        (dataclasses.replace(LORA, args={"b": [1, [2, 3]], "a": {"y": None, "x": "s"}}),)
    ),
}
FIRST_VISITS = {
    "fold": [(0, 1, 1, 3)],
    "permutation": [(0, 1, 2, 1)],
    "two stacks": [(0, 0, 2), (0, 1, 1)],
    "sub-layer": [(0, 1, None, 3)],
}


@pytest.mark.parametrize("form", ["source", "checkpoint"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_survives_json_copy_and_pickle(plan, form):
    plan = plan if form == "source" else plan.checkpoint()
    for other in (
        SharePlan.from_json(plan.to_json()),
        SharePlan.from_json(plan.to_json(indent=2)),
        SharePlan.from_dict(plan.to_dict()),
        copy.deepcopy(plan),
        pickle.loads(pickle.dumps(plan)),
        dataclasses.replace(plan),
    ):
        assert other == plan and hash(other) == hash(plan) and repr(other) == repr(plan)
        assert other.to_json() == plan.to_json()
    assert json.loads(plan.to_json())["version"] == VERSION


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_source_of_the_checkpoint_form_is_the_original(plan):
    kept = plan.checkpoint()
    assert kept.form == "checkpoint" and kept.checkpoint() is kept
    assert kept.source() == plan and plan.source() is plan
    assert SharePlan.from_json(kept.to_json()).source() == plan


@pytest.mark.parametrize("name", FIRST_VISITS)
def test_the_checkpoint_form_names_first_visits(name):
    kept = PLANS[name].checkpoint()
    assert [step.order for step in kept.arranges] == FIRST_VISITS[name]
    for step, origin in zip(kept.arranges, PLANS[name].arranges, strict=True):
        assert step.origin == origin and step.depth == len(origin.order)
        assert step.sources is None and step.merge == "first" and step.private == origin.private


def test_plans_are_equal_by_value():
    assert SharePlan([FOLD]) == SharePlan((FOLD,)) != SharePlan((ROTATE,))
    assert Arrange(stack="h", order=[0, 1]) == Arrange(stack="h", order=(0, 1))
    assert dataclasses.replace(LORA, args={"share": "A", "r": 2}) == LORA
    assert SharePlan((FOLD,)) + SharePlan((LORA,)) == SharePlan((FOLD, LORA))
    with pytest.raises(PlanError, match="cannot join"):
        SharePlan((FOLD,)) + SharePlan((LORA,), "checkpoint")


def test_plans_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FOLD.order = (0,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLANS["fold"].form = "checkpoint"
    for change in (
        lambda: LORA.args.update(r=3),
        lambda: LORA.args.__setitem__("r", 3),
        lambda: LORA.args.pop("r"),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    given = {"index": [0, 1]}
    step = dataclasses.replace(LORA, args=given)
    given["index"].append(2)
    step_dict = SharePlan((step,)).to_dict()["steps"][0]
    step_dict["args"]["index"].append(3)
    assert step.args == {"index": (0, 1)}


def test_repr_is_readable():
    moved = Arrange(stack="h", order=(0,), sources=(1,))
    dropped = Arrange(stack="g", order=(0, None), roles=("attn", "mlp"))
    assert repr(SharePlan((FOLD, moved, dropped, LORA, GATE))) == (
        "SharePlan(source form)\n"
        "  Arrange layers: [0 1 1 4] private=norm\n"
        "  Arrange h: [0] of [1]\n"
        "  Arrange g: [0 -] roles=attn,mlp\n"
        "  Generate q: low_rank for 2 sites r=2 share=A\n"
        "  Insert gate at 1 sites init=1.0"
    )
    assert (
        repr(SharePlan((ROTATE,)).checkpoint()) == "SharePlan(checkpoint form)\n  Arrange layers: [0 1 2 1]"
    )
    assert repr(SharePlan((SCORED,))).endswith("[0 1 1 4] private=norm scored_by=gate")
    assert SharePlan((SCORED,)).checkpoint().steps[0].scores is None, "they stand in the origin"
    text = "SharePlan(source form)\n  Arrange layers: [2 0 1 0] of [2 0 1 3] merge=mean"
    assert repr(SharePlan((ROTATE,))) == text


def _plan(**changes) -> dict:
    return {"version": VERSION, "form": "source", "steps": [], **changes}


def _arrange(**changes) -> dict:
    return _plan(steps=[{"step": "arrange", "stack": "layers", "order": [0, 1], **changes}])


def _generate(**changes) -> dict:
    step = {"step": "generate", "rule": "low_rank", "sites": ["a", "b"], "group": "g", **changes}
    return _plan(steps=[step])


BAD = {
    "not an object": ([], "JSON object"),
    "no version": ({"form": "source", "steps": []}, "version None; this hf_share reads version 1"),
    "later version": (_plan(version=2), "version 2; this hf_share reads version 1"),
    "version true": (_plan(version=True), "version True"),
    "unknown key": (_plan(step=[]), "unknown key of the plan 'step'; did you mean 'steps'"),
    "unknown form": (_plan(form="sorce"), "unknown form 'sorce'; did you mean 'source'"),
    "no steps": (_plan(steps=None), "list of steps"),
    "a step that is no object": (_plan(steps=["arrange"]), "step must be a JSON object"),
    "unknown step": (_plan(steps=[{"step": "arange"}]), "unknown step 'arange'; did you mean 'arrange'"),
    "a step of no name": (_plan(steps=[{"step": ["arrange"]}]), "unknown step"),
    "unknown key of a step": (_arrange(ordr=[0]), "key of the arrange step 'ordr'; did you mean 'order'"),
    "missing key": (_plan(steps=[{"step": "arrange", "stack": "h"}]), "arrange step.*order"),
    "empty order": (_arrange(order=[]), "order has 0 depths"),
    "order of text": (_arrange(order="01"), "order must be a list"),
    "no order": (_arrange(order=None), "order must be a list"),
    "negative layer": (_arrange(order=[0, -1]), "-1 is not a whole number"),
    "boolean layer": (_arrange(order=[0, True]), "True is not a whole number"),
    "fractional layer": (_arrange(order=[0, 1.0]), "1.0 is not a whole number"),
    "a hole in whole layers": (_arrange(order=[0, None]), "None is not a whole number"),
    "too many visits": (_arrange(order=[0] * (MAX_VISITS + 1)), f"1 to {MAX_VISITS} fit"),
    "order out of the stack": (_arrange(depth=1), "names layer 1, but the stack has layers 0 to 0"),
    "source out of the stack": (_arrange(depth=2, sources=[0, 2]), "names layer 2"),
    "too few sources": (_arrange(sources=[0]), "1 sources for 2 depths"),
    "stack of no name": (_arrange(stack=""), "'' is not a name"),
    "roles of text": (_arrange(roles="mlp"), "roles must be a list"),
    "no roles": (_arrange(roles=[]), "roles is empty"),
    "private of text": (_arrange(private="norm"), "private must be a list"),
    "unknown merge": (_arrange(merge="men"), "unknown merge 'men'; did you mean 'mean'"),
    "mean of a layer twice": (
        _arrange(order=[0, 1, 1], sources=[0, 0, 1], merge="mean"),
        "takes layer 0 into",
    ),
    "mean elsewhere": (_arrange(order=[0, 0], sources=[1, 2], merge="mean"), "not among"),
    "origin in source form": (
        _arrange(origin={"stack": "layers", "order": [0, 1]}),
        "only a checkpoint form",
    ),
    "origin of an origin": (
        _arrange(origin={"stack": "h", "order": [0], "origin": {"stack": "h", "order": [0]}}),
        "no origin of its own",
    ),
    "origin that disagrees": (
        {**_arrange(depth=2, origin={"stack": "layers", "order": [0, 0]}), "form": "checkpoint"},
        "disagrees with its origin",
    ),
    "origin of text": ({**_arrange(origin="x"), "form": "checkpoint"}, "origin must be one arrange step"),
    "scores of no measure": (_arrange(scores=[0.5, 1.0]), "scores and scored_by.* go together"),
    "a measure without scores": (_arrange(scored_by="bi"), "scores and scored_by.* go together"),
    "a measure of no name": (_arrange(scores=[0.5, 1.0], scored_by=3), "3 is not a name"),
    "scores of text": (_arrange(scores="ab", scored_by="bi"), "scores must be a list"),
    "no scores": (_arrange(scores=[], scored_by="bi"), "0 scores for 1 to"),
    "too few scores": (_arrange(depth=2, scores=[0.5], scored_by="bi"), "1 scores for 2 layers"),
    "too many scores": (_arrange(scores=[0.5] * (MAX_VISITS + 1), scored_by="bi"), "2049 scores for 1 to"),
    "a boolean score": (_arrange(scores=[0.5, True], scored_by="bi"), "scores holds bool True"),
    "a score of text": (_arrange(scores=[0.5, "1"], scored_by="bi"), "scores holds str '1'"),
    "a score beyond all": (_arrange(scores=[0.5, 10**4000], scored_by="bi"), "scores holds int 1000"),
    "an endless score": (_arrange(scores=[0.5, float("inf")], scored_by="bi"), "plain JSON|holds float"),
    "two owners": (
        _plan(steps=[*_arrange()["steps"], *_arrange(roles=["mlp"])["steps"]]),
        r"two arrange steps own roles \('mlp',\) of stack 'layers'",
    ),
    "two owners of a sub-layer": (
        _plan(steps=[*_arrange(roles=["mlp"])["steps"], *_arrange(roles=["mlp.up"])["steps"]]),
        "two arrange steps own",
    ),
    "two owners of a group": (_plan(steps=_generate()["steps"] * 2), "two generate steps own the group 'g'"),
    "arrange after generate": (_plan(steps=[*_generate()["steps"], *_arrange()["steps"]]), "comes before"),
    "no sites": (_generate(sites=[]), "has no sites"),
    "a site twice": (_generate(sites=["a", "a"]), "names a site twice"),
    "sites of text": (_generate(sites="ab"), "sites must be a list"),
    "a site of no name": (_generate(sites=[3]), "3 is not a name"),
    "a long name": (_generate(sites=["a" * 513]), "is not a name"),
    "group with a dot": (_generate(group="a.b"), "must have no dot"),
    "group like a tensor of peft": (_generate(group="hf_share_x"), "not begin with 'hf_share'"),
    "args of a list": (_generate(args=[1]), "args must be a JSON object"),
    "args with nan": (_generate(args={"scale": float("nan")}), "plain JSON values|finite"),
    "args with infinity": (_generate(args={"a": {"b": [float("inf")]}}), "plain JSON values|finite"),
    "insert without sites": (_plan(steps=[{"step": "insert", "kind": "gate", "sites": []}]), "has no sites"),
}  # fmt: skip


@pytest.mark.parametrize("data, message", BAD.values(), ids=BAD)
def test_a_malformed_plan_is_one_clear_error(data, message):
    for read in (SharePlan.from_dict, lambda d: SharePlan.from_json(json.dumps(d))):
        with pytest.raises(PlanError, match=message) as caught:
            read(copy.deepcopy(data))
        assert isinstance(caught.value, ShareError) and isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nonsense",
        '{"version": 1, "steps": [' + "[" * 20000,
        '{"version": 1, "form": "source", "steps": [{"step": "arrange", "stack": "h", "order": ['
        + "9" * 5000
        + "]}]}",
        '{"a":' * 6000 + "1" + "}" * 6000,
        '{"version": 1, "steps": [{"step": "arrange", "stack": "h", "order": [0], "origin": '
        + '{"stack": "h", "order": [0], "origin": ' * 900
        + "1"
        + "}" * 902
        + "]}",
        " " * (MAX_BYTES + 1),
        b"{}",
        None,
        42,
    ],
    ids=range(11),
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError) as caught:
        SharePlan.from_json(text)
    assert len(str(caught.value)) < 600


def test_a_plan_that_cannot_be_plain_json_is_refused_where_it_is_made():
    for value in (torch.zeros(1), {1, 2}, {1: 2}, object(), float("inf"), b"x", 1j):
        with pytest.raises(PlanError, match="generate step 'q': args"):
            dataclasses.replace(LORA, args={"value": value})
    with pytest.raises(PlanError, match="must be Arrange, Generate or Insert"):
        SharePlan(("arrange",))


def test_the_largest_plan():
    sites = tuple(f"layers.{i}.{'x' * 3000}" for i in range(400))
    with pytest.raises(PlanError, match=f"at most {MAX_BYTES} bytes"):
        SharePlan.from_json(json.dumps(_generate(sites=sites)))
    with pytest.raises(PlanError, match=f"at most {MAX_BYTES} bytes"):
        SharePlan.from_dict(_generate(sites=sites))
    assert SharePlan((Arrange(stack="h", order=(0,) * MAX_VISITS),)).to_json()


@pytest.mark.parametrize("share", ["A", "B", "AB"])
def test_a_7b_plan_fits(share):
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=32))
    plan = ShareLoraConfig(r=64, share=share, target_modules="all-linear").resolve(model)
    assert sum(len(step.sites) for step in plan.generates) == 7 * 32
    text = plan.to_json()
    assert len(text) < MAX_BYTES and SharePlan.from_json(text) == plan


def test_attach_refuses_the_wrong_form():
    model = zoo.build("llama")
    source = SharePlan((Arrange(stack="layers", order=(0, 2, 2, 3)),))
    with pytest.raises(SiteError, match="is in source form; a checkpoint's plan names first visits"):
        attach(model, SharePlan(source.steps, "checkpoint"))
    with pytest.raises(SiteError, match="the plan is for 3 layers, this model has 4"):
        attach(model, SharePlan((Arrange(stack="layers", order=(0, 2, 2)),)).checkpoint())
    assert not hasattr(model, "_hf_share")


def test_plan_and_errors_import_the_standard_library_only():
    import hf_share.plan

    folder = Path(hf_share.plan.__file__).parent
    for name in ("errors", "plain", "steps", "plan"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        for node in tree.body:  # inside a function plan.py may reach for attach
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                ours = node.level == 1 and node.module in ("errors", "plain", "steps")
                assert ours or node.module.partition(".")[0] in sys.stdlib_module_names

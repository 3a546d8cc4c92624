# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever does not fit is one clear error at every door, before the model or a file is touched."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import resource
import tracemalloc

import peft
import pytest
import torch
import zoo
from atoms import AtomsConfig
from torch import nn

import hf_share
from hf_share import FoldConfig, ShareConfig, ShareError, ShareLoraConfig, SharePlan


Q = [f"layers.{i}.self_attn.q_proj" for i in range(4)]


def _plan(*steps: dict) -> dict:
    return {"version": 1, "form": "source", "steps": list(steps)}


def _arrange(order: list, **more) -> dict:
    return {"step": "arrange", "stack": "layers", "order": order, **more}


def _generate(sites: list[str], rule: str = "low_rank", group: str = "g", **args) -> dict:
    return {"step": "generate", "rule": rule, "sites": sites, "group": group, "args": args}


ATOMS = {"rule": "test_atoms", "atoms": 1}

# plans that are well formed and that a Llama of four layers has no place for
PLANS = {
    "unknown rule": (_plan(_generate(Q, "low_rnk", r=2)), "unknown rule 'low_rnk'; did you mean 'low_rank'"),
    "unknown argument": (_plan(_generate(Q, rang=2)), "unknown argument of rule 'low_rank' 'rang'"),
    "missing argument": (_plan(_generate(Q)), "rule 'low_rank' needs r"),
    "rank too large": (
        _plan(_generate(Q, r=33)),
        "rank 33 at site 'layers.0.self_attn.q_proj'.*most rank 32",
    ),
    "factor of two sizes": (
        _plan(_generate([Q[0], "layers.0.mlp.down_proj"], r=2, share="A")),
        "'layers.0.mlp.down_proj' cannot share A with 'layers.0.self_attn.q_proj': 48 != 32",
    ),
    "site out of range": (
        _plan(_generate(["layers.4.self_attn.q_proj"], r=2)),
        "unknown site 'layers.4.self_attn.q_proj'; did you mean 'layers.[0-3].self_attn.q_proj'",
    ),
    "site that was removed": (
        _plan(_arrange([0, 1]), _generate([Q[3]], r=2)),
        "unknown site 'layers.3.self_attn.q_proj'",
    ),
    "misspelt site": (
        _plan(_generate(["layers.0.self_attn.q_prj"], r=2)),
        "did you mean 'layers.0.self_attn.q_proj'",
    ),
    "layer missing": (_plan(_arrange([0, 4])), "order names layer 4, this model has layers 0 to 3"),
    "source missing from the model": (_plan(_arrange([0, 1], sources=[0, 9])), "names layer 9"),
    "another depth": (_plan(_arrange([0, 1], depth=32)), "the plan is for 32 layers, this model has 4"),
    "unknown stack": (_plan(_arrange([0], stack="layer")), "unknown stack 'layer'; did you mean 'layers'"),
    "unknown role": (
        _plan(_arrange([0, 1, 1, 3], private=["input_layernorms"])),
        "unknown role.*did you mean 'input_layernorm'",
    ),
    "a sub-layer at too few depths": (_plan(_arrange([0, 1], roles=["mlp"])), "arranged within 4 depths"),
    "for GPT-2, arranged": (_plan(_arrange([0, 1], stack="h")), "unknown stack 'h'"),
    "for GPT-2, generated": (_plan(_generate(["h.0.attn.c_attn:q"], r=2)), "unknown site 'h.0.attn"),
    "part of a weight that has none": (_plan(_generate([f"{Q[0]}:q"], r=2)), "unknown site"),
    "unknown insert": (
        _plan({"step": "insert", "kind": "gate", "sites": ["layers.0"]}),
        "kind of insert 'gate'",
    ),
    "two replaces": (
        _plan(_generate(Q, **ATOMS), _generate(Q[2:3], group="h", **ATOMS)),
        "'layers.2.self_attn.q_proj' is replaced by two groups, 'g' and 'h'",
    ),
    "replace below an add": (
        _plan(_generate(Q, r=2), _generate(Q, group="h", **ATOMS)),
        "group 'h' would replace the weight that group 'g' adds to",
    ),
    "replace of some visits": (
        _plan(_arrange([0, 1, 1, 3]), _generate([Q[1]], **ATOMS)),
        "'layers.2.self_attn.q_proj' has the same weight as 'layers.1.self_attn.q_proj'",
    ),
    "a group's name that is taken": (_plan(_generate(Q, group="guard", r=2)), "already has a group 'guard'"),
    "a petabyte of rank": (_plan(_generate(Q, r=10**15)), "rank 10{15} at site"),
    "a petabyte of atoms": (
        _plan(_generate(Q, rule="test_atoms", atoms=10**12)),
        r"adds 1,028,000,000,000,000 parameters to a model of [\d,]+; that is refused before",
    ),
}  # fmt: skip

# plans that are malformed by themselves; test_plan.py has the long list
MALFORMED = {
    "two arranges": (_plan(_arrange([0, 1, 2, 3]), _arrange([0, 0, 2, 3])), "two arrange steps own roles"),
    "unknown key": (_plan(_arrange([0], rols="all")), "did you mean 'roles'"),
    "later version": ({**_plan(), "version": 2}, "version 2"),
    "wrong form": ({**_plan(_arrange([0, 1])), "form": "checkpoint"}, "source form"),
    "negative layer": (_plan(_arrange([0, -1])), "-1 is not a whole number"),
    "a number beyond all": (_plan(_generate(Q, r=10**4000)), "a whole number of 13288 bits; at most 63 fit"),
}

# method, fields, message: the fields fit each other, and not the model
CONFIGS = {
    "rank too large": ("share_lora", {"r": 49}, "rank 49 at site .*at most rank 32|at most rank 48"),
    "a petabyte of rank": ("share_lora", {"r": 10**15}, "rank 10{15} at site"),
    "no target": ("share_lora", {"target_modules": ["q_prj"]}, "'q_prj' not found.*did you mean 'q_proj'"),
    "one target of two": ("share_lora", {"target_modules": ["q_proj", "v_prj"]}, "'v_prj' not found"),
    "regex without a hit": ("share_lora", {"target_modules": r".*\.q_prj"}, "not found in the base model"),
    "everything excluded": (
        "share_lora",
        {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
        "no site is left|excluded",
    ),
    "layers beyond the model": ("share_lora", {"layers_to_transform": [9]}, "layers_to_transform"),
    "part of a weight that has none": ("share_lora", {"target_modules": ["q_proj:q"]}, "q_proj:q"),
    "nothing shares": (
        "share_lora",
        {"share_modules": ["o_prj"]},
        "share_modules names 'o_prj', which is no target",
    ),
    "removes a missing layer": (
        "fold",
        {"remove": [4]},
        "remove names layer 4; this model has layers 0 to 3",
    ),
    "removes all": ("fold", {"remove": [0, 1, 2, 3]}, "at least one must stay"),
    "groups a missing layer": ("fold", {"groups": [[0, 7]]}, "groups name layer 7"),
    "groups a layer twice": ("fold", {"groups": [[0, 1], [1, 2]]}, "twice"),
    "unknown stack": (
        "fold",
        {"remove": [1], "stack": "layer"},
        "unknown stack 'layer'; did you mean 'layers'",
    ),
    "no calibration": ("fold", {"removal_rate": 0.5}, "needs text: hf_share.share"),
    "several methods": (
        "share",
        {"methods": [{"method": "fold", "remove": [3]}, {"method": "share_lora", "r": 10**6}]},
        "rank 1000000",
    ),
    "adapters before structure": (
        "share",
        {"methods": [{"method": "share_lora"}, {"method": "fold", "remove": [3]}]},
        "structural method first",
    ),
    "a later method on a removed layer": (
        "share",
        {
            "methods": [
                {"method": "fold", "remove": [3]},
                {"method": "share_lora", "layers_to_transform": [3]},
            ]
        },
        "layers_to_transform",
    ),
}

# method, fields, message: wrong by themselves
FIELDS = {
    "unknown method": ("share_lor", {}, "unknown method 'share_lor'; did you mean 'share_lora'"),
    "method of no name": (["fold"], {}, "unknown method"),
    "broken regex": ("share_lora", {"target_modules": r"*["}, "target_modules is '.*which is no regex"),
    "no rank": ("share_lora", {"r": 0}, "r is 0"),
    "rank of text": ("share_lora", {"r": "8"}, "r is '8'"),
    "rank of half": ("share_lora", {"r": 1.5}, "r is 1.5"),
    "no such share": ("share_lora", {"share": "C"}, "unknown share 'C'"),
    "share of a list": ("share_lora", {"share": ["A"]}, "unknown share"),
    "no such start": ("share_lora", {"init_weights": "gausian"}, "did you mean 'gaussian'"),
    "start of a list": ("share_lora", {"init_weights": []}, "unknown init_weights"),
    "alpha of text": ("share_lora", {"lora_alpha": "x"}, "lora_alpha is 'x'"),
    "alpha of nothing": ("share_lora", {"lora_alpha": None}, "lora_alpha is None"),
    "alpha not finite": ("share_lora", {"lora_alpha": math.nan}, "lora_alpha is nan"),
    "dropout of all": ("share_lora", {"lora_dropout": 1}, "lora_dropout is 1"),
    "dropout of text": ("share_lora", {"lora_dropout": "0"}, "lora_dropout is '0'"),
    "shares a text": ("share_lora", {"share_modules": "q_proj"}, "share_modules is 'q_proj'; a list fits"),
    "targets a number": ("share_lora", {"target_modules": 3}, "target_modules is 3; a list fits"),
    "targets numbers": ("share_lora", {"target_modules": [3]}, "target_modules holds 3"),
    "layers of text": ("share_lora", {"layers_to_transform": "1"}, "layers_to_transform is '1'"),
    "saves a text": ("share_lora", {"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
    "rate above one": ("fold", {"removal_rate": 1.0}, "removal_rate is 1.0"),
    "rate of nan": ("fold", {"removal_rate": math.nan}, "removal_rate is nan"),
    "rate of text": ("fold", {"removal_rate": "half"}, "removal_rate is 'half'"),
    "group of none": ("fold", {"group_size": 0}, "group_size is 0"),
    "no such parent": ("fold", {"parent": "last"}, "unknown parent 'last'"),
    "no such importance": ("fold", {"importance": "by"}, "unknown importance 'by'; known: 'bi'"),
    "rate and list": ("fold", {"removal_rate": 0.5, "remove": [1]}, "not both"),
    "groups and size": ("fold", {"groups": [[0, 1]], "group_size": 2}, "leave out group_size"),
    "groups and list": ("fold", {"groups": [[0, 1]], "remove": [2]}, "leave out group_size"),
    "groups of numbers": ("fold", {"groups": [0, 1]}, "groups"),
    "an empty group": ("fold", {"groups": [[0], []]}, "groups"),
    "removes text": ("fold", {"remove": "12"}, "remove is '12'; a list fits"),
    "removes a number": ("fold", {"remove": 3}, "remove is 3; a list fits"),
    "removes true": ("fold", {"remove": [True]}, "remove holds True"),
    "nothing at all": ("share", {}, "needs a plan or methods"),
    "no methods": ("share", {"methods": []}, "needs a plan or methods"),
    "methods of text": ("share", {"methods": ["fold"]}, "methods takes configs"),
    "an unknown method among them": ("share", {"methods": [{"method": "fld"}]}, "did you mean 'fold'"),
    "an unknown key among them": (
        "share",
        {"methods": [{"method": "fold", "r": 1}]},
        "FoldConfig got an unexpected keyword argument 'r'",
    ),
    "plan of text": ("share", {"plan": "layers"}, "JSON object"),
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with a good adapter of four layers, whose config the tests tamper with."""
    folder = tmp_path_factory.mktemp("adapter")
    config = ShareLoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(zoo.build("llama"), config).save_pretrained(folder)
    return folder


@pytest.fixture
def tampered(adapter, tmp_path):
    """A function that writes a copy of the good adapter with another config, and returns its folder."""

    def write(config: dict) -> str:
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "HF_SHARE", **config}))
        return str(tmp_path)

    return write


@contextlib.contextmanager
def left_alone(model: nn.Module, message: str, folder=None):
    """The body raises one `ShareError` that says `message`; model and folder are as they were."""
    before, files = _state(model), _files(folder)
    with pytest.raises(ShareError, match=message) as caught:
        yield
    assert isinstance(caught.value, ValueError) and type(caught.value) is not ShareError
    assert len(str(caught.value)) < 1500
    assert _files(folder) == files
    after = _state(model)
    assert after.keys() == before.keys()
    for key in before:
        assert after[key] == before[key], key
    if not model.lm_head.weight.is_meta:
        assert zoo.logits(model).equal(LOGITS)


def _state(model: nn.Module) -> dict:
    return {
        "keys": list(model.state_dict()),
        "tensors": [
            (n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters(remove_duplicate=False)
        ],
        "classes": [(n, type(m), m.training, sorted(m.__dict__)) for n, m in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "saving": [len(model._state_dict_hooks), len(model._load_state_dict_pre_hooks)],
        "config": model.config.to_dict(),
        "random": torch.get_rng_state().tolist(),
    }


def _files(folder) -> dict:
    return {} if folder is None else {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


MODEL = zoo.build("llama")
LOGITS = zoo.logits(MODEL)


@pytest.mark.parametrize("data, message", PLANS.values(), ids=PLANS)
def test_a_plan_that_does_not_fit(data, message, tampered, tmp_path):
    plan = SharePlan.from_json(json.dumps(data))
    before = copy.deepcopy(data)
    with left_alone(MODEL, message):
        plan.validate(MODEL)
    with left_alone(MODEL, message):
        hf_share.share(MODEL, plan)
    with left_alone(MODEL, message):
        hf_share.share(MODEL, ShareConfig(plan=data))
    with left_alone(MODEL, message):
        peft.get_peft_model(MODEL, ShareConfig(plan=data))
    folder = tampered({"method": "share", "plan": data})
    with left_alone(MODEL, message, tmp_path):
        peft.PeftModel.from_pretrained(MODEL, folder)
    assert data == before


@pytest.mark.parametrize("data, message", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_plan(data, message, tampered, tmp_path):
    if data["form"] == "source":
        with left_alone(MODEL, message):
            SharePlan.from_json(json.dumps(data))
    with left_alone(MODEL, message):
        hf_share.share(MODEL, ShareConfig(plan=data))
    folder = tampered({"method": "share", "plan": data})
    for read in (peft.PeftConfig.from_pretrained, lambda path: peft.PeftModel.from_pretrained(MODEL, path)):
        with left_alone(MODEL, message, tmp_path):
            read(folder)


@pytest.mark.parametrize("method, fields, message", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit(method, fields, message, tampered, tmp_path):
    config = ShareConfig(method=method, **fields)
    with left_alone(MODEL, message):
        hf_share.share(MODEL, config)
    with left_alone(MODEL, message):
        peft.get_peft_model(MODEL, config)
    folder = tampered({"method": method, **fields})
    with left_alone(MODEL, message, tmp_path):
        peft.PeftModel.from_pretrained(MODEL, folder)


@pytest.mark.parametrize(
    "method, fields, message",
    [
        ("share_lora", {"rank": 2}, "ShareLoraConfig got an unexpected keyword argument 'rank'"),
        ("fold", {"lora_alpha": 2}, "FoldConfig got an unexpected keyword argument 'lora_alpha'"),
    ],
)
def test_a_keyword_that_does_not_exist(method, fields, message):
    with left_alone(MODEL, message):
        ShareConfig(method=method, **fields)


@pytest.mark.parametrize("method, fields, message", FIELDS.values(), ids=FIELDS)
def test_a_config_that_is_wrong_by_itself(method, fields, message, tampered, tmp_path):
    with left_alone(MODEL, message):
        ShareConfig(method=method, **fields)
    folder = tampered({"method": method, **fields})
    for read in (peft.PeftConfig.from_pretrained, lambda path: peft.PeftModel.from_pretrained(MODEL, path)):
        with left_alone(MODEL, message, tmp_path):
            read(folder)


def test_a_second_adapter_that_does_not_fit():
    model = peft.get_peft_model(copy.deepcopy(MODEL), ShareLoraConfig(r=2, init_weights=False))
    keys, out = list(model.state_dict()), zoo.logits(model)
    for method, fields, message in (
        *CONFIGS.values(),
        ("share", {"plan": PLANS["rank too large"][0]}, "rank 33"),
    ):
        with pytest.raises(ShareError, match=message):
            model.add_adapter("second", ShareConfig(method=method, **fields))
        assert list(model.state_dict()) == keys and list(model.peft_config) == ["default"]
        assert zoo.logits(model).equal(out)


@pytest.mark.parametrize(
    "field, value", [("r", 3), ("share", "B"), ("lora_alpha", 99), ("target_modules", ["v_proj"])]
)
def test_fields_that_disagree_with_the_stored_plan(field, value, adapter, tampered, tmp_path):
    saved = json.loads((adapter / "adapter_config.json").read_text())
    folder = tampered({**saved, field: value})
    with left_alone(MODEL, "the config and its plan disagree", tmp_path):
        peft.PeftModel.from_pretrained(MODEL, folder)
    with left_alone(MODEL, "the config and its plan disagree"):
        hf_share.share(MODEL, peft.PeftConfig.from_pretrained(folder))


def test_an_adapter_of_another_model(adapter):
    for other in (zoo.build("llama", num_hidden_layers=3), zoo.build("gpt2")):
        keys, config = list(other.state_dict()), other.config.to_dict()
        with pytest.raises(ShareError, match="disagree|not found|unknown site"):
            peft.PeftModel.from_pretrained(other, adapter)
        assert list(other.state_dict()) == keys and other.config.to_dict() == config


@pytest.mark.parametrize(
    "calibration, message", [([], "calibration is empty"), (["some text"], "holds texts")]
)
def test_calibration_that_cannot_be_used(calibration, message):
    with left_alone(MODEL, message):
        hf_share.share(MODEL, FoldConfig(removal_rate=0.5), calibration=calibration)


def test_a_model_with_adapters_is_not_shared_again():
    model = peft.get_peft_model(copy.deepcopy(MODEL), ShareLoraConfig(r=2))
    keys = list(model.state_dict())
    with pytest.raises(ShareError, match="carries adapters"):
        hf_share.share(model, FoldConfig(remove=[1]))
    with pytest.raises(ShareError, match="must be a ShareConfig or a SharePlan, not LoraConfig"):
        hf_share.share(copy.deepcopy(MODEL), peft.LoraConfig(r=2))
    assert list(model.state_dict()) == keys


def test_sharing_twice_what_is_shared_once():
    model = hf_share.share(copy.deepcopy(MODEL), FoldConfig(group_size=2))
    out, ties = zoo.logits(model), dict(model._hf_share.ties)
    with pytest.raises(ShareError, match="two arrange steps own"):
        hf_share.share(model, FoldConfig(remove=[1]))
    assert (
        zoo.logits(model).equal(out) and model._hf_share.ties == ties and model.config.num_hidden_layers == 4
    )


@pytest.mark.parametrize("name", ["a petabyte of rank", "a petabyte of atoms", "a number beyond all"])
@pytest.mark.parametrize("door", ["validate", "share", "get_peft_model"])
def test_a_petabyte_is_refused_from_its_numbers(name, door):
    data, message = {**PLANS, **MALFORMED}[name]
    doors = {
        "validate": lambda: SharePlan.from_dict(data).validate(MODEL),
        "share": lambda: hf_share.share(MODEL, SharePlan.from_dict(data)),
        "get_peft_model": lambda: peft.get_peft_model(MODEL, ShareConfig(plan=data)),
    }
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(ShareError, match=message):
            doors[door]()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**23
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 2**15  # KiB


def test_a_third_partys_rule_asks_too_much():
    with left_alone(MODEL, "that is refused before anything is allocated"):
        hf_share.share(MODEL, AtomsConfig(atoms=10**9, target_modules=["q_proj"]))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One peft type, many configs: every way a config is made gives the right class and the user's words back."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import peft
import pytest
import zoo

import hf_share
from hf_share import Arrange, ConfigError, FoldConfig, ShareConfig, ShareError, ShareLoraConfig, SharePlan
from hf_share.config import METHODS


LORA = {"r": 3, "lora_alpha": 6, "share": "B", "target_modules": ["q_proj", "v_proj"]}
FOLD = {"remove": [3], "group_size": 2, "parent": "mean"}
PLAN = SharePlan((Arrange(stack="layers", order=(0, 1, 1, 3)),))

CONFIGS = {
    "share_lora": lambda: ShareLoraConfig(**LORA, share_modules=("q_proj",), modules_to_save=["lm_head"]),
    "fold": lambda: FoldConfig(**FOLD),
    "fold groups": lambda: FoldConfig(groups=((0, 1), (2,), (3,)), share_norms=True, stack="layers"),
    "plan": lambda: ShareConfig(plan=PLAN),
    "methods": lambda: ShareConfig(methods=[FoldConfig(**FOLD), ShareLoraConfig(**LORA)]),
    "regex": lambda: ShareLoraConfig(target_modules=r".*\.q_proj", exclude_modules={"b", "a"}),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    return request.param()


def test_json_names_the_method_and_holds_no_sets(config, tmp_path):
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["method"] == type(config).name and saved["peft_type"] == "HF_SHARE"
    assert saved == json.loads(json.dumps(config.to_dict())), "to_dict is plain JSON"
    assert saved.get("exclude_modules") in (None, ["a", "b"])


def test_every_door_gives_the_same_class_and_values(config, tmp_path):
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    doors = {
        "peft": peft.PeftConfig.from_pretrained(tmp_path),
        "general": ShareConfig.from_pretrained(tmp_path),
        "own class": type(config).from_pretrained(tmp_path),
        "get_peft_config": peft.get_peft_config(dict(saved)),
        "json": ShareConfig(**{k: v for k, v in saved.items() if k != "peft_type"}),
        "deepcopy": copy.deepcopy(config),
        "copy": copy.copy(config),
        "pickle": pickle.loads(pickle.dumps(config)),
        "replace": dataclasses.replace(config),
    }
    for door, other in doors.items():
        assert type(other) is type(config), door
        assert other.to_dict() == config.to_dict(), door
        assert other == config, door
        assert other._plan == config._plan, door


def test_replace_changes_one_field():
    config = ShareLoraConfig(**LORA)
    assert dataclasses.replace(config, r=5).r == 5 and config.r == 3
    with pytest.raises(ConfigError, match="r is 0"):
        dataclasses.replace(config, r=0)
    with pytest.raises((TypeError, ConfigError)):
        dataclasses.replace(config, rank=5)


def test_method_picks_the_class():
    assert type(ShareConfig(method="fold", **FOLD)) is FoldConfig
    assert type(ShareConfig(method="share_lora", r=2)) is ShareLoraConfig
    assert type(FoldConfig(method="fold", **FOLD)) is FoldConfig
    with pytest.raises(ConfigError, match="unknown method 'share_lor'; did you mean 'share_lora'"):
        ShareConfig(method="share_lor", r=2)
    with pytest.raises(ConfigError, match="method 'fold' is a FoldConfig, not a ShareLoraConfig"):
        ShareLoraConfig(method="fold")
    assert {"share", "fold", "share_lora"} <= set(METHODS)


@pytest.mark.parametrize("key, nearest", [("lora_alpa", "lora_alpha"), ("ranks", "known|did you mean")])
def test_an_unknown_key_names_the_nearest(key, nearest, tmp_path):
    with pytest.raises(ConfigError, match=f"ShareLoraConfig got an unexpected.*'{key}'.*({nearest})"):
        ShareLoraConfig(**{key: 3})
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        ShareLoraConfig(**{key: 3})


@pytest.mark.parametrize("door", [peft.PeftConfig, ShareConfig, ShareLoraConfig])
def test_a_newer_key_in_a_file_warns_and_the_plan_stays_strict(door, tmp_path):
    config = ShareLoraConfig(**LORA)
    saved = json.loads(json.dumps(config.to_dict()))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "newer": 3}))
    message = r"^Unexpected keyword arguments \['newer'\] for class ShareLoraConfig, these are ignored"
    with pytest.warns(UserWarning, match=message):
        assert door.from_pretrained(tmp_path) == config
    plan = config.resolve(zoo.build("llama")).to_dict()
    plan["steps"][0]["newer"] = 3
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "plan": plan}))
    with pytest.raises(ShareError, match="newer"):
        door.from_pretrained(tmp_path)


@pytest.mark.parametrize("verb", ["share", "get_peft_model"])
@pytest.mark.parametrize("kind", ["share_lora", "fold", "methods"])
def test_the_users_config_is_not_changed(kind, verb):
    config = CONFIGS[kind]()
    config.modules_to_save = None
    before = copy.deepcopy(config)
    changed = hf_share.share if verb == "share" else peft.get_peft_model
    first = changed(zoo.build("llama"), config)
    assert config == before
    second = changed(zoo.build("llama", num_hidden_layers=6), config)  # the same object fits another model
    assert config == before
    if verb == "get_peft_model":
        assert first.peft_config["default"] is config, "as in peft"
        assert second.peft_config["default"]._plan != config._plan


def test_a_refused_config_is_left_as_it_was():
    config = ShareLoraConfig(r=400, target_modules=["q_proj"])
    before = copy.deepcopy(config)
    with pytest.raises(ShareError, match="rank 400"):
        peft.get_peft_model(zoo.build("llama"), config)
    assert vars(config) == vars(before)


def test_methods_are_saved_as_dicts_with_their_method(tmp_path):
    model = peft.get_peft_model(zoo.build("llama"), CONFIGS["methods"]())
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert [m["method"] for m in saved["methods"]] == ["fold", "share_lora"]
    assert all("peft_type" not in m and "plan" not in m for m in saved["methods"])
    assert saved["methods"][0]["remove"] == [3] and saved["methods"][1]["r"] == 3
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    assert [type(m) for m in loaded.methods] == [FoldConfig, ShareLoraConfig]
    assert loaded.methods == CONFIGS["methods"]().methods
    with pytest.raises(ConfigError, match="methods takes configs"):
        ShareConfig(methods=["fold"])


def test_the_plan_is_stored_beside_the_fields_and_wins(tmp_path):
    base = zoo.build("llama")
    model = peft.get_peft_model(copy.deepcopy(base), ShareLoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    plan = ShareLoraConfig(**LORA).resolve(base)
    assert loaded._plan == plan and loaded.resolve(base) == plan
    assert (loaded.r, loaded.share, sorted(loaded.target_modules)) == (3, "B", ["q_proj", "v_proj"])
    assert loaded.bound(plan) is loaded
    disagreeing = dataclasses.replace(loaded, r=4)
    with pytest.raises(ConfigError, match="the config and its plan disagree"):
        disagreeing.resolve(base)


def test_a_plan_alone_is_a_config():
    config = ShareConfig(plan=PLAN.to_dict())
    assert config.resolve(zoo.build("llama")) == PLAN and config == ShareConfig(plan=PLAN)
    with pytest.raises(ConfigError, match="plan in source form"):
        ShareConfig(plan=PLAN.checkpoint())
    with pytest.raises(ConfigError, match="needs a plan or methods"):
        ShareConfig()
    with pytest.raises(ShareError, match="JSON object"):
        ShareConfig(plan="layers")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One size of an elastic model by itself: the tensors of its active choices and no others.

`extract` takes them out of a model in memory. `subnet_config` lets `from_pretrained` load them alone from the
file of the whole model:

    config = hf_share.subnet_config(path, "3.0-bits")
    model = AutoModelForCausalLM.from_pretrained(path, config=config)

Tensors keep their names, so both give the same model, which has no choice of bits any more. Of the planes of
a code, those that are needed are read; where lanes are left out, the first part of a tensor.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from .cut import cut_rules, cuts, require_prefixes
from .elastic import bindings, choose, narrowed
from .errors import ConfigError, unknown
from .guards import require_whole
from .lanes import Lanes
from .modules import Share, Store
from .offers import offers_of_plan
from .plan import SharePlan
from .registry import find, remember, subnets
from .rules import with_choices
from .ties import attached, change_plan, rebind


# of AutoConfig.from_pretrained: it takes every other name for a key of the config, known or not
LOADING = (
    "cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision", "subfolder",
    "token", "trust_remote_code",
)  # fmt: skip


def extract(model: nn.Module, **settings: Any) -> nn.Module:
    """Set choices as `choose` does, and leave in the model, in place, only what they need.

    Example:
        >>> small = hf_share.extract(copy.deepcopy(model), bits=3)  # doctest: +SKIP
        >>> small.save_pretrained(folder)  # doctest: +SKIP

    Raises:
        ConfigError: if the model has no choice of bits or lanes, or not this one.
        Refused: if lanes feed from a fused weight, or a rule's tensors cannot be cut short.
    """
    record = attached(model)
    if record is None or hasattr(model, "peft_config"):
        raise ConfigError("extract takes an elastic model that hf_share.share made, without adapters on it")
    require_whole(model)
    choose(model, **settings)
    plan = narrowed(record.plan)
    if plan == record.plan:
        raise ConfigError("this model has no choice of bits or lanes, so there is nothing to leave out")
    cut_rules(model, plan, record.plan)
    rebind(model, record.ties)  # each visit was cut by itself
    for binding in bindings(model):
        if isinstance(binding.rule, Lanes):
            binding.rule = replace(binding.rule, cut=True)
    kept = {step.group: step.args["kept"] for step in plan.generates if "kept" in step.args}
    for binding in bindings(model):
        if binding.group in kept:
            rule: Any = binding.rule
            binding.rule = replace(rule, bits=rule.width, kept=kept[binding.group])
            binding.forget()
    for share in [m for m in model.modules() if isinstance(m, Share)]:
        _leave_out(share)
    change_plan(model, plan)
    remember(model, ())
    return model


def _leave_out(share: Share) -> None:
    for binding in share.bindings:
        needed = binding.rule.private(binding.site)
        for tensor in [t for t in binding.names if t not in needed]:
            delattr(share, binding.names.pop(tensor))
        store = binding.store
        if isinstance(store, Store):
            needed = binding.rule.shared([binding.site])
            for name in [n for n in store() if n not in needed]:
                delattr(store, name)


def subnet_config(
    model: str | os.PathLike | PretrainedConfig, name: str | None = None, *, budget: str | None = None,
    **settings: Any,
) -> PretrainedConfig:  # fmt: skip
    """The config with which `from_pretrained` loads one subnet of an elastic checkpoint, and keeps no more of
    its tensors than that needs. Planes of bits that it does not need are not read; of a tensor with fewer
    lanes the first part is, as the file is mapped into memory. On its way to another device it goes whole.

    Args:
        model: path or Hub id of the elastic checkpoint.
        name: a name in its `subnets.json`.
        budget: in place of a name, the best one within "3.0 bits" or "1200000 bytes".
        settings: in place of a name, choices as `choose` takes them, for the whole model or site by site;
            what is not said stays as the checkpoint has it. The widths of `bits`, and the lanes of `ffn` and
            `kv_groups` that are not chosen, are left out; the other choices (`rank`, `depth`, `loops`) are
            active in the model that is loaded, and still its own. Also `revision`, `token` and what else
            `AutoConfig.from_pretrained` takes to find a file.

    Raises:
        ConfigError: if there is no such subnet, or the checkpoint does not offer such a choice.
        Refused: if lanes feed from a fused weight, or a rule's tensors cannot be cut short.
    """
    kwargs = {key: settings.pop(key) for key in LOADING if key in settings}
    config = copy.deepcopy(model) if isinstance(model, PretrainedConfig) else None
    config = AutoConfig.from_pretrained(model, **kwargs) if config is None else config
    outer: Any = getattr(config, "quantization_config", None)
    values = outer.to_dict() if hasattr(outer, "to_dict") else outer
    if not isinstance(values, dict) or not values.get("plan"):
        raise ConfigError(f"{model} is no shared checkpoint")
    plan = SharePlan.from_dict(values["plan"])
    offered = offers_of_plan(plan)
    for key in settings:
        if key not in offered.everywhere:
            raise unknown("choice", key, (*offered.everywhere, *LOADING), ConfigError)
    if sum((name is not None, budget is not None, bool(settings))) != 1:
        raise ConfigError(f"give one of name, budget and choices ({', '.join(offered.everywhere)})")
    if not settings:
        where: Any = config.name_or_path if isinstance(model, PretrainedConfig) else model
        settings = dict(find(subnets(where, **kwargs), name, budget)["choices"])
    small = narrowed(with_choices(plan, offered.read(settings)))
    require_prefixes(small, cuts(small, plan))
    config.quantization_config = {**values, "plan": small.to_dict()}
    return config

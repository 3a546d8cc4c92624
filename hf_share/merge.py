# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Pooled deltas merged into the offsets of nested weights, for every width at once; the codes stay.

A pooled delta is one number for each output and group of inputs, and so is an offset:

    W_b + delta W_b = s_b (q >> (n - b)) + (z_b + g_b scale B A + scale B_b A_b)

Offsets are kept in fp32 from then on; rounded to fp16, or to whole numbers, they would lose what was merged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .bywidth import Pooled
from .errors import ConfigError, Refused
from .modules import Share
from .nested import Nested
from .plan import SharePlan
from .planes import read, spell
from .registry import forget
from .rules import step_rule
from .sites import STORES, backbone
from .steps import Generate
from .ties import attached, change_plan


@torch.no_grad()
def merge_deltas(model: nn.Module) -> nn.Module:
    """Merge every pooled delta into the offsets beside it, in place; the model then has codes only.

    Raises:
        ConfigError: if the model has no codes with pooled deltas.
        Refused: for deltas that are no constants of the groups, or of a code that several depths use.
    """
    record = attached(model)
    steps = [] if record is None else [s for s in record.plan.generates if _merges(s)]
    if record is None or not steps:
        raise ConfigError("this model has no pooled deltas; ElasticConfig(pooled=True) makes one that has")
    groups = {step.group for step in steps}
    shares = [m for m in backbone(model).modules() if isinstance(m, Share)]
    found = [s for s in shares if groups & {b.group for b in s.bindings}]
    for share in found:
        _check(share, groups)
    for share in found:
        _merge(share, groups)
    for group in groups & set(getattr(backbone(model), STORES, {})):
        del getattr(backbone(model), STORES)[group]
    kept = (_in_fp32(step) for step in record.plan.steps if step not in steps)
    change_plan(model, SharePlan(tuple(kept), record.plan.form))
    forget(model)
    return model


def _merges(step: Generate) -> bool:
    return _pooled(step_rule(step)) is not None


def _pooled(rule: Any) -> Pooled | None:
    """The pooled delta of a rule: what it is around, or the rule itself where all widths have the same."""
    made = getattr(rule, "made", rule)
    return made if isinstance(made, Pooled) else None


def _in_fp32(step: Any) -> Any:
    nested = isinstance(step, Generate) and step.rule == Nested.name
    return replace(step, args={**step.args, "affine": "fp32"}) if nested else step


def _check(share: Share, groups: set[str]) -> None:
    code = share.bindings[0]
    rule, name = code.rule, code.site.name
    if not isinstance(rule, Nested) or not code.names:
        raise Refused(f"site {name!r}: only a code of its own takes deltas in, one that no other depth uses")
    if rule.slicing == "matquant":
        raise Refused(f"site {name!r}: slicing 'matquant' has one offset for all widths")
    for binding in share.bindings[1:]:
        made = _pooled(binding.rule)
        if binding.group in groups and made and made.group_size != rule.group_size:
            pools = f"{made.group_size} inputs, offsets over {rule.group_size}"
            raise Refused(f"site {name!r}: deltas are pooled over {pools}")


def _merge(share: Share, groups: set[str]) -> None:
    code = share.bindings[0]
    rule: Any = code.rule
    first = torch.arange(0, code.site.in_features, rule.group_size)  # a column of each group
    stored = share.stored(code)
    deltas = [b for b in share.bindings if b.group in groups]
    for b in rule.widths if rule.kept is None else (rule.width,):
        offset = read(stored[f"offset_{b}"])
        for binding in deltas:
            at: Any = replace(binding.rule, bits=b) if "bits" in binding.rule.choices() else binding.rule
            tables = {name: table.to(offset.device) for name, table in binding.constants.items()}
            whole = at.weight(at.form({**share.stored(binding), **tables}))
            offset = offset + whole[:, first.to(whole.device)].float()
        for stem, value in (("scale", read(stored[f"scale_{b}"])), ("offset", offset)):
            setattr(share, code.names[f"{stem}_{b}"], spell(value, "fp32"))
    for binding in deltas:
        for attribute in binding.names.values():
            delattr(share, attribute)
    share.bindings = [b for b in share.bindings if b not in deltas]
    code.rule = replace(rule, affine="fp32")
    code.forget()

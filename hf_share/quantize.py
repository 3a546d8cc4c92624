# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Few bits for all that a model stores: its own linear weights, and what rules make weights of.

bitsandbytes and torchao quantise linear layers, so the atoms, factors and deltas of a shared model stay as
they are under them. Here both become codes (`nested.py`, `coded.py`), in the model's own plan and file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attach import TURNS, bind, check
from .coded import codes_of
from .codes import BY_WEIGHT
from .errors import ConfigError, Refused
from .fit import Whole, capture, fit
from .guards import require_whole
from .hub.record import record_plan
from .methods.elastic import ElasticConfig
from .modules import Share, SharedLinear
from .plan import SharePlan
from .rules import Rule, step_rule
from .settle import settle
from .sites import backbone, prefix
from .steps import Generate, Step
from .swap import Stored, swap_rules
from .targets import ALL_LINEAR, select
from .ties import attached, change_plan
from .untouched import untouched_on_error


@torch.no_grad()
def quantize(
    model: nn.Module,
    bits: int = 4,
    *,
    group_size: int = 64,
    base: str | None = None,
    affine: str = "fp16",
    target_modules: list[str] | str = ALL_LINEAR,
    calibration: Any = None,
) -> nn.Module:
    """Keep the linear weights of a model, dense or shared, and what its rules store, in codes of few bits.
    Changes the model in place and returns it.

    Share and heal first: codes are not trained, though adapters beside them are. Embeddings, norms and the
    head stay as they are, as do vectors that a rule stores. Weights that share a tensor keep one code.

    Args:
        bits: of a code, from 1 to 8.
        group_size: neighbours that have one scale and one offset, 2 numbers of `affine` ("fp16" or "fp32").
        base: how codes are found: "minmax" (clipped ranges, least squares), "hqq", or "gptq" (errors weighed
            by the inputs on calibration text), which is of the model's own weights; what rules store takes
            "minmax" then. If None, "gptq" where there is calibration text and "minmax" where there is none.
        target_modules: own linear weights that are coded, as in peft.
        calibration: texts, or batches of tokens (`hf_share.tokenize`).

    Raises:
        Refused: if the model carries adapters, is quantised already, or has a choice of bits.
        ConfigError: if nothing is left to code, or a number does not fit.

    Example:
        >>> hf_share.quantize(model, bits=4).save_pretrained("small-4bit")  # doctest: +SKIP
    """
    if hasattr(model, "peft_config"):
        raise Refused("this model carries adapters; quantize what hf_share.compressed(model) returns")
    require_whole(model)
    base = base or ("minmax" if calibration is None else "gptq")
    codes = ElasticConfig(
        bits=[bits], group_size=group_size, base=base, affine=affine, r_private=0, r_shared=0,
        target_modules=target_modules,
    )  # fmt: skip
    ours = base if base in BY_WEIGHT else "minmax"
    coder = _Coder(bits=bits, group_size=group_size, base=ours, affine=affine)
    made = [p for p, module in backbone(model).named_modules() if isinstance(module, SharedLinear)]
    own = [site for site in select(model, codes) if site.module not in made]
    rules = [rule for rule in _rules(model) if coder.takes(rule)]
    if not own and not rules:
        raise ConfigError("this model has no linear weight that is not in codes already")
    settle(model)
    if own:
        codes.exclude_modules = [prefix(model) + module for module in made]
        with untouched_on_error(model):
            _make(model, codes.resolve(model, calibration), calibration)
    if rules:
        swap_rules(model, coder)
    record_plan(model)
    return model


def _rules(model: nn.Module) -> list[Rule]:
    """The rules of a model, none of which may have a choice of bits."""
    record = attached(model)
    rules = [step_rule(step) for step in record.plan.generates] if record else []
    if any(len(rule.choices().get("bits", ())) > 1 for rule in rules):
        raise Refused(
            "this model is elastic, and its weights are in codes already; hf_share.extract(model, bits=...) "
            "leaves one width of them"
        )
    return rules


def _make(model: nn.Module, plan: SharePlan, calibration: Any) -> None:
    """Build steps that make weights, below those of the model's rules that add to the same weights."""
    record = attached(model)
    before = SharePlan() if record is None else record.plan
    if record is not None:
        record.plan = SharePlan(tuple(s for s in before.steps if _turn(s) < TURNS.index("map")), before.form)
    try:
        check(model, plan)
    finally:
        if record is not None:
            record.plan = before
    whole = Whole(model, plan, calibration)
    for step in plan.steps:
        source = capture(model, step)
        bind(model, SharePlan((step,), "checkpoint"))
        fit(model, step, source, whole)
    for share in model.modules():
        if isinstance(share, Share):
            share.bindings.sort(key=lambda binding: TURNS.index(binding.rule.kind))
    record = attached(model)
    assert record is not None, "it has steps now"
    change_plan(model, SharePlan(tuple(sorted(record.plan.steps, key=_turn)), record.plan.form))


def _turn(step: Step) -> int:
    return TURNS.index(step_rule(step).kind) if isinstance(step, Generate) else -1


class _Coder:
    """What `swap_rules` asks for each rule at each site. A tensor that sites share is coded once."""

    def __init__(self, **settings: Any):
        self.settings = settings
        self.done: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}

    def takes(self, made: Rule) -> bool:
        return codes_of(made, **self.settings) is not None

    def __call__(self, made: Rule, stored: Stored) -> tuple[Rule, dict[str, Tensor]] | None:
        rule = codes_of(made, **self.settings)
        if rule is None:
            return None
        out: dict[str, Tensor] = {}
        for name, value in stored.items():
            if id(value) not in self.done:
                self.done[id(value)] = (value, rule.coded({name: value.detach()}))
            out |= self.done[id(value)][1]
        return rule, out

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Once for all: one model whose weights may have 2, 3 or 4 bits, whose feed-forward blocks, attentions and
depth may be smaller, and adapters that know which.

A weight is one nested code (`nested.py`): its b top bits and a scale and an offset of their own make the
b-bit weight. Beside it, for each weight, lie low-rank deltas that recover what the bits lost (`bywidth.py`):
`r_private` for each width, and `r_shared` for all widths behind a learned gate for each,

    W_b x + B_b A_b x + g_b B A x

Both may be adapters of another method, which then share across layers: `private=ShareLoraConfig(r=2,
share="A")`, `shared=MosConfig(...)`. `ranks` adds elastic ranks (neural low-rank search, LoNAS / Shears):
one delta whose first k ranks work by themselves. With `sparse` that delta leaves the zeros of pruned weights
alone (SparsePEFT, `sparse_delta.py`), and `sparsity` prunes them first.

`ffn`, `kv_groups` and `depth` are sizes of the structure: the share of neurons and the number of key-value
groups that work in each sub-layer (`hf_share/lanes.py`), and the number of layers. Neurons and groups are
sorted once, the most important first, and layers are ranked, so that every size is the first part of a
larger one: by `order`, which is what they carry on calibration text ("activation"; layers by block
influence), the norm of their weights ("l2"; the last layers go first), or as they stand ("none").

| preset      | is                                                                                       |
| ----------- | ---------------------------------------------------------------------------------------- |
| "hf_share"  | one code, own lines, gated shared and private deltas                                     |
| "llm-qfa"   | LLM-QFA (arXiv 2405.20202): a code each width, GPTQ, pooled deltas private to a width     |
| "matquant"  | MatQuant (arXiv 2502.06786): an 8-bit code for 2, 4 and 8 bits, rounded, one line         |
| "nls"       | weights as they are, and a delta of rank 32, 24 or 16                                    |
| "matformer" | MatFormer (arXiv 2310.07707): 1, 1/2, 1/4 or 1/8 of the neurons                          |
| "sorted"    | Sorted LLaMA (arXiv 2309.08968): the first half of the layers, or more of them           |

A weight that stands at several depths keeps one code. `choose(model, bits=3)` sets the width,
`choose(model, bits={site: 2, ...})` site by site.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ..adapter import AdapterConfig, group_names
from ..bywidth import ByWidth, Gated, Pooled
from ..config import ShareConfig, method
from ..errors import ConfigError, unknown
from ..lanes import ORDERS
from ..low_rank import LowRank
from ..masks import MASKS, require_share
from ..nested import BASES, Nested
from ..plan import SharePlan
from ..rebuild import rebuild
from ..rules import Rule
from ..sites import Site, backbone, resolve, stacks
from ..sparse_delta import SparseDelta
from ..steps import Generate
from ..structure import depth_step, ffn_steps, head_steps
from ..targets import ALL_LINEAR, select
from ..visits import first_visit


HALVES = "half or more"  # of the layers: how many there are is known with the model
PRESETS: dict[str, dict[str, Any]] = {
    "hf_share": {"bits": [2, 3, 4], "r_private": 2, "r_shared": 6},
    "llm-qfa": {"bits": [2, 3, 4], "slicing": "copies", "base": "gptq", "r_private": 4, "pooled": True},
    "matquant": {"bits": [2, 4, 8], "slicing": "matquant"},
    "nls": {"bits": [], "ranks": [32, 24, 16]},
    "matformer": {"bits": [], "ffn": [0.125, 0.25, 0.5, 1.0]},
    "sorted": {"bits": [], "depth": HALVES, "order": "none"},
}
CHOICES = ("bits", "ranks", "ffn", "kv_groups", "depth")
FILLED: dict[str, Any] = {
    "bits": [], "slicing": "own", "base": "minmax", "r_private": 0, "r_shared": 0, "pooled": False,
    "ranks": None, "ffn": None, "kv_groups": None, "depth": None, "order": None,
}  # fmt: skip


@method
@dataclass
class ElasticConfig(ShareConfig):
    """Config of an elastic model, for `hf_share.share`. What is left out is as its `preset` has it.

    Args:
        preset: see above.
        bits: the widths; an empty list keeps the weights as they are.
        master_bits: bits of the code that is stored; the widest width if None.
        group_size: weights that have one scale and one offset for each width.
        base: how codes are found: "minmax", "gptq" (needs calibration) or "hqq".
        slicing: "own", "matquant" or "copies" (`hf_share/nested.py`).
        lambdas: what an error counts at each width of `bits` when codes are chosen.
        affine: "fp16" or "fp32", of scales and offsets.
        r_private, r_shared: ranks of the deltas for each width and for all.
        gated: what is for all widths lies behind a gate for each; False adds it as it is.
        pooled: deltas meet sums over groups of inputs (QA-LoRA), so that they merge into the offsets exactly.
        private, shared: an adapter's config in place of `r_private`, `r_shared`.
        ranks: ranks of one more delta, of which the first k work by themselves.
        ffn: shares of the neurons of feed-forward blocks, each to the nearest `multiple_of`; the whole is
            always offered, too.
        kv_groups: numbers of key-value groups of attentions, each with its queries.
        depth: numbers of layers.
        order: what neurons, groups and layers are sorted by, see above; if None, "activation" where
            calibration text is given and "l2" where none is.
        multiple_of: numbers of neurons are multiples of it.
        sparse: that delta is masked by the zeros of the weights, which stay zeros when it is merged; None is
            True with `sparsity`.
        sparsity: share of each output row's weights to prune before; for `hf_share.share`. An adapter leaves
            its base as it is: use `hf_share.prune` on that.
        pattern: "2:4" keeps 2 of every 4 neighbours.
        mask: which weights are pruned, "magnitude" or "wanda" (needs calibration); by default as there is
            calibration text or none.
        lora_alpha: deltas are multiplied by `lora_alpha / r`; twice the rank if None.
        lora_dropout: dropout on the input of deltas while training.
        target_modules: every linear weight but the head if None.

    Example:
        >>> config = ElasticConfig(bits=[2, 3, 4], group_size=64)
        >>> config.settings["r_shared"]
        6
    """

    name: ClassVar[str] = "elastic"
    has_targets: ClassVar[bool] = True
    trains_rules: ClassVar[bool] = True

    preset: str = "hf_share"
    bits: list[int] | None = None
    master_bits: int | None = None
    group_size: int = 64
    base: str | None = None
    slicing: str | None = None
    lambdas: list[float] | None = None
    affine: str = "fp16"
    r_private: int | None = None
    r_shared: int | None = None
    gated: bool = True
    pooled: bool | None = None
    private: Any = None
    shared: Any = None
    ranks: list[int] | None = None
    ffn: list[float] | None = None
    kv_groups: list[int] | None = None
    depth: list[int] | None = None
    order: str | None = None
    multiple_of: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    sparse: bool | None = None
    sparsity: float = 0.0
    pattern: str | None = None
    mask: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS, ConfigError)
        self._take_list("bits", int)
        for name in ("ranks", "kv_groups", "depth"):
            self._take_list(name, int)
        self._take_list("ffn", (int, float))
        self.require_count("multiple_of")
        self._take_list("lambdas", (int, float))
        if self.target_modules is None:
            self.target_modules = ALL_LINEAR
        for name in ("private", "shared"):
            value = getattr(self, name)
            made = ShareConfig(**value) if isinstance(value, dict) else value
            if made is not None and not isinstance(made, AdapterConfig):
                raise ConfigError(f"{name} takes an adapter's config, such as ShareLoraConfig(...)")
            setattr(self, name, made)
        if not isinstance(self.gated, bool):
            raise ConfigError(f"gated is {self.gated!r:.80}; True or False fits")
        s = self.settings
        for name in ("r_private", "r_shared"):
            if isinstance(s[name], bool) or not isinstance(s[name], int) or s[name] < 0:
                raise ConfigError(f"{name} is {s[name]!r}; a whole number of at least 0 fits")
        if s["base"] not in BASES:
            raise unknown("base", s["base"], BASES, ConfigError)
        if s["order"] not in (None, *ORDERS):
            raise unknown("order", s["order"], ORDERS, ConfigError)
        if not any(s[name] for name in CHOICES):
            known = ", ".join(CHOICES)
            raise ConfigError(f"an elastic model has one of {known} to choose from; give one of them")
        for name in ("ffn", "kv_groups", "depth"):
            if isinstance(s[name], list) and (not s[name] or min(s[name]) <= 0):
                raise ConfigError(f"{name} is {s[name]}; sizes above 0 fit")
        if not s["bits"] and (self.private or self.shared or self.r_private or self.r_shared):
            raise ConfigError("deltas by width need bits; `ranks` are of weights as they are, too")
        if s["pooled"] and (self.private or self.shared):
            raise ConfigError("pooled is of r_private and r_shared; private and shared bring their own form")
        self._check_sparsity(s)

    def _check_sparsity(self, s: dict[str, Any]) -> None:
        require_share(self.sparsity, self.pattern, ConfigError)
        if self.mask is not None and self.mask not in MASKS:
            raise unknown("mask", self.mask, MASKS, ConfigError)
        if self.sparse is not None and not isinstance(self.sparse, bool):
            raise ConfigError(f"sparse is {self.sparse!r:.80}; True or False fits")
        if self.mask is not None and not self.sparsity:
            raise ConfigError(f"mask {self.mask!r} says how to prune, and there is no sparsity to reach")
        if self.sparsity and self.sparse is False:
            raise ConfigError(
                "sparsity prunes for deltas that keep the zeros, and those of sparse=False do not; call "
                f"hf_share.prune(model, {self.sparsity:g}) yourself for them"
            )
        if (self.sparse or self.sparsity) and (s["bits"] or not s["ranks"]):
            raise ConfigError(
                "sparse is of `ranks` on weights as they are, bits=[], ranks=[16, 24, 32]; a code of few "
                "bits keeps no exact zero"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What the preset and the fields say together."""
        asked = {name: getattr(self, name) for name in FILLED}
        given = {name: value for name, value in asked.items() if value is not None}
        return {**FILLED, **PRESETS[self.preset], **given}

    @property
    def needs_calibration(self) -> bool:
        s = self.settings
        codes, sorts = bool(s["bits"]) and s["base"] == "gptq", self._sorts and s["order"] == "activation"
        return codes or sorts or self.mask == "wanda"

    @property
    def uses_calibration(self) -> bool:
        measures = self._sorts and self.settings["order"] is None or self.sparsity and self.mask is None
        return self.needs_calibration or bool(measures)

    @property
    def assumes(self) -> tuple[str, ...]:
        return ()  # what is measured orders and rounds what is stored, all of which is

    @property
    def _sorts(self) -> bool:
        return any(self.settings[name] for name in ("ffn", "kv_groups", "depth"))

    def _lambdas(self) -> tuple[float, ...] | None:
        """In the order of rising widths, as the rule has them."""
        bits = self.settings["bits"]
        if self.lambdas is None:
            return None
        if len(self.lambdas) != len(bits):
            return tuple(self.lambdas)  # which the rule refuses
        return tuple(x for _, x in sorted(zip(bits, self.lambdas, strict=True)))

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        base = backbone(model)

        def weight(site: Site) -> int:
            return id(getattr(resolve(base, site.module), "weight", site))

        return self._layers(model, calibration) + self._plan_of(model, weight, calibration)

    def _layers(self, model: nn.Module, calibration: Any) -> SharePlan:
        """The step that makes depth a choice."""
        numbers = self.settings["depth"]
        if not numbers:
            return SharePlan()
        if numbers == HALVES:
            most = max(stack.depth for stack in stacks(model).values())
            numbers = list(range(-(-most // 2), most + 1))
        return SharePlan((depth_step(model, numbers, self._order(calibration), calibration),))

    def _order(self, calibration: Any) -> str:
        if self._outlined:
            return "none"
        return self.settings["order"] or ("l2" if calibration is None else "activation")

    def steps_after(self, model: nn.Module, before: SharePlan, calibration: Any = None) -> SharePlan:
        shaped = rebuild(model, before.arranges) if before.arranges else None
        if shaped is None:
            return super().steps_after(model, before, calibration)
        if self.settings["depth"]:
            raise ConfigError(
                "depth is a choice of layers that each stand at one depth; of a model that another method "
                "has arranged, its loops are the choice"
            )
        return self._plan_of(shaped, lambda site: first_visit(site, before.arranges), calibration)

    def _plan_of(
        self, model: nn.Module, weight: Callable[[Site], Hashable], calibration: Any = None
    ) -> SharePlan:
        """The plan for `model`, in which sites have one weight if `weight` says the same of them."""
        s, order = self.settings, self._order(calibration)
        lanes = ffn_steps(model, s["ffn"], self.multiple_of, order) if s["ffn"] else []
        lanes += head_steps(model, s["kv_groups"], order) if s["kv_groups"] else []
        plan = SharePlan(tuple(lanes))
        if not s["bits"] and not s["ranks"]:
            return plan
        targets = select(model, self)
        plan += SharePlan(tuple(self._codes(model, targets, weight)) if s["bits"] else ())
        for stem, around, r, config in (
            ("private", ByWidth, s["r_private"], self.private),
            ("shared", Gated if self.gated else None, s["r_shared"], self.shared),
        ):
            plan += SharePlan(tuple(self._deltas(model, targets, stem, around, r, config)))
        if s["ranks"]:
            r = max(s["ranks"])
            delta = self._elastic_delta(r, tuple(sorted(s["ranks"])), calibration is not None)
            plan += SharePlan((delta.step(targets, *group_names(model, "elastic", [targets[:1]])),))
        return plan

    def _codes(
        self, model: nn.Module, targets: Sequence[Site], weight: Callable[[Site], Hashable]
    ) -> list[Generate]:
        """A step for the weights that stand at one depth, and one for each that stands at several."""
        s = self.settings
        visits: dict[Hashable, list[Site]] = {}
        for site in targets:
            visits.setdefault(weight(site), []).append(site)
        code = Nested(
            widths=tuple(sorted(s["bits"])), planes=self.master_bits, group_size=self.group_size,
            slicing=s["slicing"], base=s["base"], affine=self.affine,
            lambdas=self._lambdas(),
        )  # fmt: skip
        alone = [sites[0] for sites in visits.values() if len(sites) == 1]
        several = [sites for sites in visits.values() if len(sites) > 1]
        types = [alone[:1], *several] if alone else several
        names = group_names(model, "codes", types)
        found = [(alone, code)] if alone else []
        found += [(sites, replace(code, tied=True)) for sites in several]
        return [rule.step(sites, name) for (sites, rule), name in zip(found, names, strict=True)]

    def _deltas(
        self, model: nn.Module, targets: Sequence[Site], stem: str, around: type[Rule] | None, r: int,
        config: Any,
    ) -> list[Generate]:  # fmt: skip
        widths = tuple(sorted(self.settings["bits"]))
        if not widths:
            return []
        if config is not None:
            config = copy.copy(config)
            config.target_modules = config.target_modules or self.target_modules
            inner = config.steps(model).steps
        elif r:
            pooled = self.settings["pooled"]
            size = {"group_size": self.group_size} if pooled else {}
            delta = (Pooled if pooled else LowRank)(r=r, **size, **self._common(r))
            inner = (delta.step(targets, *group_names(model, stem, [list(targets[:1])])),)
        else:
            return []
        return [_around(around, step, widths, stem) for step in inner]

    def _elastic_delta(self, r: int, ranks: tuple[int, ...], text: bool) -> LowRank:
        common = {"r": r, "ranks": ranks, **self._common(r)}
        if self.sparsity:
            mask = self.mask or ("wanda" if text else "magnitude")
            return SparseDelta(**common, sparsity=self.sparsity, pattern=self.pattern, mask=mask)
        return (SparseDelta if self.sparse else LowRank)(**common)

    def _common(self, r: int) -> dict[str, Any]:
        alpha = 2.0 * r if self.lora_alpha is None else self.lora_alpha
        return {"scale": alpha / r, "dropout": self.lora_dropout}


def _around(around: type[Rule] | None, step: Generate, widths: tuple[int, ...], stem: str) -> Generate:
    group = step.group if step.group.startswith(stem) else f"{stem}_{step.group}"
    if around is None:
        return replace(step, group=group)
    rule = around(widths=widths, inner={"rule": step.rule, "args": step.args})  # type: ignore[call-arg]
    return Generate(rule=rule.name, sites=step.sites, group=group, args=rule.args())

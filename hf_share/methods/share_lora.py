# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""ShareLoRA: low-rank adapters that share a factor across layers (Song et al., arXiv 2406.10785).

For a linear of type t (`q_proj`, ...) at depth l, with weight W (out, in), rank r and scale s = alpha / r:

    y = W x + s B A dropout(x)          A (r, in), B (out, r)

    share="A"   ShareA:  A is one per type, B is the layer's own      (the default)
    share="B"   ShareB:  B is one per type, A is the layer's own
    share="AB"  ShareAB: both are one per type, so every layer of a type gets the same delta

`share_modules=("q_proj", "k_proj", "v_proj")` shares only there and leaves ordinary LoRA elsewhere. Shared
factors are trained; their gradient is the sum over layers. Trained parameters: sum over t of r in_t (1 or L)
+ r out_t (1 or L).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..config import ShareConfig, method
from ..errors import ConfigError, SiteError, nearest, unknown
from ..plan import SharePlan
from ..sites import Site, store_groups
from ..steps import Generate
from ..targets import select


SHARES = ("A", "B", "AB")
INITS = {True: "kaiming", "gaussian": "gaussian", False: "random"}


@method
@dataclass
class ShareLoraConfig(ShareConfig):
    """Config of ShareLoRA, for `get_peft_model` or `hf_share.share`.

    Args:
        r: rank of every factor.
        lora_alpha: the delta is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
        lora_dropout: dropout on the adapter's input while training.
        share: which factors are one per module type: `"A"`, `"B"` or `"AB"`.
        share_modules: types that share, by the end of their path; all targets if None.
        target_modules: as in peft: a list of endings, a regex, or `"all-linear"`; also `"c_attn:q"` for a
            part of a fused weight. None takes what peft's LoRA targets on this architecture.
        init_weights: True is Kaiming-uniform A and zero B; `"gaussian"` is A ~ N(0, 1/r) and zero B; False
            makes both random, so that the adapter changes the output at once (for tests).

    Example:
        >>> config = ShareLoraConfig(r=8, lora_alpha=16, share="A", target_modules="all-linear")
        >>> config.method
        'share_lora'
    """

    name: ClassVar[str] = "share_lora"
    has_targets: ClassVar[bool] = True

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    share: str = "A"
    share_modules: list[str] | None = None
    use_rslora: bool = False
    init_weights: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ConfigError(f"r is {self.r!r}; a whole number of at least 1 fits")
        if self.share not in SHARES:
            raise unknown("share", self.share, SHARES, ConfigError)
        if not isinstance(self.init_weights, (bool, str)) or self.init_weights not in INITS:
            raise unknown("init_weights", self.init_weights, map(str, INITS), ConfigError)
        if not _is_number(self.lora_alpha) or not math.isfinite(self.lora_alpha):
            raise ConfigError(f"lora_alpha is {self.lora_alpha!r}; a finite number fits")
        if not _is_number(self.lora_dropout) or not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(f"lora_dropout is {self.lora_dropout!r}; 0 <= lora_dropout < 1 fits")
        self._take_list("share_modules", str)

    @property
    def scale(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def steps(self, model: nn.Module, calibration: object = None) -> SharePlan:
        groups: dict[tuple, list[Site]] = {}
        for site in select(model, self):
            groups.setdefault((site.stack, site.role, site.shape), []).append(site)
        self._require_share_modules(groups)
        taken = store_groups(model)
        return SharePlan(
            tuple(self._step(sites, self._shared(role), taken) for (_, role, _), sites in groups.items())
        )

    def _step(self, sites: list[Site], share: str, taken: set[str]) -> Generate:
        args = {
            "r": self.r,
            "scale": self.scale,
            "share": share,
            "dropout": self.lora_dropout,
            "init": INITS[self.init_weights],
        }
        defaults = {"share": "", "dropout": 0.0, "init": "kaiming"}
        group = _group_name(sites[0], taken)
        taken.add(group)
        return Generate(
            rule="low_rank",
            sites=tuple(s.name for s in sites),
            group=group,
            args={k: v for k, v in args.items() if defaults.get(k) != v},
        )

    def _shared(self, role: str) -> str:
        everywhere = self.share_modules is None
        return self.share if everywhere or any(_ends(role, m) for m in self.share_modules or ()) else ""

    def _require_share_modules(self, groups: dict[tuple, list[Site]]) -> None:
        roles = [role for _, role, _ in groups]
        for module in self.share_modules or ():
            if not any(_ends(role, module) for role in roles):
                raise SiteError(
                    f"share_modules names {module!r}, which is no target"
                    + nearest(module, {r.rpartition(".")[2] for r in roles})
                )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ends(role: str, name: str) -> bool:
    return role == name or role.endswith(f".{name}")


def _group_name(site: Site, taken: set[str]) -> str:
    path = f"{site.stack}.{site.role}" if site.stack else site.role or site.module
    stem = "lora_" + path.replace(".", "_").replace(":", "_")
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{stem}_{n}"
    return name

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What all adapter configs have in common: peft LoRA's numbers, and the grouping of targets by type."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .config import ShareConfig
from .errors import ConfigError, SiteError, nearest, unknown
from .sites import Site, store_groups
from .targets import select


INITS = {True: "kaiming", "gaussian": "gaussian", False: "random"}


@dataclass
class AdapterConfig(ShareConfig):
    """Base of the configs that add low-rank deltas to the weights `target_modules` names.

    Args:
        r: rank of the delta.
        lora_alpha: the delta is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
        lora_dropout: dropout on the adapter's input while training.
        target_modules: as in peft: a list of endings, a regex, or `"all-linear"`; also `"c_attn:q"` for a
            part of a fused weight. None takes what peft's LoRA targets on this architecture.
        init_weights: True is Kaiming-uniform A and zero B; `"gaussian"` is A ~ N(0, 1/r) and zero B; False
            makes both random, so that the adapter changes the output at once (for tests).
    """

    has_targets: ClassVar[bool] = True

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    init_weights: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        self.require_count("r")
        if not isinstance(self.init_weights, (bool, str)) or self.init_weights not in INITS:
            raise unknown("init_weights", self.init_weights, map(str, INITS), ConfigError)
        if not _is_number(self.lora_alpha) or not math.isfinite(self.lora_alpha):
            raise ConfigError(f"lora_alpha is {self.lora_alpha!r}; a finite number fits")
        if not _is_number(self.lora_dropout) or not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(f"lora_dropout is {self.lora_dropout!r}; 0 <= lora_dropout < 1 fits")

    @property
    def scale(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def types(self, model: nn.Module) -> list[list[Site]]:
        """The targets of `model`, by stack, role and shape: the layers a group may share over."""
        groups: dict[tuple, list[Site]] = {}
        for site in select(model, self):
            groups.setdefault((site.stack, site.role, site.shape), []).append(site)
        return list(groups.values())


def group_names(model: nn.Module, stem: str, types: list[list[Site]]) -> list[str]:
    """A name for the store of each type, new to the model: `lora_layers_self_attn_q_proj`."""
    taken, names = store_groups(model), []
    for sites in types:
        site = sites[0]
        path = f"{site.stack}.{site.role}" if site.stack else site.role or site.module
        base = f"{stem}_" + path.replace(".", "_").replace(":", "_")
        name, n = base, 1
        while name in taken:
            n += 1
            name = f"{base}_{n}"
        taken.add(name)
        names.append(name)
    return names


def ends(role: str, name: str) -> bool:
    """Whether `name` is the end of the path `role`, by whole parts: `q_proj` of `self_attn.q_proj`."""
    return role == name or role.endswith(f".{name}")


def require_ends(names: Iterable[str], roles: Iterable[str], what: str) -> None:
    """Raise `SiteError` for the first of `names` that is the end of none of `roles`."""
    roles = set(roles)
    for name in names:
        if not any(ends(role, name) for role in roles):
            raise SiteError(f"{what}{name!r}, which is no target" + nearest(name, _leaves(roles)))


def _leaves(roles: Iterable[str]) -> set[str]:
    return {role.rpartition(".")[2] for role in roles}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

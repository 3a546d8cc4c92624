# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Which sites a config means: `target_modules`, `exclude_modules`, `layers_to_transform`, as peft users know
them.

A list holds endings of paths (`"q_proj"`), a string is a regex over the whole path, `"all-linear"` is every
linear weight but the head. One form is ours: `"c_attn:q"` is a part of a fused weight. A pattern that hits
nothing is an error.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from .errors import SiteError, nearest
from .sites import Site, backbone, prefix, sites, unwrap


ALL_LINEAR = "all-linear"
ADDABLE = ("linear", "conv1d")  # kinds of sites that a rule can add to


def default_targets(model: nn.Module) -> list[str] | str:
    """What peft's LoRA targets on this architecture, or all linear weights where peft has no entry."""
    config = getattr(model, "config", None)
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, ALL_LINEAR)
    return known if isinstance(known, str) else list(known)


def select(model: nn.Module, config: Any) -> list[Site]:
    """The sites of `model` that `config` targets, in the order of the modules.

    Raises:
        SiteError: if a pattern hits no site (the nearest name is given), or hits a weight no rule can make.
    """
    targets = config.target_modules if config.target_modules is not None else default_targets(model)
    saved = _saved_modules(model)
    every = [s for s in sites(model, parts=True) if s.name not in saved]
    if targets == ALL_LINEAR:
        head = _head(model)
        wanted = [s for s in every if s.part is None and s.kind in ADDABLE and s.module != head]
        wanted = [s for s in wanted if _in_layers(config, s)]
        found = [s for s in wanted if _passes(config, prefix(model) + s.module, None)]
    else:
        found = [s for s in every if _hit(model, config, s, targets)]
        _require_hits(model, targets, every, found)
    if not found:
        raise SiteError(
            f"Target modules {targets!r} not found in the base model: no site is left after exclude_modules="
            f"{config.exclude_modules!r} and layers_to_transform={config.layers_to_transform!r}"
        )
    return found


class _Pattern:
    """What peft's matcher reads of a config, with the targets of one site."""

    def __init__(self, config: Any, targets: Any):
        self.target_modules = targets
        self.exclude_modules = config.exclude_modules
        self.layers_to_transform = config.layers_to_transform
        self.layers_pattern = getattr(config, "layers_pattern", None)
        self.peft_type = config.peft_type


def _hit(model: nn.Module, config: Any, site: Site, targets: Any) -> bool:
    path = prefix(model) + site.module
    if isinstance(targets, str):
        right = (":" in targets) == (site.part is not None) and _in_layers(config, site)
        return right and _passes_string(config, path, site, targets)
    part = site.part.name if site.part else None
    own = [t.partition(":")[0] for t in targets if (t.partition(":")[2] or None) == part]
    return bool(own) and _passes(config, path, own)


def _in_layers(config: Any, site: Site) -> bool:
    """peft's matcher looks at `layers_to_transform` where targets are a list; it counts for a string, too."""
    layers = config.layers_to_transform
    wanted = [layers] if isinstance(layers, int) else layers
    return not wanted and layers != 0 or site.depth in wanted


def _passes_string(config: Any, path: str, site: Site, pattern: str) -> bool:
    head, _, part = pattern.rpartition(":") if site.part else (pattern, "", "")
    return (not site.part or part == site.part.name) and _passes(config, path, head)


def _passes(config: Any, path: str, targets: Any) -> bool:
    # a bare truth test of the match object: peft returns an _ExcludedModule, which is falsy
    return bool(check_target_module_exists(_Pattern(config, targets if targets is not None else ".*"), path))


def _require_hits(model: nn.Module, targets: Any, every: list[Site], found: list[Site]) -> None:
    if isinstance(targets, str):
        if not found:
            raise SiteError(
                f"Target modules {targets!r} not found in the base model{nearest(targets, _leaves(every))}"
            )
        return
    for target in targets:
        path, _, part = target.partition(":")
        hits = [
            s
            for s in every
            if (s.part.name if s.part else "") == part
            and (prefix(model) + s.module == path or f".{prefix(model)}{s.module}".endswith(f".{path}"))
        ]
        if not hits and not _exists(model, path):
            raise SiteError(
                f"Target modules {target!r} not found in the base model{nearest(target, _leaves(every))}"
            )
        if not hits:
            raise SiteError(
                f"target {target!r} is not a weight hf_share can make; linear and Conv1D weights of the "
                f"backbone fit{nearest(target, _leaves(every))}"
            )
        if all(s.kind == "expert" for s in hits):
            raise SiteError(
                f"target {target!r} holds expert tensors (three-dimensional), which adapters cannot make "
                "yet; leave it out"
            )
        if all(s.kind == "read" for s in hits):
            raise SiteError(
                f"target {target!r}: {hits[0].name!r} is read by its layer without being called, so an "
                "adapter would have no effect; leave it out"
            )


def _exists(model: nn.Module, path: str) -> bool:
    return any(name == path or name.endswith(f".{path}") for name, _ in model.named_modules())


def _leaves(every: list[Site]) -> set[str]:
    return {s.name.rpartition(".")[2] for s in every}


def _head(model: nn.Module) -> str | None:
    """Path of the output embedding, if it lies inside the backbone (T5, custom models)."""
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return next(
        (n for n, m in backbone(model).named_modules() if unwrap(m) is head and head is not None), None
    )


def _saved_modules(model: nn.Module) -> set[str]:
    return {n for n, m in backbone(model).named_modules() if isinstance(m, ModulesToSaveWrapper)}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Who is asked: the config classes under test, and how each says what peft's tests say to LoRA.

A later method that promises peft's interface adds one row to `KNOWN`. A name with a colon (`module:Class`) is
a class from elsewhere with our keywords.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from peft import LoraConfig


# The keywords of LoRA that every candidate understands in the same sense.
SHARED_KEYWORDS = frozenset(
    {
        "exclude_modules",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "r",
        "target_modules",
        "task_type",
    }
)

# What an adapter on linear maps does not treat, by the names of peft's tests. (`conv1d` on these models is
# the Conv1D of transformers, a linear map with a transposed weight.)
BEYOND_LINEAR = ("conv2d", "emb", "mha")

# The small models of peft's tests whose targets are linear, and the rank to use where LoRA's default exceeds
# both sides of the weight: LoRA takes that, our configs refuse it.
LINEAR_MODELS: dict[str, dict[str, int]] = {"MLP": {}, "EmbConv1D": {"r": 4}}


class Untranslatable(Exception):
    """A row of peft's tests that only LoRA has words for."""


@dataclass(frozen=True)
class Candidate:
    """`config(**{init: False})` is an adapter that changes the outputs from the start."""

    name: str
    config: type
    init: str = "init_weights"

    def keywords(self, lora: Mapping[str, Any]) -> dict[str, Any]:
        """What `LoraConfig(**lora)` says, in the words of this candidate."""
        said = {}
        for key, value in lora.items():
            if key == "init_lora_weights" and isinstance(value, bool):
                said[self.init] = value
            elif key in SHARED_KEYWORDS:
                said[key] = value
            elif (key, value) != ("bias", "none"):
                raise Untranslatable(key)
        targets = said.get("target_modules") or ()
        if any(word in target for target in as_list(targets) for word in BEYOND_LINEAR):
            raise Untranslatable(f"target_modules={targets}")
        return said

    def like(self, lora: LoraConfig) -> Any:
        """A config of this candidate that says what the LoRA config at hand says."""
        return self.config(**self.keywords(changed_fields(lora)))


KNOWN = {
    "lora": ("peft:LoraConfig", "init_lora_weights"),
    "share_lora": ("hf_share:ShareLoraConfig", "init_weights"),
}


def candidates() -> list[Candidate]:
    """The candidates named in `CONFORMANCE_CONFIG`, separated by commas."""
    return [candidate(name) for name in os.environ.get("CONFORMANCE_CONFIG", "lora").split(",")]


def candidate(name: str) -> Candidate:
    where, init = KNOWN.get(name, (name, "init_weights"))
    module, separator, attribute = where.partition(":")
    if not separator:
        raise ValueError(f"unknown candidate {name!r}; known: {', '.join(sorted(KNOWN))}, or module:Class")
    return Candidate(name, getattr(importlib.import_module(module), attribute), init)


SET_BY_PEFT = frozenset({"peft_type", "peft_version"})


def changed_fields(config: LoraConfig) -> dict[str, Any]:
    """The fields not at their default; names of modules as a list again, since peft makes them a set."""
    changed = {}
    for field in fields(config):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(config, field.name)
        if field.name not in SET_BY_PEFT and value != default:
            changed[field.name] = sorted(value) if isinstance(value, set) else value
    return changed


def as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)

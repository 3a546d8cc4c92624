# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps the names of stores out of reach of transformers' renamings.

Some architectures (ViT) are saved under other names than they have in memory, by regexes over whole keys.
A private tensor follows the weight it stands beside, but a store's group is named after a role
(`lora_layers_mlp_fc1`), on which the same regexes work too, and not always with a way back. So the first
renaming of a list hides what follows `shared_stores.` as hexadecimal digits, and the last one shows it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming, apply_renamings

from .sites import STORES


class Shelter(WeightRenaming):
    """Hides the names of stores, or shows them again."""

    def __init__(self, hides: bool):
        super().__init__(STORES, STORES)
        self.hides = hides

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        head, stores, name = source_key.partition(f"{STORES}.")
        if stores:
            name = name.encode().hex() if self.hides else bytes.fromhex(name).decode()
        return head + stores + name, None

    def reverse_transform(self) -> Shelter:
        return Shelter(not self.hides)


def sheltered(conversions: Sequence[Any]) -> list[Any]:
    """The list with the stores' names hidden from everything in it."""
    return [Shelter(True), *conversions, Shelter(False)]


@contextmanager
def sheltered_saving(model: Any) -> Iterator[None]:
    """For one `save_pretrained`, which reverses the conversions a model was loaded with, or its default."""
    before = model.__dict__.get("_weight_conversions")
    found = before
    if found is None and hasattr(model, "config"):
        default = get_model_conversion_mapping(model, add_legacy=False)
        found = [c for c in default if not isinstance(c, PrefixChange)]  # as transformers does on saving
    if found:
        model._weight_conversions = sheltered(found)
    try:
        yield
    finally:
        if before is not None:
            model._weight_conversions = before
        elif found:
            del model._weight_conversions


def renamer(model: Any) -> Callable[[str], str]:
    """From the name a tensor has in a file to the name it has in `model`."""
    found = get_model_conversion_mapping(model)
    renamings = sheltered([c for c in found if isinstance(c, WeightRenaming)])
    return lambda key: apply_renamings(key, renamings)

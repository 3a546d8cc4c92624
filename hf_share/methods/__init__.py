# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Sharing methods, one file each. Files here are found by themselves; other packages add theirs by an entry
point.

    [project.entry-points."hf_share.methods"]
    my_method = "my_package.my_method"

The module named there registers its config with `@method` (and a rule with `@rule`, if none fits) when it is
imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from importlib.metadata import entry_points


GROUP = "hf_share.methods"


def discover() -> None:
    """Import every method in this folder, then those of other packages. One that fails to import is named,
    not fatal.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(
                f"hf_share: method {entry.name!r} of {entry.value!r} was not loaded: {error}", stacklevel=2
            )

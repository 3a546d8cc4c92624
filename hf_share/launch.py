# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Other programs with hf_share in their process: they find its registrations and need no change."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Sequence

from .errors import ConfigError


ALSO = {"lm_eval": "hf_share.eval.lm"}  # program -> what of ours registers with it


def launch(arguments: Sequence[str]) -> int:
    """Run the module that `arguments` begin with, as `python -m` does, with the rest as its arguments."""
    if not arguments:
        raise ConfigError("name a program to run: python -m hf_share lm_eval run --model hf-share ...")
    module, *rest = arguments
    module = module.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"there is no program {module!r} here; is it installed? Commands of this package are run by "
            f"`hf-share {arguments[0]}`"
        )
    importlib.import_module("hf_share")
    if module in ALSO:
        importlib.import_module(ALSO[module])
    before, sys.argv = sys.argv, [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    return 0

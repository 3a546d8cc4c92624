# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of all comparisons: which one, which cells, how many workers, and its report."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..errors import ConfigError, unknown
from ..train.settings import parse_overrides
from .cells import read, run
from .record import read_record


# modules here with Config, record, wanted, measure and report
COMPARISONS = ("adapters", "encoder", "masa", "structure")


def main(description: str | None, arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="a YAML file; its key `compare` names the comparison")
    parser.add_argument("--cells", default="*", help="a glob over names of cells")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes, one thread each")
    parser.add_argument(
        "--adopt", action="store_true", help="results that do not say what they are of are of these settings"
    )
    parser.add_argument("--report", action="store_true", help="write the report of what is measured already")
    options, rest = parser.parse_known_args(arguments)
    try:
        _compare(options, parse_overrides(rest))
    except (ConfigError, OSError) as error:
        parser.error(str(error))


def _compare(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    values = {**(yaml.safe_load(Path(options.config).read_text(encoding="utf-8")) or {}), **overrides}
    name = values.pop("compare", None)
    if name not in COMPARISONS:
        raise unknown("comparison", name, COMPARISONS, ConfigError)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: at least one worker")
    comparison = importlib.import_module(f".{name}", __package__)
    config = comparison.Config.load(None, values)
    if options.report:
        results = read(config.output)
    else:
        results = run(
            functools.partial(comparison.wanted, config),
            functools.partial(comparison.measure, **config.places),
            config.output,
            record=comparison.record(config),
            adopt=options.adopt,
            only=options.cells,
            jobs=options.jobs,
        )
    print(comparison.report(config, results, read_record(config.output)))

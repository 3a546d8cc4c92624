# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of a recipe: a frozen dataclass, a YAML file of its keys, and `--key value` on the command
line.

A key that does not exist is an error that names the nearest one, and a value of another type is an error: a
misspelt option must not cost a night of training.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import yaml

from ..errors import ConfigError, unknown


S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of all recipes. Fields are bool, int, float, str or dict (on a command line: YAML
    text); ints are at least 1 unless named.
    """

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("seed",)

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if name == "MAY_BE_ZERO":
                continue
            object.__setattr__(self, name, cast(name, getattr(self, name), kind))
            least = 0 if name in self.MAY_BE_ZERO else 1
            if kind is int and getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}")

    @classmethod
    def load(cls: type[S], path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> S:
        """Read a YAML file of keys and values, where one is given; `overrides` win over it."""
        values: dict[str, Any] = {}
        if path is not None:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold keys and values, not a {type(values).__name__}")
        values = {**values, **(overrides or {})}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("key", key, known, ConfigError)
        return cls(**values)

    @classmethod
    def from_command_line(cls: type[S], description: str | None, arguments: Sequence[str] | None = None) -> S:
        """`--config FILE` and `--key value` for every field; `--help` lists them with their defaults."""
        keys = "\n".join(f"  --{f.name} {_default(f)}" for f in dataclasses.fields(cls))
        parser = argparse.ArgumentParser(
            description=description,
            epilog=f"keys and defaults:\n{keys}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--config", help="a YAML file of the keys below")
        options, rest = parser.parse_known_args(arguments)
        try:
            return cls.load(options.config, parse_overrides(rest))
        except (ConfigError, OSError, TypeError) as error:
            parser.error(str(error))


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`["--steps", "10", "--resume"]` -> `{"steps": "10", "resume": "true"}`; `--steps=10` works too."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} has no key; options are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        found[key.replace("-", "_")] = value
    return found


def cast(name: str, value: Any, kind: type) -> Any:
    """A value as its field's type: YAML reads `4e-3` as text and `1` as an int, a command line only text."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str) and kind is dict:
        return cast(name, _mapping(name, value), kind)
    if isinstance(value, str):
        try:
            return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            pass
    raise ConfigError(f"{name}={value!r} is not of type {kind.__name__}")


def _mapping(name: str, text: str) -> dict:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{name}={text!r} is not of type dict; {{key: value}} fits")
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)" if field.default is dataclasses.MISSING else repr(field.default)

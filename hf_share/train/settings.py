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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import yaml

from ..errors import ConfigError, unknown


S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of all recipes. Fields are bool, int, float, str or dict; ints are at least 1
    unless named.
    """

    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("seed",)
    TASK: ClassVar[str] = ""  # `hf-share train TASK`; its defaults lie in defaults/TASK.yaml

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            object.__setattr__(self, name, cast(name, getattr(self, name), kind))
            least = 0 if name in self.MAY_BE_ZERO else 1
            if kind is int and getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}")

    @classmethod
    def load(
        cls: type[S],
        path: str | Path | None,
        overrides: Mapping[str, Any] | None = None,
        beneath: Mapping[str, Any] | None = None,
    ) -> S:
        """Read a YAML file of keys and values, where one is given; `overrides` win over it, and it over what
        lies `beneath`.
        """
        values: dict[str, Any] = {}
        if path is not None:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold keys and values, not a {type(values).__name__}")
        values = {**(beneath or {}), **values, **(overrides or {})}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("key", key, known, ConfigError)
        return cls(**values)

    @classmethod
    def from_command_line(cls: type[S], description: str | None, arguments: Sequence[str] | None = None) -> S:
        """`--config FILE` and `--key value` for every field; `--help` lists them with types and defaults.

        Below the file and the keys lie the defaults of the task. One word without a key is the model.
        """
        prog = f"hf-share train {cls.TASK}" if arguments is not None and cls.TASK else None
        again = "\n\nThe same command again goes on from the last complete checkpoint in its output."
        parser = argparse.ArgumentParser(
            prog=prog,
            usage=f"%(prog)s {'[MODEL] ' if 'model' in kinds(cls) else ''}[--config FILE] [--key value ...]",
            description=(description or "") + (again if cls.TASK else ""),
            epilog=_table(cls),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--config", help="a YAML file of the keys below; keys on the command line win")
        parser.add_argument("--json", action="store_true", help="what was measured as JSON, for machines")
        options, rest = parser.parse_known_args(arguments)
        try:
            return cls.load(options.config, _overrides(cls, rest), defaults(cls.TASK))
        except (ConfigError, OSError, TypeError, yaml.YAMLError) as error:
            parser.error(str(error))


def kinds(settings: type[Settings]) -> dict[str, type]:
    """Field -> type."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def defaults(task: str) -> dict[str, Any]:
    """What `hf-share train TASK` starts from; shipped with the package."""
    return yaml.safe_load(_defaults_text(task)) if task else {}


def _defaults_text(task: str) -> str:
    return (Path(__file__).parent / "defaults" / f"{task}.yaml").read_text(encoding="utf-8")


def _table(settings: type[Settings]) -> str:
    """The keys with types, defaults, and the words that stand beside them in the defaults of the task."""
    beneath = defaults(settings.TASK)
    lines = _defaults_text(settings.TASK).splitlines() if settings.TASK else []
    words = dict(re.findall(r"^(\w+):.*?  # (.*)$", "\n".join(lines), re.MULTILINE))
    rows = ["keys, types and defaults:"]
    for field in dataclasses.fields(settings):
        value = beneath.get(field.name, field.default)
        if value is dataclasses.MISSING:
            value = "(required)" if field.default_factory is dataclasses.MISSING else field.default_factory()
        kind = kinds(settings)[field.name].__name__
        rows.append(f"  --{field.name:18} {kind:5} {value!r:20}  {words.get(field.name, '')}".rstrip())
    return "\n".join(rows)


def _overrides(settings: type[Settings], words: Sequence[str]) -> dict[str, Any]:
    first: dict[str, str] = {}
    if words and not words[0].startswith("-") and "model" in kinds(settings):
        first, words = {"model": words[0]}, words[1:]
    return {**first, **parse_overrides(["--output" if word == "-o" else word for word in words])}


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--steps", "10", "--resume"]` -> `{"steps": "10", "resume": True}`; `--steps=10` works too."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} has no key; options are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else True
        found[key.replace("-", "_")] = value
    return found


def cast(name: str, value: Any, kind: type) -> Any:
    """A value as its field's type: YAML reads `4e-3` as text and `1` as an int, a command line only text."""
    if type(value) is kind:
        return value
    if kind is dict and isinstance(value, str):
        return _read_dict(name, value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        try:
            return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            pass
    if value is True:  # an option without a value
        raise ConfigError(f"--{name} needs a value, of type {kind.__name__}")
    raise ConfigError(f"{name}={value!r} is not of type {kind.__name__}")


def _read_dict(name: str, text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}={text!r} is not of type dict: {{key: value, ...}}")
    return value

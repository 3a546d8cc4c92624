# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a push was told, in the header of a card that a person wrote: the header takes it, the text stays."""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard


HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# an option of `model_card` -> its keys in a header; what is not here has its place in the text alone
PLACES = {
    "base_model": ("base_model", "base_model_relation"),
    "relation": ("base_model_relation",),
    "datasets": ("datasets",),
    "license": ("license",),
    "results": ("model-index", "metrics"),
    "tags": ("tags",),
}


def with_options(text: str, made: ModelCard, options: dict[str, Any]) -> tuple[str, list[str]]:
    """A person's card with the given options in its header, and the options that found no place.

    Args:
        made: the card that we would make of the options.
    """
    given = [name for name, value in options.items() if value]
    found = HEADER.match(text)
    try:
        header = yaml.safe_load(found[1]) or {} if found else {}
    except yaml.YAMLError:
        header = None
    if not given or not isinstance(header, dict):
        return text, given
    new = made.data.to_dict()
    keys = [key for name in given for key in PLACES.get(name, ()) if key in new]
    if not keys:
        return text, given
    told = {key: new[key] for key in keys}
    if "tags" in told:
        told["tags"] = list(dict.fromkeys([*_listed(header.get("tags")), *options["tags"]]))
    lines = yaml.safe_dump({**header, **told}, sort_keys=False, allow_unicode=True)
    body = text[found.end() :] if found else f"\n{text}"
    return f"---\n{lines}---\n{body}", [name for name in given if name not in PLACES]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]

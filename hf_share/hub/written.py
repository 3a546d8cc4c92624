# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The card that is there already: a person's words stay, what a program wrote is made anew.

A card of ours ends in a comment with a digest of its text, so that one that somebody changed is theirs. What
its metadata say (base model, data, license) goes over to the next card, whoever wrote them.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .model_index import results_of
from .score_table import LEGEND


CARD = "README.md"
BLANK = "# Model Card for Model ID"  # the form that peft and transformers leave to fill in
STOCK = (
    BLANK,
    "This model card has been generated automatically according to the information the Trainer had access to",
)
SIGNED = re.compile(r"\n*<!-- written by hf_share, (\w+): .* -->\s*$")


def sign(text: str) -> str:
    """The text of a card with the comment that says who wrote it."""
    text = text.strip()
    said = "change anything above and this card is yours, which hf_share leaves alone"
    return f"{text}\n\n<!-- written by hf_share, {_digest(text)}: {said} -->\n"


def is_ours(card: ModelCard) -> bool:
    """Whether hf_share wrote the card and nobody has changed its text."""
    signed = SIGNED.search(card.text)
    return signed is not None and signed[1] == _digest(card.text[: signed.start()])


def is_stock(card: ModelCard) -> bool:
    """Whether a library wrote the card and nobody filled it in."""
    return any(words in card.text for words in STOCK)


def is_anothers(card: ModelCard | None) -> bool:
    """Whether there is a card that a person wrote or changed."""
    return card is not None and not is_ours(card) and not is_stock(card)


def measured_in(card: ModelCard) -> tuple[str, list[str]]:
    """The table of scores in a card of ours, and the notes below it."""
    section = SIGNED.sub("", card.text).rpartition("\n## Measured\n")[2].strip()
    scores, *notes = section.split("\n\n")
    return (f"{scores}\n\n{LEGEND}", notes[1:]) if notes[:1] == [LEGEND] else (scores, notes)


def card_in(folder: str | os.PathLike) -> ModelCard | None:
    """The card of a folder, if there is one. Metadata that cannot be read count as none."""
    path = Path(folder) / CARD
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError):
        return ModelCard(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))


def inherited(old: ModelCard | None, given: dict[str, Any], results: bool) -> dict[str, Any]:
    """What `model_card` takes: `given`, and from the metadata of `old` what is not given.

    Args:
        results: take over the scores and notes too, where the weights are those that were measured.
    """
    if old is None:
        return given
    data = old.data
    datasets = [data.datasets] if isinstance(data.datasets, str) else data.datasets or []
    known: dict[str, Any] = {"license": data.license, "datasets": [d for d in datasets if _is_id(d)]}
    if results:
        known["results"] = results_of(data)
        known |= _section(old, given) if is_ours(old) else {}
    if not given.get("base_model"):
        base = _one(data.base_model)
        known |= {"base_model": base, "relation": data.get("base_model_relation") if base else None}
    return {**given, **{k: v for k, v in known.items() if v and not given.get(k)}}


def _section(old: ModelCard, given: dict[str, Any]) -> dict[str, Any]:
    table, notes = measured_in(old)
    return {"notes": notes, "table": None if given.get("results") else table}


def _digest(text: str) -> str:
    return hashlib.sha256(re.sub(r"\s+", " ", text.strip()).encode()).hexdigest()[:12]


def _is_id(name: Any) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _one(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if _is_id(value) else None

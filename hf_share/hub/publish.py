# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of a shared model and of a peft model with our adapter: one commit, with our card in it.

transformers and peft write a card of their own after `save_pretrained`, and ask nobody. So, as with
`save_pretrained`, the method is put on the instance, where stock code finds it: on a shared model when its
plan is recorded, on a `PeftModel` when it takes our tuner in, which torch's hook on registration tells.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard

from ..sites import backbone
from .card import model_card
from .outline import came_from
from .push import push_folder
from .written import BLANK, CARD, card_in, inherited, is_ours, is_stock


def publish(model: Any) -> None:
    """Make `model.push_to_hub` ours."""
    for each in (model, backbone(model)):  # users also push the backbone by itself
        if hasattr(each, "push_to_hub"):
            each.push_to_hub = functools.partial(push_model, each)


def publish_adapter(model: Any) -> None:
    """The same for a `PeftModel`, and for the card that its `save_pretrained` writes."""
    model.push_to_hub = functools.partial(push_model, model)
    model.create_or_update_model_card = functools.partial(write_card, model)


def push_model(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tokenizer: Any = None,
    saved: str | os.PathLike | None = None,
    **card: Any,
) -> CommitInfo:
    """`push_to_hub` of transformers and peft, with the tokenizer and the card in the same commit.

    Args:
        tokenizer: a tokenizer or processor to push with the model.
        saved: a folder that holds the model already.
        card: what `model_card` takes: `base_model`, `datasets`, `license`, `results`, `tags`.
    """
    to = {
        "private": private, "token": token, "revision": revision, "message": commit_message,
        "description": commit_description, "create_pr": create_pr,
    }  # fmt: skip
    if saved is not None:
        return push_folder(saved, repo_id, base_hint=came_from(model), **to, **card)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        (Path(folder) / CARD).unlink(missing_ok=True)  # peft's
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return push_folder(folder, repo_id, base_hint=came_from(model), **to, **card)


def write_card(model: Any, folder: str | os.PathLike) -> None:
    """`PeftModel.create_or_update_model_card`: peft's blank form where `save_pretrained` begins a folder,
    which a push replaces; our card where `Trainer` has written one; and a person's as it is.
    """
    old = card_in(folder)
    if old is None or BLANK in old.text:
        type(model).create_or_update_model_card(model, folder)
    elif is_ours(old) or is_stock(old):
        renew_card(model, folder, old, {})


def renew_card(model: Any, folder: str | os.PathLike, old: ModelCard | None, options: dict[str, Any]) -> None:
    """The model's card in `folder`; what the metadata of `old` tell goes over.

    Args:
        options: what `model_card` takes.
    """
    options = {"name": Path(folder).resolve().name, **inherited(old, options, results=True)}
    model_card(model, **options).save(Path(folder) / CARD)

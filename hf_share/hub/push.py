# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A folder to the Hub in one commit: all of it arrives or nothing does, and what arrives is whole.

Files are read before anything is sent. Uploads that broke off are resumed by pushing again, since the Hub
keeps the files it has and the branch moves with the last step only.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import filter_repo_objects

from ..errors import CheckpointError, ConfigError
from .card import REPO, listed, model_card
from .header import with_options
from .outline import ADAPTER, CHECKPOINT, Outline, outline, shapes
from .written import CARD, card_in, inherited, is_anothers, is_ours, measured_in


LEFT_OUT = [
    ".*", "*/.*", "__pycache__/*", "checkpoint-*/*", "checkpoints/*", "runs/*", "trainer_state.json",
    "training_args.bin", "optimizer*", "scheduler*", "scaler*", "rng_state*", "pytorch_model_fsdp*",
]  # fmt: skip
WITHOUT_XET = "\nIf this Hub or its proxy has no Xet storage, set HF_HUB_DISABLE_XET=1 for plain HTTP."


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a push goes: the repository, the branch, and what the commit says."""

    repo: str
    private: bool | None = None
    revision: str | None = None
    message: str | None = None
    description: str | None = None
    create_pr: bool = False


def push_folder(
    folder: str | os.PathLike,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    description: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    base_hint: str | None = None,
    **card: Any,
) -> CommitInfo:
    """Upload the folder of a checkpoint or an adapter as one commit, with a model card if it has none.

    What training leaves beside a model (optimizer, checkpoints) stays here. The text of a card that a person
    wrote, in the folder or on the Hub, is kept: what `card` says goes into its header, and a warning names
    what has no place there (`notes`). A card that hf_share wrote is made anew.

    Args:
        private: for a repository that is made here; the account's default if None.
        revision: the branch, made if it is not there.
        create_pr: open a pull request instead of moving the branch.
        base_hint: the base model where neither `card` nor an earlier card names one.
        card: what `model_card` takes: `base_model`, `datasets`, `license`, `results`.

    Raises:
        ShareError: if the folder holds no whole model; nothing has been sent then.
    """
    files = files_of(folder)
    found = outline(folder)
    model_card(found, name=repo, **card)  # what it refuses is refused before anything is sent
    to = Target(
        repo=repo, private=private, revision=revision, message=message, description=description,
        create_pr=create_pr,
    )  # fmt: skip
    api = HfApi(token=token)
    try:
        return _push(api, Path(folder), files, to, replace(found, base=found.base or base_hint), card)
    except HfHubHTTPError:
        raise  # it says what the Hub said
    except (HTTPError, RuntimeError, ConnectionError) as error:  # of the network, the client's, or Xet's
        said = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        xet = WITHOUT_XET if "xet" in said else ""
        raise OSError(f"{said}\nNothing was changed; push again to go on.{xet}") from error


def _push(
    api: HfApi, folder: Path, files: list[str], to: Target, found: Outline, options: dict[str, Any]
) -> CommitInfo:
    repo = api.create_repo(to.repo, private=to.private, exist_ok=True).repo_id
    if to.revision is not None and not to.revision.startswith("refs/"):
        api.create_branch(repo, branch=to.revision, exist_ok=True)
    added = [CommitOperationAdd(name, str(folder / name)) for name in files]
    card = _card(folder, _remote(api, repo, to.revision), found, repo, options)
    added = [operation for operation in added if operation.path_in_repo != CARD]
    if card is not None:
        added.append(CommitOperationAdd(CARD, card.encode()))
    return api.create_commit(
        repo, added, commit_message=to.message or "Upload model with hf_share",
        commit_description=to.description, revision=to.revision, create_pr=to.create_pr,
    )  # fmt: skip


def _card(
    folder: Path, remote: Path | None, found: Outline, repo: str, options: dict[str, Any]
) -> str | None:
    """The card to send with the model, or None to leave the one on the Hub as it is."""
    here, there = card_in(folder), None if remote is None else card_in(remote)
    for card, place in ((here, folder), (there, remote)):
        if place is not None and is_anothers(card):
            text = _text(place)
            kept = _kept(text, model_card(found, repo=repo, **options), options)
            return None if place is remote and kept == text else kept
    if here is not None and is_ours(here) and REPO not in here.text and not any(options.values()):
        return _text(folder)
    return str(_made(here, there, found, repo, options))


def _kept(text: str, made: ModelCard, options: dict[str, Any]) -> str:
    """A person's card with what the options say in its header, and a warning of those that are not told."""
    card, unused = with_options(text, made, options)
    if unused:
        warnings.warn(
            f"the card of this model was written by a person and its text is kept, so {' and '.join(unused)} "
            f"of this push are not in it; write them into its {CARD}, or delete that to have one made",
            stacklevel=5,
        )
    return card


def _made(
    here: ModelCard | None, there: ModelCard | None, found: Outline, repo: str, options: dict[str, Any]
) -> ModelCard:
    if here is not None and is_ours(here):
        notes = {"notes": list(dict.fromkeys([*measured_in(here)[1], *listed(options.get("notes", ()))]))}
        return model_card(found, repo=repo, **inherited(here, {**options, **notes}, results=True))
    options = inherited(here, options, results=False)
    # scores on the Hub are of the weights that are there, and those are about to be replaced
    options = inherited(there, options, results=False)
    if options.get("base_model") == repo:
        options = {**options, "base_model": None, "relation": None}
    found = replace(found, base=None if found.base == repo else found.base)
    return model_card(found, repo=repo, **options)


def files_of(folder: str | os.PathLike) -> list[str]:
    """The files of a model that are pushed; an error if the model in it is not whole."""
    root = Path(folder)
    if not any((root / name).is_file() for name in (CHECKPOINT, ADAPTER)):
        raise ConfigError(f"{root} holds no model: there is neither a {CHECKPOINT} nor an {ADAPTER} in it")
    names = sorted(str(file.relative_to(root).as_posix()) for file in root.rglob("*") if file.is_file())
    shapes(root)  # reads every header
    for index in sorted(root.glob("*.safetensors.index.json")):
        try:
            missing = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - set(names)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise CheckpointError(f"{index} is no index of shards") from None
        if missing:
            raise CheckpointError(f"{root} lacks {min(missing)}, which {index.name} names")
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise CheckpointError(f"{root} has a config but no weights")
    return list(filter_repo_objects(names, ignore_patterns=LEFT_OUT))


def _remote(api: HfApi, repo: str, revision: str | None) -> Path | None:
    """A folder with the card that the Hub has."""
    if not api.file_exists(repo, CARD, revision=revision):
        return None
    return Path(api.hf_hub_download(repo, CARD, revision=revision)).parent


def _text(folder: Path) -> str:
    return (folder / CARD).read_bytes().decode("utf-8")  # with the ends of lines that it has

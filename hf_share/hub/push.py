# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A folder to the Hub in one commit: all of it arrives or nothing does, and what arrives is whole.

Files are read before anything is sent. Uploads that broke off are resumed by pushing again, since the Hub
keeps the files it has and the branch moves with the last step only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import filter_repo_objects

from ..errors import CheckpointError, ConfigError
from .card import model_card
from .outline import ADAPTER, CHECKPOINT, shapes


CARD = "README.md"
BOILERPLATE = "# Model Card for Model ID"  # what peft and transformers write where nobody wrote a card
LEFT_OUT = [
    ".*", "*/.*", "__pycache__/*", "checkpoint-*/*", "runs/*", "trainer_state.json", "training_args.bin",
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "pytorch_model_fsdp*",
]  # fmt: skip


def push_folder(
    folder: str | os.PathLike,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    **card: Any,
) -> CommitInfo:
    """Upload the folder of a checkpoint or an adapter as one commit, with a model card if it has none.

    What training leaves beside a model (optimizer, checkpoints) stays here. A card that a person wrote, in
    the folder or on the Hub, is kept.

    Args:
        private: for a repository that is made here; the account's default if None.
        revision: the branch, made if it is not there.
        card: what `model_card` takes: `base_model`, `datasets`, `license`, `results`.

    Raises:
        ShareError: if the folder holds no whole model; nothing has been sent then.
    """
    files = files_of(folder)
    made = None if _has_card(Path(folder)) else str(model_card(folder, repo=repo, **card))
    try:
        return _push(HfApi(token=token), Path(folder), files, made, repo, private, revision, message)
    except HfHubHTTPError:
        raise  # it says what the Hub said
    except (HTTPError, RuntimeError) as error:  # of the network, or the client's, round that of one file
        said = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise OSError(f"{said}\nNothing was changed; push again to go on.") from error


def _push(
    api: HfApi,
    folder: Path,
    files: list[str],
    card: str | None,
    repo: str,
    private: bool | None,
    revision: str | None,
    message: str | None,
) -> CommitInfo:
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    added = [CommitOperationAdd(name, str(folder / name)) for name in files]
    if card is not None:
        added = [operation for operation in added if operation.path_in_repo != CARD]
        if not _has_remote_card(api, repo, revision):
            added.append(CommitOperationAdd(CARD, card.encode()))
    message = message or "Upload model with hf_share"
    return api.create_commit(repo, added, commit_message=message, revision=revision)


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


def _has_card(folder: Path) -> bool:
    return (folder / CARD).is_file() and BOILERPLATE not in (folder / CARD).read_text(encoding="utf-8")


def _has_remote_card(api: HfApi, repo: str, revision: str | None) -> bool:
    if not api.file_exists(repo, CARD, revision=revision):
        return False
    path = api.hf_hub_download(repo, CARD, revision=revision)
    return BOILERPLATE not in Path(path).read_text(encoding="utf-8")

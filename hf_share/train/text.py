# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Text to train and to measure on, with a split that no machine can disagree about.

The default text is the standard library of the running Python: real prose and real code that is on every
machine without a download. A model trained on one machine is measured on another, perhaps under another
Python version, so the split may not depend on a listing or on a random generator. It is a function of the
*module's* name alone,

    heldout(m)  <=>  int(sha256("stdlib/" + m)[:8]) mod 10 = 0,

where m is the first part of the file's path below the library, without `.py` and without the `_py` or `_`
that marks a twin (`_pyio`, `_strptime`). Whole modules are held out, not single files:
`asyncio/events.py` says too much about `asyncio/tasks.py`, and a module that becomes a package
(`pathlib.py` -> `pathlib/_local.py`) stays on its side.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .documents import Documents


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


HELDOUT_ONE_IN = 10

# Tests and vendored or installed packages are not the library; `encodings` is generated tables of characters.
_SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idle_test", "lib-dynload", "site-packages", "test", "tests",
}  # fmt: skip
# Written when this Python was built: the text differs between machines and names their compilers and paths.
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Documents to train on and documents that no training step may see."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    source: str


def stdlib_files() -> list[Path]:
    """The readable sources of the running Python's standard library, sorted by their path."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(filter(_decodes, _sources(root)), key=lambda path: path.relative_to(root).as_posix())


def split_of(relative: PurePath | str) -> Literal["train", "heldout"]:
    """The side of a file, from its path below the standard library.

    >>> split_of("asyncio/events.py"), split_of("pathlib.py") == split_of("pathlib/_local.py")
    ('train', True)
    """
    first = PurePath(relative).parts[0]
    module = first.removesuffix(".py").removeprefix("_py").strip("_")
    digest = hashlib.sha256(f"stdlib/{module}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0 else "train"


def stdlib_text() -> Text:
    """The standard library, one document a file, about 6 % of its bytes held out."""
    root = Path(sysconfig.get_path("stdlib"))
    documents: dict[str, list[str]] = {"train": [], "heldout": []}
    for path in stdlib_files():
        documents[split_of(path.relative_to(root))].append(path.read_text(encoding="utf-8"))
    return Text(train=tuple(documents["train"]), heldout=tuple(documents["heldout"]), source="stdlib")


def load_text(
    source: str = "stdlib", *, column: str = "text", heldout: float = 0.1, max_bytes: int = 64_000_000,
    separator: str = "",
) -> Text:  # fmt: skip
    """Text by name: `"stdlib"`, a local file, a folder of files, or a data set for `datasets.load_dataset`.

    A `.jsonl` file gives one document a line, a `.json`, `.csv` or `.parquet` file one a row; any other file
    is one document, or several where it holds the `separator`; a folder of such files gives those of each,
    by path. A data set is named by its id or folder, with a configuration after a colon
    (`Salesforce/wikitext:wikitext-2-raw-v1`); its `train` split is streamed, so that naming a huge one costs
    no more than `max_bytes` of text. The held-out part is the last `heldout` of the documents or, where there
    is only one, of its characters.
    """
    if source == "stdlib":
        return stdlib_text()
    if not 0.0 < heldout < 1.0:
        raise ValueError(f"heldout={heldout}: the held-out part is a fraction between 0 and 1")
    documents = _at_most(iter(Documents(source, column, separator)), max_bytes)
    if not documents:
        raise ValueError(f"{source!r} holds no text")
    train, rest = split_documents(documents, heldout)
    return Text(train=train, heldout=rest, source=source)


def windows(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], context: int) -> Tensor:
    """Disjoint windows over the joined documents: int64, shape (n, context), in tokens.

    Each document begins with the tokenizer's bos (or else eos) token where it has one. Tokens after the last
    full window are left out.
    """
    if context < 2:
        raise ValueError(f"context={context}: a window needs 2 tokens or more, one to see and one to predict")
    stream = [token for document in token_lists(tokenizer, documents) for token in document]
    n = len(stream) // context
    if n == 0:
        raise ValueError(f"the text has {len(stream)} tokens, fewer than one window of context={context}")
    return torch.tensor(stream[: n * context], dtype=torch.int64).view(n, context)


def token_lists(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> Iterator[list[int]]:
    """The tokens of each document, behind the token that begins one."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix: list[Any] = [] if start is None else [start]
    options = {"add_special_tokens": False, "verbose": False}  # verbose warns of every long document
    for document in documents:
        tokens: Any = tokenizer(document, **options)["input_ids"]
        yield prefix + tokens


def target_bytes(tokenizer: PreTrainedTokenizerBase, windows: Tensor) -> int:
    """UTF-8 bytes that the predicted tokens of `windows` (n, context) stand for: all but each window's first.

    A character cut in two by the edge of a window decodes to a three-byte replacement mark, so the number is
    exact on ASCII and about one part in a thousand off elsewhere.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    texts = (tokenizer.decode(row, **options) for row in windows[:, 1:])
    return sum(len(text.encode()) for text in texts)


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_skipped(name)]  # in place: os.walk enters no other
        yield from (Path(folder, name) for name in files if name.endswith(".py") and not _is_skipped(name))


def _is_skipped(name: str) -> bool:
    return name in _SKIPPED_FOLDERS or name.startswith(_SKIPPED_PREFIXES)


def _decodes(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (UnicodeDecodeError, OSError):
        return False


def _at_most(documents: Iterator[str], max_bytes: int) -> list[str]:
    taken, size = [], 0
    for document in documents:
        if document.strip():
            raw = document.encode()[: max_bytes - size]  # of a document that passes it, its beginning
            taken.append(raw.decode(errors="ignore"))
            size += len(raw)
        if size >= max_bytes:
            break
    return taken


def split_documents(documents: Sequence[str], last: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The documents, and the last part of them; of a single one, of its characters."""
    if len(documents) == 1:
        cut = round(len(documents[0]) * (1 - last))
        return (documents[0][:cut],), (documents[0][cut:],)
    cut = min(max(round(len(documents) * (1 - last)), 1), len(documents) - 1)
    return tuple(documents[:cut]), tuple(documents[cut:])


class Windows(torch.utils.data.Dataset):
    """Rows of (n, context) as Trainer wants them; the loss shifts the labels itself.

    Args:
        indexed: say of each row which it is.
    """

    def __init__(self, windows: Tensor, indexed: bool = False):
        self.windows, self.indexed = windows, indexed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = {"input_ids": self.windows[index], "labels": self.windows[index]}
        return {**row, "index": torch.tensor(index)} if self.indexed else row


def as_rows(data: Any) -> Any:
    """A tensor of windows as a set that Trainer takes; anything else as it is."""
    return Windows(data) if isinstance(data, Tensor) else data

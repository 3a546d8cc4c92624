# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What rows of instructions and chats look like: a format is a row of the table below, known by its columns.

TRL knows two kinds, `messages` and `prompt` with `completion`. Other instructions become the latter by a
template; of several, the first whose columns hold something, so that Alpaca's rows without an input have a
prompt without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any

from ..errors import ConfigError


CHAT, INSTRUCTION = "chat", "instruction"
KINDS = {CHAT: ("messages",), INSTRUCTION: ("prompt", "completion")}  # kind -> the columns that TRL takes


@dataclass(frozen=True, kw_only=True)
class Format:
    """Columns by which rows are known and, where TRL has other names for them, what they become."""

    columns: tuple[str, ...]
    kind: str = INSTRUCTION
    prompts: tuple[str, ...] = ()
    completion: str = ""

    def converted(self, data: Any) -> Any:
        """A data set of such rows with the columns that TRL takes, and no others."""
        renamed = data.map(self.convert) if self.prompts else data
        return renamed.select_columns(list(KINDS[self.kind]))

    def convert(self, row: dict[str, Any]) -> dict[str, str]:
        """A row as `prompt` and `completion`."""
        prompt = next((p for p in self.prompts if _filled(p, row)), self.prompts[-1])
        return {"prompt": _write(prompt, row), "completion": _write(self.completion, row)}


_ALPACA = (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Response:\n",
)

FORMATS = {
    "chat": Format(columns=("messages",), kind=CHAT),
    "instruction": Format(columns=("prompt", "completion")),
    "alpaca": Format(columns=("instruction", "output"), prompts=_ALPACA, completion="{output}"),
    "response": Format(columns=("prompt", "response"), prompts=("{prompt}",), completion="{response}"),
    "question": Format(
        columns=("question", "answer"), prompts=("Question: {question}\nAnswer:",), completion=" {answer}"
    ),
}


def listed() -> str:
    """The formats and their columns, for messages."""
    return ", ".join(f"{name} ({' and '.join(form.columns)})" for name, form in FORMATS.items())


def _names(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


def _filled(template: str, row: dict[str, Any]) -> bool:
    return all(row.get(name) for name in _names(template))


def _write(template: str, row: dict[str, Any]) -> str:
    for name in _names(template):
        if not isinstance(row.get(name), (str, int, float)):  # CSV has numbers for answers
            raise ConfigError(f"column {name!r} holds {row.get(name)!r} in a row, and text is needed there")
    return template.format(**row)

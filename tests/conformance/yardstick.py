# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of peft's own LoRA: measured, or read from `yardstick.json`, where an earlier run left it.

A record of other versions than the installed ones says nothing about them, and is not used. It is made again
with `python -m conformance lora --record`, in `tests/`.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

from conformance.runner import Outcomes


FILE = Path(__file__).with_name("yardstick.json")


@dataclass(frozen=True)
class Yardstick:
    """LoRA's outcomes of one part: how many tests there are, and which did not pass, with the reason."""

    tests: int
    failed: dict[str, str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        passed = self.tests - len(self.failed) - len(self.skipped)
        return f"{passed} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"


def measured(outcomes: Outcomes) -> Yardstick:
    reasons = {"failed": {}, "skipped": {}, "passed": {}}
    for test, outcome in sorted(outcomes.items()):
        reasons[outcome.outcome][test] = outcome.reason.partition("\n")[0]
    return Yardstick(len(outcomes), reasons["failed"], reasons["skipped"])


def recorded(part: str) -> Yardstick | None:
    """The record of this part, or None if there is none for the installed versions."""
    entry = read().get(part, {})
    return Yardstick(**entry["lora"]) if entry.get("versions") == versions() else None


def record(part: str, outcomes: Outcomes) -> None:
    entry = {"versions": versions(), "lora": vars(measured(outcomes))}
    FILE.write_text(json.dumps(read() | {part: entry}, indent=1, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Without the local label: `+cpu` names a build, not another behaviour."""
    packages = ("peft", "transformers", "torch")
    return {name: importlib.metadata.version(name).partition("+")[0] for name in packages}


def read() -> dict:
    return json.loads(FILE.read_text()) if FILE.exists() else {}

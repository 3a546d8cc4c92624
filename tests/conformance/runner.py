# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the suites in a process of their own and reads back what became of each test."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance import upstream


HERE = Path(__file__).parent
PARTS = {
    "decoder": "suite_decoder.py",
    "custom": "suite_custom.py",
    "others": "suite_others.py",
}


# the end of a row's id, see `repoint`
CANDIDATE = re.compile(r"@([\w.:]+)")


class Broken(Exception):
    """pytest itself did not come through; the message ends with what it said last."""


@dataclass(frozen=True)
class Outcome:
    outcome: str  # passed, skipped or failed
    reason: str
    seconds: float  # of CPU


# test id without the candidate -> outcome
Outcomes = dict[str, Outcome]


def run(
    candidates: Sequence[str], parts: Sequence[str] = tuple(PARTS), options: Sequence[str] = ()
) -> dict[str, Outcomes]:
    """The outcomes of every candidate, asked in one process: what differs between them is their own doing."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "outcomes.jsonl"
        command = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--confcutdir", str(HERE)]
        command += ["-p", "conformance.plugin", "--outcomes", str(record), "--quiet", *options]
        command += [str(HERE / PARTS[part]) for part in parts]
        done = subprocess.run(command, env=environment(candidates), capture_output=True, text=True)
        # 0: all passed, 1: some failed; anything else is a crash or an error of usage or collection
        if done.returncode not in (0, 1) or not record.exists():
            raise Broken(f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        return sorted_out(record, candidates)


def environment(candidates: Sequence[str]) -> dict[str, str]:
    """One thread, no accelerator, no Hub, no plugin but ours: neither machine nor outer run must matter."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    paths = [str(HERE.parent), str(upstream.directory()), *filter(None, sys.path)]
    return inherited | {
        "CONFORMANCE_CONFIG": ",".join(candidates),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "TOKENIZERS_PARALLELISM": "false",
    }


def sorted_out(record: Path, candidates: Sequence[str]) -> dict[str, Outcomes]:
    found: dict[str, Outcomes] = {candidate: {} for candidate in candidates}
    for line in record.read_text().splitlines():
        entry = json.loads(line)
        candidate = CANDIDATE.search(entry["test"])[1]
        test = CANDIDATE.sub("", entry["test"])
        found[candidate][test] = Outcome(entry["outcome"], entry["reason"], entry["seconds"])
    return found


def counts(outcomes: Outcomes) -> str:
    tally = Counter(outcome.outcome for outcome in outcomes.values())
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    shown = ", ".join(f"{tally[outcome]} {outcome}" for outcome in ("passed", "skipped", "failed"))
    return f"{shown}, {seconds:.0f} s of CPU"

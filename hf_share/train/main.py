# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of a training task, for `hf-share train TASK` and for recipes/TASK.py alike.

Each task is a file of this folder with a `main`. An error of the user is one line and exit code 2. With
`--json` what was measured comes as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

from ..errors import ConfigError, unknown
from .output import collected


TASKS = ("early_exit", "elastic", "finetune", "heal", "pretrain")


JSON = "--json"


def _for_machines(task: str, words: Sequence[str]) -> None:
    """The same with one JSON object on standard output, and all else on the other."""
    with redirect_stdout(sys.stderr), collected() as said:
        importlib.import_module(f".{task}", __package__).main(words)
    print(json.dumps({"task": task, "said": said}, indent=2))


def main(task: str, arguments: Sequence[str] | None = None) -> None:
    """Run a task; without `arguments` those of the process."""
    if task not in TASKS:
        raise unknown("task", task, TASKS, ConfigError)
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries below us
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if JSON not in words:
            return importlib.import_module(f".{task}", __package__).main(words)
        _for_machines(task, [word for word in words if word != JSON])
    except (OSError, ValueError, ImportError) as error:
        print(f"{task}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{task}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)

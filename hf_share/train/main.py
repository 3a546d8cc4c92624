# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of a training task, for `hf-share train TASK` and for recipes/TASK.py alike.

Each task is a file of this folder with a `main`. An error of the user is one line and exit code 2.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence

from ..errors import ConfigError, unknown


TASKS = ("early_exit", "elastic", "finetune", "heal", "pretrain")


def main(task: str, arguments: Sequence[str] | None = None) -> None:
    """Run a task; without `arguments` those of the process."""
    if task not in TASKS:
        raise unknown("task", task, TASKS, ConfigError)
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries below us
    try:
        importlib.import_module(f".{task}", __package__).main(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"{task}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{task}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)

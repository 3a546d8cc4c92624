# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`hf-share train TASK [MODEL] [--config FILE] [--key value ...]`: the recipes, from anywhere."""

from __future__ import annotations

from collections.abc import Callable

import typer


app = typer.Typer(
    help="Train a model, an adapter, or what sharing took. Started again after an interruption, a command "
    "goes on from the last complete checkpoint. With --json what was measured comes as JSON.",
    no_args_is_help=True,
)

TASKS = {
    "pretrain": "Train a small model from nothing, shared from the start if you like.",
    "finetune": "Train an adapter of any method on text, instructions or chats.",
    "heal": "Give a shared model back what sharing cost, by text and by the model it was made of.",
    "early_exit": "Teach a recursive model to stop after each of its loops.",
    "elastic": "Teach all subnets of one model at once: 2, 3 and 4 bits, or ranks.",
}
# every word after the task is the task's own, --help too: its settings are its options
_ITS_OWN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _command(task: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        from .train.main import main

        main(task, context.args)

    return command


for _task, _help in TASKS.items():
    app.command(_task, help=_help, context_settings=_ITS_OWN)(_command(_task))

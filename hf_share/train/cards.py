# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a training run: `Trainer.create_model_card`, and with it `Trainer.push_to_hub`, by our
template.

`Trainer` writes its card by itself and asks the model only where it is peft's, so a `Trainer` of ours says it
in a class of its own:

    class MyTrainer(OwnCard, SFTTrainer): ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from ..hub.publish import renew_card
from ..hub.written import CARD, card_in, is_ours, is_stock


CLOCK = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class OwnCard:
    """Mixed into a `Trainer` class, before it: cards come from the plan, and from the last evaluation."""

    card_options: dict[str, Any] = {}  # more of what `model_card` takes: `notes`, `baseline`

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """As `Trainer.create_model_card`; what that finds out (base model, data, license) is in the card."""
        folder, path = self.args.output_dir, Path(self.args.output_dir) / CARD
        before = card_in(folder)
        mine = before is not None and not is_ours(before) and not is_stock(before)
        words = path.read_text(encoding="utf-8") if mine else ""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if not self.is_world_process_zero():
            return
        if mine:  # a person's, and Trainer writes over it
            path.write_text(words, encoding="utf-8")
            return
        name = kwargs.get("model_name") or Path(folder).resolve().name
        options = {"name": name, "results": last_scores(self), **self.card_options}
        renew_card(self.accelerator.unwrap_model(self.model), folder, card_in(folder), options)


class CardTrainer(OwnCard, Trainer):
    """`transformers.Trainer` whose cards are ours."""


def last_scores(trainer: Trainer) -> dict[str, dict[str, float]]:
    """What the last evaluation of a run found, as `model_card` takes it."""
    for entry in reversed(trainer.state.log_history):
        found = {
            key.removeprefix("eval_"): float(value)
            for key, value in entry.items()
            if key.startswith("eval_") and not key.endswith(CLOCK) and isinstance(value, (int, float))
        }
        if found:
            return {"evaluation": found}
    return {}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One process of test_elastic_distributed.py: every case in turn; each rank writes what it ended with.

    torchrun --nproc_per_node 2 tests/workers/elastic.py <folder>
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)
import transformers as tf  # noqa: E402
import zoo  # noqa: E402
from helpers import rows  # noqa: E402

import hf_share  # noqa: E402
from hf_share.train.elastic import choose_trained  # noqa: E402
from hf_share.train.elastic_trainer import ElasticTrainer, space  # noqa: E402
from hf_share.train.samplers import make_sampler  # noqa: E402
from hf_share.train.text import Windows  # noqa: E402


IDS = torch.stack([row["input_ids"] for row in rows(16, 12)])
CASES = {
    "sandwich": {"kind": "sandwich", "n": 1},
    "one_width": {"kind": "uniform", "per": "model"},
    "checkpointing": {"kind": "mixture", "checkpointing": True},
}


class Unused(tf.TrainerCallback):
    """Which tensors had no gradient at each optimizer step."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        trained = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        self.found.append([n for n, p in trained if p.grad is None])


def train(name: str, folder: Path, batch: int) -> dict:
    """Three steps of two micro-steps with `batch` rows a process."""
    numbers = dict(CASES[name])
    torch.manual_seed(2)
    config = hf_share.ElasticConfig(group_size=16, r_private=2, r_shared=2)
    model = hf_share.share(zoo.build("llama", num_hidden_layers=2), config)
    choose_trained(model)
    checkpointing = numbers.pop("checkpointing", False)
    arguments = tf.TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=batch, learning_rate=1e-2, seed=7,
        gradient_accumulation_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant", gradient_checkpointing=checkpointing, logging_steps=1, optim="sgd",
    )  # fmt: skip
    sampler = make_sampler(numbers.pop("kind"), space(model, numbers.pop("per", "site")), seed=5, **numbers)
    unused = Unused()
    run = ElasticTrainer(
        model=model, args=arguments, train_dataset=Windows(IDS), sampler=sampler, callbacks=[unused],
        teacher=zoo.build("llama", num_hidden_layers=2),
    )  # fmt: skip
    run.train()
    state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return {"state": state, "unused": unused.found, "losses": losses, "processes": arguments.world_size}


def main() -> None:
    folder = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    found = {name: train(name, folder / name, batch=2) for name in CASES}
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()

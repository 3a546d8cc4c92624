# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""One process of test_scale.py's ZeRO cases: DeepSpeed on CPUs against one process.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 tests/workers/zero.py <stage> ...

Prints a line of JSON for each stage: losses, losses of one process, and the largest difference of weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)
from helpers import rows, shared  # noqa: E402
from zoo import build  # noqa: E402


STEPS, RATE = 3, 0.1


def config(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage},
        "gradient_clipping": 0.0,  # DeepSpeed clips at 1 by default
        "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
    }  # fmt: skip


def reference(batch: torch.Tensor) -> tuple[list[float], torch.nn.Module]:
    model, losses = shared(build("llama")).train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses, model


def zero(stage: int, batch: torch.Tensor) -> tuple[list[float], dict[str, torch.Tensor]]:
    model, losses = shared(build("llama")).train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))[0]
    mine = batch.chunk(2)[dist.get_rank()]
    for _ in range(STEPS):
        loss = engine(input_ids=mine, labels=mine).loss
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total) / 2)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return losses, {name: value.detach().clone() for name, value in model.named_parameters()}


def main() -> None:
    deepspeed.init_distributed("gloo")
    batch = torch.stack([row["input_ids"] for row in rows(4)])
    expected, model = reference(batch)
    weights = dict(model.named_parameters())
    for stage in map(int, sys.argv[1:]):
        losses, found = zero(stage, batch)
        error = max(float((found[name] - weights[name]).abs().max()) for name in weights)
        if dist.get_rank() == 0:
            print(json.dumps({"stage": stage, "losses": losses, "expected": expected, "error": error}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/train_step.py [--steps 20]

Training steps over peft LoRA's at equal rank and targets, ShareLoRA's (bound 1.05) and MoS's: runs in turn,
median. Peak memory of each in processes of its own, median (bound 1.0: ShareLoRA's is no more).
"""

import argparse

import torch
from _common import fresh, llama, median_in_turn, report, timed
from peft import LoraConfig, get_peft_model

import hf_share


TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

PEAK = """
import json, sys
sys.path.insert(0, sys.argv[2])
import train_step
from hf_share.eval.memory import memory_rise
with memory_rise() as rise:
    step = train_step.stepper(sys.argv[1])
    for _ in range(3): step()
print(json.dumps({"rise": rise.peak}))
"""


PROCESSES = 5  # of each kind; allocators differ by a percent from one to the next
CONFIGS = {
    "lora": lambda: LoraConfig(r=16, target_modules=TARGETS),
    "share_lora": lambda: hf_share.ShareLoraConfig(r=16, target_modules=TARGETS, share="A"),
    "mos": lambda: hf_share.MosConfig(r=16, equivalent_rank=4, target_modules=TARGETS),
}


def stepper(name: str):
    model = get_peft_model(llama(8), CONFIGS[name]()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 8192, (4, 128), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    steps = {name: stepper(name) for name in CONFIGS}
    for step in steps.values():
        step()  # warm-up
    runs = {name: (lambda step=step: timed(step)) for name, step in steps.items()}
    seconds = median_in_turn(runs, options.steps)
    here = __file__.rpartition("/")[0] or "."
    peaks = median_in_turn(
        {name: (lambda name=name: fresh(PEAK, name, here)["rise"]) for name in steps}, PROCESSES
    )
    report("train_step", {
        "seconds": {k: round(v, 4) for k, v in seconds.items()},
        "over_lora": {k: round(v / seconds["lora"], 3) for k, v in seconds.items()},
        "peak_memory_over_lora": {k: round(v / peaks["lora"], 3) for k, v in peaks.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()

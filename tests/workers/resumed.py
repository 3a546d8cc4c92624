# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes on two processes that go on from a checkpoint: python resumed.py FOLDER ddp|fsdp2

Each is trained to its end, loses its newer checkpoints, and is trained again from the first one.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from recipe import everywhere_fsdp
from transformers import AutoModelForCausalLM
from zoo import build, logits

import hf_share
from hf_share.train.checkpoints import checkpoints, drop
from hf_share.train.finetune import FinetuneConfig, finetune
from hf_share.train.heal import HealConfig, heal
from hf_share.train.pretrain import PretrainConfig, pretrain


ADAPTER = {"method": "share_lora", "r": 2, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}


TRAIN, VALID = torch.randint(3, 96, (30, 8), generator=torch.Generator().manual_seed(3)).split((24, 6))


def finetuned(**numbers: Any) -> torch.nn.Module:
    return finetune(build("llama"), TRAIN, FinetuneConfig(adapter=ADAPTER, **numbers), VALID)


def healed(**numbers: Any) -> torch.nn.Module:
    small = hf_share.share(build("llama"), hf_share.FoldConfig(groups=[[0], [1, 2], [3]]))
    return heal(small, TRAIN, build("llama"), HealConfig(r=2, norms=True, **numbers), VALID)


def pretrained(output: str, **numbers: Any) -> torch.nn.Module:
    """With Muon, whose state is of two optimizers."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 300, "decay_steps": 1, "context": 16,
    }  # fmt: skip
    made = {"text": str(Path(output).parent / "text.txt"), "share": {"method": "masa", "num_atoms": 2}}
    pretrain(PretrainConfig(output=output, **made, **sizes, **numbers))
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(output)


RECIPES = {
    "muon": pretrained,
    "finetune": finetuned,
    "full": partial(healed, train="full"),
    "adapter": partial(healed, train="adapter"),
    "worse": partial(healed, train="adapter", learning_rate=0.3),  # the step before the last is the best
}


def main() -> None:
    folder, way = Path(sys.argv[1]), sys.argv[2]
    first = int(os.environ["RANK"]) == 0
    if way == "fsdp2":
        everywhere_fsdp()
    for name, recipe in RECIPES.items():
        place = folder / f"{name}-{way}"
        numbers = {"steps": 4, "batch": 2, "save_steps": 2, "eval_steps": 2, "warmup_steps": 1}
        found = []
        for _ in range(2):
            torch.manual_seed(5)
            found.append(logits(recipe(output=str(place), **numbers).eval()))
            dist.barrier()
            if first and len(found) == 1:
                drop(checkpoints(place / "checkpoints")[-1])
            dist.barrier()
        if first:
            torch.save(found, folder / f"{name}-{way}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

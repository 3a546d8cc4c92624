# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/attach.py

Seconds to attach a plan to a Llama-2-7B shape on the meta device (bound 5): folding, and ShareLoRA on all
linears.
"""

import torch
from _common import report, timed
from transformers import LlamaConfig, LlamaForCausalLM

import hf_share
from hf_share.attach import attach


def seconds(config: hf_share.ShareConfig) -> float:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # the defaults are Llama-2-7B's
    plan = config.resolve(model)
    return timed(lambda: attach(model, plan))


def main() -> None:
    fold = hf_share.FoldConfig(group_size=2)
    lora = hf_share.ShareLoraConfig(r=64, target_modules="all-linear")
    found = {"fold, 32 layers in pairs": seconds(fold), "ShareLoRA r=64, all linears": seconds(lora)}
    report("attach", {"seconds": {name: round(value, 3) for name, value in found.items()}})


if __name__ == "__main__":
    main()

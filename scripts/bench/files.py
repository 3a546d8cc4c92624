# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/files.py

Sizes of files. Adapter: bytes per trained fp32 parameter of ShareA on a 32-layer Llama shape (bound 4.1),
beside peft's LoRA and VeRA. Checkpoint: bytes over unique parameters x element size (bound 1.01).
"""

import tempfile
from pathlib import Path

import torch
from _common import file_bytes, llama, report
from peft import LoraConfig, VeraConfig, get_peft_model

import hf_share


TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def adapter_bytes(config: object) -> dict:
    model = get_peft_model(llama(32, width=256, vocab=512), config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = file_bytes(folder)
    return {"trained": trained, "bytes": size, "bytes_per_parameter": round(size / trained, 3)}


def checkpoint_bytes(dtype: torch.dtype) -> float:
    groups = [list(range(i, i + 2)) for i in range(0, 16, 2)]
    model = hf_share.share(llama(16).to(dtype), hf_share.FoldConfig(groups=groups))
    unique = sum(p.numel() * p.element_size() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return file_bytes(Path(folder)) / unique


def main() -> None:
    adapters = {
        "hf_share ShareA": hf_share.ShareLoraConfig(r=16, share="A", target_modules=TARGETS),
        "peft LoRA": LoraConfig(r=16, target_modules=TARGETS),
        "peft VeRA": VeraConfig(r=64, target_modules=["q_proj", "v_proj"], save_projection=True),
    }
    report("files", {
        "adapters": {name: adapter_bytes(config) for name, config in adapters.items()},
        "checkpoint_bytes_over_unique": {
            str(d).removeprefix("torch."): round(checkpoint_bytes(d), 5) for d in (torch.float32,
            torch.bfloat16)
        },
    })  # fmt: skip


if __name__ == "__main__":
    main()

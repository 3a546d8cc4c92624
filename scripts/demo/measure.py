# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/demo/measure.py FOLDER --probe PROBE.safetensors [--write]

One model in a process of its own: loads FOLDER as any user would, and prints as JSON the load time, decode
speed, peak memory and, against the logits in PROBE, whether it computes the same numbers bit for bit. With
--write it writes them.
"""

import argparse
import json
import sys
import time

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import hf_share  # noqa: F401 - lets transformers load shared checkpoints
from hf_share.eval.memory import memory_rise


NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument(
        "--probe", required=True, help="safetensors file with `ids` (n, length), and `logits`"
    )
    parser.add_argument("--write", action="store_true", help="write the logits into the probe")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with memory_rise() as rise:
        report = measure(options)
    json.dump({**report, "peak_mb": round(rise.peak / 1e6, 1)}, sys.stdout)


def measure(options: argparse.Namespace) -> dict:
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.folder).eval()
    loaded = time.perf_counter() - start
    probe = load_file(options.probe)
    with torch.no_grad():
        logits = model(probe["ids"]).logits
    if options.write:
        save_file({"ids": probe["ids"], "logits": logits.contiguous()}, options.probe)
    return {
        "load_seconds": round(loaded, 3),
        "tokens_per_second": round(decode_speed(model, probe["ids"][:1, :16]), 1),
        "equal": "logits" in probe and bool(torch.equal(logits, probe["logits"])),
    }


def decode_speed(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Greedy tokens per second after the prompt; the best of three, since a busy machine only ever slows
    it down.
    """
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": 0,
    }
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        best = max(best, NEW_TOKENS / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/demo/measure.py FOLDER --probe PROBE.safetensors [--write]

One model in a process of its own: loads FOLDER as any user would, and prints as JSON the load time, decode
speed, peak memory and, against the logits in PROBE, whether it computes the same numbers bit for bit. With
--write it writes them.
"""

import argparse
import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import hf_share  # noqa: F401 - lets transformers load shared checkpoints


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
    before = resident("VmRSS")
    forget_peak()
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.folder).eval()
    loaded = time.perf_counter() - start
    probe = load_file(options.probe)
    with torch.no_grad():
        logits = model(probe["ids"]).logits
    if options.write:
        save_file({"ids": probe["ids"], "logits": logits.contiguous()}, options.probe)
    report = {
        "load_seconds": round(loaded, 3),
        "tokens_per_second": round(decode_speed(model, probe["ids"][:1, :16]), 1),
        "peak_mb": round(resident("VmHWM") - before, 1),  # above what the imports hold
        "equal": "logits" in probe and bool(torch.equal(logits, probe["logits"])),
    }
    json.dump(report, sys.stdout)


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


def resident(what: str) -> float:
    """Resident memory of this process in MB: `VmRSS` now, `VmHWM` at its peak; off Linux always the peak."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) / 1e3
    except OSError:
        scale = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts in bytes, others in kB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def forget_peak() -> None:
    """Start the peak anew: the imports' own was higher than a small model will reach."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Memory and time to cut one size out of an elastic checkpoint of the shape of a 7B model.

    python scripts/bench/slice.py [--ffn 0.5] [--output model_cards/results/slice.json]

The checkpoint is a file of holes, which reads as zeros and takes no room; what is written takes as much as
the smaller model has.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as tf

import hf_share
from hf_share.filesize import HEADER, data_bytes, entry, in_order, tensors_of
from hf_share.hub.slicer import slice_checkpoint


LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip


def write_holes(folder: Path) -> None:
    """An elastic checkpoint of that shape, in bfloat16."""
    config = tf.LlamaConfig(**LLAMA_7B, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config).to(torch.bfloat16)
    hf_share.share(model, hf_share.ElasticConfig(preset="matformer"))
    header, end, tensors = dict(HEADER), 0, tensors_of(model)
    for name in in_order(tensors):
        header |= entry(name, tensors[name], end)
        end += data_bytes(tensors[name])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    model.config.save_pretrained(folder)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)


def measure(folder: Path, ffn: float) -> dict[str, float]:
    """In a process of its own, whose peak is that of the slicer and its imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    out = slice_checkpoint(folder, folder / "small", ffn=ffn, plain=True, progress=False)
    seconds = time.perf_counter() - start
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "source_gb": (folder / "model.safetensors").stat().st_size / 1e9, "written_gb": written / 1e9,
        "seconds": seconds, "imports_gb": before * 1024 / 1e9, "peak_gb": peak * 1024 / 1e9,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ffn", type=float, default=0.5)
    parser.add_argument("--output", default="model_cards/results/slice.json")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(Path(args.inside), args.ffn)))
        return
    with tempfile.TemporaryDirectory() as home:
        write_holes(Path(home))
        command = [sys.executable, __file__, "--inside", home, "--ffn", str(args.ffn)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found = {"shape": "llama-7b", "ffn": args.ffn, **{name: round(value, 3) for name, value in found.items()}}
    Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

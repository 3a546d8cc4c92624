# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: shapes, fresh processes, interleaved medians, and a JSON line with the
machine's words.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_share.compare.record import Record, hash_of, model_hash


def llama(layers: int, width: int = 512, vocab: int = 8192, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of real proportions and random weights: speed and size do not depend on what it knows."""
    torch.manual_seed(seed)
    heads = width // 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def resumable(doc: str) -> argparse.ArgumentParser:
    """The options of a benchmark of models whose cells are kept as they are done."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cells", default="*")
    adopt = "results that do not say what they are of are of these models, texts and lengths"
    parser.add_argument("--adopt", action="store_true", help=adopt)
    return parser


def recorded(options: argparse.Namespace, free: tuple[str, ...] = ()) -> Record:
    """What decides the numbers of such a benchmark beside a cell's name: models, texts, lengths."""
    free = ("models", "jobs", "cells", "adopt", "seeds", *free)
    of = {k: v for k, v in vars(options).items() if k not in free}
    of |= {k: hash_of(v) for k, v in of.items() if k in ("text", "train", "test")}
    return Record({**of, **{Path(model).name: model_hash(model) for model in options.models}})


def of_model(doc: str) -> argparse.ArgumentParser:
    """The options of a benchmark of one model."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a causal language model: Hub id or folder")
    return parser


def median_in_turn(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Each run in turn, A B A B ..., so that a machine whose speed drifts is fair to all; the median of
    each.
    """
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seen[name].append(run())
    return {name: statistics.median(values) for name, values in seen.items()}


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fresh(code: str, *arguments: str) -> dict:
    """Run `code` in a process of its own; its last line of output is JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def file_bytes(folder: str | Path) -> int:
    return sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))


def report(name: str, result: dict) -> None:
    """Print the result, and write it to model_cards/results/<name>.json."""
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    out = {"bench": name, "torch": torch.__version__, "machine": machine, **result}
    text = json.dumps(out, indent=2)
    print(text)
    folder = Path(__file__).resolve().parents[2] / "model_cards" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.json.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.rename(folder / f"{name}.json")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""make demo    or    python scripts/demo/demo.py [--model ID_OR_PATH] [--text FILE_OR_DATASET] [--minutes 5]

The main job end to end: take a small real language model, let neighbouring layers share their weights, heal
it for a few minutes on real text, measure, save, and load it again in a fresh process with the same logits
bit for bit. Without options it needs no network: the text is the running Python's own standard library, and
the model is trained on it once, by recipes/pretrain.yaml in as many steps as fit in a few minutes, and kept
in runs/base.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

import hf_share
from hf_share.eval.perplexity import Perplexity, perplexity
from hf_share.plots import plot_tradeoff
from hf_share.train.heal import HealConfig, heal
from hf_share.train.pretrain import PretrainConfig, model_config, pretrain
from hf_share.train.text import load_text, target_bytes, windows


HERE = Path(__file__).resolve().parent
console = Console()


def main() -> None:
    options = parse()
    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 2)))
    start, out = time.monotonic(), Path(options.output)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    console.rule("1  a dense model and real text")
    options.model = options.model or base_model(options.base_minutes)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = load_text(options.text)
    dense = load(options.model)
    context = min(options.context, getattr(dense.config, "max_position_embeddings", options.context))
    train = windows(tokenizer, text.train, context)
    heldout = windows(tokenizer, text.heldout, context)[: options.eval_windows]
    size = target_bytes(tokenizer, heldout)
    console.print(
        f"{options.model}: {dense.num_parameters():,} parameters, {dense.config.num_hidden_layers} layers"
    )
    console.print(
        f"{text.source}: {train.numel():,} tokens to train on, {heldout.numel():,} held out, of other files"
    )

    def measured(model: torch.nn.Module, name: str) -> dict:
        result = perplexity(model, heldout, text_bytes=size)
        console.print(f"{name}: {result}")
        return row(model, tokenizer, out / name.replace(" ", "-").replace("+", "and"), name, result)

    rows = [measured(dense, "dense")]

    console.rule("2  fold: neighbours in the middle share one layer's weights")
    layers = dense.config.num_hidden_layers
    config = hf_share.FoldConfig(groups=middle_pairs(layers))
    folded = hf_share.share(load(options.model), config)
    description = hf_share.describe(folded)
    console.print(str(description))
    kept = len(config.groups)
    dropped = hf_share.share(load(options.model), hf_share.FoldConfig(remove=list(range(kept, layers))))
    rows += [measured(dropped, "drop-last"), measured(folded, "folded")]
    description.plot(out / "grid.png")

    console.rule("3  heal: a ShareLoRA adapter learns from the dense model")
    settings = HealConfig(
        steps=options.steps, minutes=options.minutes, context=context, output=str(out), r=options.rank,
        learning_rate=options.learning_rate,
    )  # fmt: skip
    healed = heal(folded, train, teacher=dense, config=settings)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    rows.append(measured(healed, "folded + healed"))

    console.rule("4  load each in a fresh process")
    probe = out / "probe.safetensors"
    ids = heldout[:2, :64].contiguous()
    with torch.no_grad():
        save_file({"ids": ids, "logits": healed(ids).logits.contiguous()}, probe)
    for entry in rows:
        entry |= fresh(entry["path"], probe)
    report(rows, out, time.monotonic() - start)
    if not rows[-1]["equal"]:
        raise SystemExit("the reloaded model does not compute the same logits")
    expected = load_file(probe)["logits"].shape
    console.print(
        f"reloaded in a fresh process: logits {tuple(expected)} are [bold green]bit-equal[/bold green]"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="a causal language model: Hub id or folder; a small one is trained once if not given"
    )
    parser.add_argument("--text", default="stdlib", help="stdlib, a text or .jsonl file, or a data set id")
    parser.add_argument("--output", default="runs/demo")
    parser.add_argument("--base-minutes", type=float, default=2.5, help="for training the default model")
    parser.add_argument("--minutes", type=float, default=1.5, help="healing stops after so long")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--eval-windows", type=int, default=128, help="held-out windows to measure on")
    return parser.parse_args()


def base_model(minutes: float) -> str:
    """The folder of the default model, trained if it is not there yet."""
    folder = Path("runs/base")
    if (folder / "model.safetensors").exists():
        return str(folder)
    recipe = PretrainConfig.load(HERE.parents[1] / "recipes" / "pretrain.yaml", {"output": str(folder)})
    seconds = {bf16: step_seconds(recipe, bf16) for bf16 in (True, False)}
    bf16 = seconds[True] < seconds[False]  # not on every CPU
    steps = max(min(int(60 * minutes / seconds[bf16]), recipe.steps), 40)
    recipe = replace(
        recipe, steps=steps, warmup_steps=steps // 20, decay_steps=steps // 2, save_steps=steps, bf16=bf16
    )
    console.print(f"training a small model on the standard library: {steps} steps")
    console.print(f"held out: {pretrain(recipe)}")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return str(folder)


def step_seconds(recipe: PretrainConfig, bf16: bool) -> float:
    """Time of a training step on this machine: the second of two, since the first also warms up."""
    model = LlamaForCausalLM(model_config(recipe, recipe.vocab_size))
    ids = torch.randint(0, recipe.vocab_size, (recipe.batch, recipe.context))
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    return time.perf_counter() - start


def load(model: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()


def middle_pairs(layers: int) -> list[list[int]]:
    """The first and the last layer alone, neighbours between them in pairs: 8 layers become 5 sets of
    weights.
    """
    inner = list(range(1, layers - 1))
    return [[0], *(inner[i : i + 2] for i in range(0, len(inner), 2)), [layers - 1]]


def row(model: torch.nn.Module, tokenizer: object, path: Path, name: str, result: Perplexity) -> dict:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    description = hf_share.describe(model)
    return {
        "name": name,
        "path": str(path),
        "bytes": sum(f.stat().st_size for f in path.glob("*.safetensors")),
        "stored": description.stored,
        "used": description.used,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
    }


def fresh(folder: str, probe: Path) -> dict:
    command = [sys.executable, str(HERE / "measure.py"), folder, "--probe", str(probe)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"loading {folder} in a fresh process failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


MEASURES = {
    "on disk": lambda r, dense: f"{r['bytes'] / 1e6:.2f} MB",
    "  of dense": lambda r, dense: f"{r['bytes'] / dense['bytes']:.2f}",
    "parameters stored": lambda r, dense: f"{r['stored'] / 1e6:.2f} M",
    "parameters used": lambda r, dense: f"{r['used'] / 1e6:.2f} M",
    "perplexity": lambda r, dense: f"{r['perplexity']:.2f}",
    "bits per byte": lambda r, dense: f"{r['bits_per_byte']:.3f}",
    "decoding": lambda r, dense: f"{r['tokens_per_second']:.0f} tok/s",
    "peak memory": lambda r, dense: f"{r['peak_mb']:.0f} MB",
    "loading": lambda r, dense: f"{r['load_seconds']:.2f} s",
}


def report(rows: list[dict], out: Path, seconds: float) -> None:
    table = Table("", title=f"\n{out}: measured on held-out text, {seconds / 60:.1f} minutes in all")
    for entry in rows:
        table.add_column(entry["name"], justify="right")
    for name, cell in MEASURES.items():
        table.add_row(name, *(cell(entry, rows[0]) for entry in rows))
    console.print(table)
    plot_tradeoff(rows, out / "tradeoff.png")
    part = out / "results.json.part"
    part.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    part.rename(out / "results.json")
    console.print(f"plots: {out / 'tradeoff.png'} (size against perplexity)")
    console.print(f"       {out / 'grid.png'} (which depth uses which weights)")


if __name__ == "__main__":
    main()

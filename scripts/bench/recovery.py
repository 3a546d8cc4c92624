# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/recovery.py --model MODEL --train FILE --test FILE [--tasks A,B --include-path FOLDER]

What a person gets who makes a model smaller and heals it, by the commands of the README alone: the model, the
same with as much training, the smaller one before and after healing, one whose last layers were left out and
that was healed alike, and NF4 of the model and of the healed one. `hf-share eval` writes the table, page and
plot (model_cards/results/recovery.*). What is made lies in --work; a run that was interrupted goes on.
"""

import subprocess
import sys
from pathlib import Path

from _common import of_model

from hf_share.hub.outline import file_bytes
from hf_share.shapes import build_on_meta
from hf_share.sites import stacks


OUTPUT = Path(__file__).resolve().parents[2] / "model_cards" / "results" / "recovery"
DENSE, MORE, SMALL, HEALED, SHORT, SHORT_HEALED = (
    "dense", "dense-same-tokens", "small", "healed", "drop-last", "drop-last-healed"
)  # fmt: skip


def hf_share(*words):
    print("hf-share", *words, flush=True)
    subprocess.run([Path(sys.executable).with_name("hf-share"), *map(str, words)], check=True)


def last_layers(model, most):
    """The last layers of a folder's model that must go for a file of at most `most` bytes."""
    from transformers import AutoConfig

    built = build_on_meta(AutoConfig.from_pretrained(model))
    layers = next(iter(stacks(built).values())).layers
    each = sum(p.numel() for p in layers[0].parameters())
    whole = sum(p.numel() for p in built.parameters())
    gone = next(n for n in range(len(layers)) if whole - n * each <= most / file_bytes(model) * whole)
    return [str(i) for i in range(len(layers) - gone, len(layers))]


def main():
    parser = of_model(__doc__)
    parser.add_argument("--train", required=True, help="a text file to measure layers and to heal on")
    parser.add_argument("--test", required=True, help="another, whose perplexity is told")
    parser.add_argument("--target-bytes", default="0.6")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tasks", help="of lm-eval, by name, with commas")
    parser.add_argument("--include-path", help="a folder with their files")
    parser.add_argument("--limit", type=int, default=250, help="items of a task")
    parser.add_argument("--work", default="runs/recovery", help="folder for the models")
    options = parser.parse_args()
    if not Path(options.model).is_dir():
        parser.error(f"--model {options.model}: a folder is needed here")
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    dense, more, small, healed, short, short_healed = (
        work / name for name in (DENSE, MORE, SMALL, HEALED, SHORT, SHORT_HEALED)
    )
    if not dense.exists():
        dense.symlink_to(Path(options.model).resolve())  # the table calls a model by its folder
    if not small.exists():
        hf_share("share", dense, "--target-bytes", options.target_bytes, "--text", options.train, "-o", small)
    if not short.exists():
        hf_share("share", dense, "--remove", ",".join(last_layers(dense, file_bytes(small))), "-o", short)
    for start, end in ((small, healed), (short, short_healed), (dense, more)):
        text = ("--text", options.train, "--train", "full", "--steps", options.steps)
        hf_share("train", "heal", start, "--teacher", dense, *text, "-o", end)
    models = [dense, more, small, healed, short, short_healed, f"{dense}@quant=nf4", f"{healed}@quant=nf4"]
    tasks = ["--tasks", options.tasks, "--limit", options.limit] if options.tasks else []
    tasks += ["--include_path", options.include_path] if options.include_path else []
    hf_share("eval", *models, *tasks, "--text", options.test, "--speed", "-o", OUTPUT)


if __name__ == "__main__":
    main()

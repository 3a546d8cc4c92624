# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/early_exit.py --model MODEL --train TEXT --test TEXT

A recursive model of two loops, uptrained from a dense one, and then taught to stop after the first loop: the
perplexity of both exits before and after, for strict recursion and with a LoRA for each visit.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from _common import of_model, report
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_share
from hf_share.eval.perplexity import perplexity
from hf_share.train.early_exit import EarlyExitConfig, exit_perplexities, train_exits
from hf_share.train.heal import HealConfig, heal
from hf_share.train.text import load_text, windows


RANKS = {"strict": 0, "relaxed": 32}


def main() -> None:
    parser = of_model(__doc__)
    parser.add_argument("--train", required=True, help="a text file")
    parser.add_argument("--test", required=True, help="another, of which the first part is measured on")
    parser.add_argument("--uptrain-steps", type=int, default=240)
    parser.add_argument("--exit-steps", type=int, default=100)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64, help="of held-out text")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = windows(tokenizer, load_text(options.train).train, options.context)
    heldout = windows(tokenizer, load_text(options.test).train, options.context)[: options.windows]
    found = {name: measure(options, rank, train, heldout) for name, rank in RANKS.items()}
    report("early_exit", {
        "model": Path(options.model).name, "train": Path(options.train).name, "test": Path(options.test).name,
        "uptrain_steps": options.uptrain_steps, "exit_steps": options.exit_steps, "batch": 8,
        "context": options.context, "windows": options.windows,
        "dense_perplexity": round(perplexity(dense(options), heldout, progress=False).perplexity, 3), **found,
    })  # fmt: skip


def dense(options):
    return AutoModelForCausalLM.from_pretrained(options.model, dtype="float32").eval()


def measure(options, rank, train, heldout):
    """First and last exit's perplexity of one model, before and after it is taught to stop."""
    model = hf_share.share(dense(options), hf_share.RecursiveConfig(num_loops=2, lora_rank=rank))
    half = len(train) // 2  # the exits learn from text that uptraining has not seen
    with TemporaryDirectory() as folder:
        common = {"batch": 8, "context": options.context, "output": f"{folder}/run"}
        uptrain = HealConfig(
            train="full", steps=options.uptrain_steps, learning_rate=1e-3, warmup_steps=12, **common
        )
        model = heal(model, train[:half], dense(options), uptrain)
        before = exit_perplexities(model, heldout, progress=False)
        after_uptraining = EarlyExitConfig(steps=options.exit_steps, **{**common, "output": f"{folder}/exit"})
        model = train_exits(model, train[half:], after_uptraining)
        after = exit_perplexities(model, heldout, progress=False)
    return {
        "lora_rank": rank,
        "before": {"first": round(before[0].perplexity, 3), "last": round(before[-1].perplexity, 3)},
        "after": {"first": round(after[0].perplexity, 3), "last": round(after[-1].perplexity, 3)},
    }


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Small runs of every recipe, and a process that is killed in the middle of them: python killed.py FOLDER

For each case a child is forked that trains and kills itself with SIGKILL at a point of its second save.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zoo

import hf_share
from hf_share.train import checkpoints
from hf_share.train.data import prepare, split
from hf_share.train.early_exit import EarlyExitConfig, train_exits
from hf_share.train.elastic import ElasticRunConfig, train_elastic
from hf_share.train.finetune import FinetuneConfig, finetune
from hf_share.train.heal import HealConfig, heal
from hf_share.train.pretrain import PretrainConfig, pretrain, train_tokenizer


LINES = [f"def f{i}(x):\n    return x * {i} + {i % 7}\n\n" for i in range(150)]
SHORT = {
    "steps": 6, "batch": 2, "context": 16, "warmup_steps": 1, "save_steps": 2, "eval_steps": 2,
    "eval_windows": 8, "log_steps": 3, "learning_rate": 1e-2,
}  # fmt: skip
DROPOUT = {"method": "share_lora", "r": 2, "lora_dropout": 0.3, "target_modules": "all-linear"}


def write_text(folder: Path) -> dict[str, str]:
    """One text, as a file of many documents."""
    (folder / "text.txt").write_text("<|endoftext|>".join(LINES))
    return {"text": str(folder / "text.txt")}


def model() -> Any:
    return zoo.build("llama", vocab_size=300)


def data(config: Any):
    parts = split(config)
    return prepare(config, train_tokenizer(parts.train, vocab_size=290, context=64), parts)


def finetuned(folder: Path, text: dict[str, Any], **more: Any) -> Any:
    config = FinetuneConfig(output=str(folder), adapter=DROPOUT, **text, **{**SHORT, **more})
    got = data(config)
    return finetune(model(), got.train, config, got.validation)


def streamed(folder: Path, text: dict[str, Any], **more: Any) -> Any:
    return finetuned(folder, {**text, "streaming": True, "max_bytes": 4000}, **more)


def healed(folder: Path, text: dict[str, Any]) -> Any:
    config = HealConfig(output=str(folder), norms=True, r=2, **text, **SHORT)
    got = data(config)
    small = hf_share.share(model(), hf_share.FoldConfig(remove=[3], group_size=2))
    return heal(small, got.train, model(), config, got.validation)


def elastic(folder: Path, text: dict[str, Any]) -> Any:
    config = ElasticRunConfig(output=str(folder), accumulation=2, **text, **SHORT)
    got = data(config)
    torch.manual_seed(3)
    made = hf_share.share(model(), hf_share.ElasticConfig(group_size=16, lora_dropout=0.2))
    return train_elastic(made, got.train, model(), config, got.validation)


def exits(folder: Path, text: dict[str, Any]) -> Any:
    config = EarlyExitConfig(output=str(folder), **text, **SHORT)
    got = data(config)
    small = hf_share.share(model(), hf_share.RecursiveConfig(num_loops=2))
    return train_exits(small, got.train, config, got.validation)


def pretrained(folder: Path, text: dict[str, Any]) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "decay_steps": 2}
    config = PretrainConfig(output=str(folder), **sizes, **heads, **text, **SHORT)
    pretrain(config)
    return AutoModelForCausalLM.from_pretrained(folder)


RUNS: dict[str, Callable[..., Any]] = {
    "finetune": finetuned, "stream": streamed, "heal": healed, "early_exit": exits, "pretrain": pretrained,
    "elastic": elastic,
}  # fmt: skip


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def second(place: Any, name: str, then: bool = False) -> None:
    """Die at the call of a function that belongs to the second save, before it or right after."""
    real = getattr(place, name)

    def bomb(*args: Any, **kwargs: Any) -> Any:
        if "checkpoint-4" not in " ".join(map(str, [*args, *kwargs.values()])):
            return real(*args, **kwargs)
        if then:
            real(*args, **kwargs)
        die()

    setattr(place, name, bomb)


POINTS: dict[str, Callable[[], None]] = {
    "before": lambda: second(checkpoints.Trainer, "save_model"),
    "optimizer": lambda: second(torch, "save"),
    "mark": lambda: second(checkpoints, "write_text"),
    "after": lambda: second(checkpoints, "write_text", then=True),
}
CASES = [("finetune", point) for point in POINTS]
CASES += [(run, "optimizer") for run in RUNS if run != "finetune"] + [("stream", "after")]


def main(folder: Path) -> None:
    text = write_text(folder)
    for run, point in CASES:
        child = os.fork()
        if not child:
            POINTS[point]()
            RUNS[run](folder / f"{run}-{point}", text)
            os._exit(0)  # it lived
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (run, point, status)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

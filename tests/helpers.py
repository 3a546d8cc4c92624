# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Shared models and training sets for the tests of checkpoints, and what they count in a file."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf
from safetensors import safe_open
from torch import nn

import hf_share


FOLD = {"remove": [3], "group_size": 2}


def recipe(kind: str) -> hf_share.ShareConfig:
    """`fold` has ties, `lora` stores and private tensors, `both` all of them."""
    fold = hf_share.FoldConfig(**FOLD)
    lora = hf_share.ShareLoraConfig(r=2, target_modules="all-linear", init_weights=False)
    return {"fold": fold, "lora": lora, "both": hf_share.ShareConfig(methods=[fold, lora])}[kind]


def shared(model: nn.Module, kind: str = "both") -> nn.Module:
    torch.manual_seed(5)
    return hf_share.share(model, recipe(kind))


def stored(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a folder's files. A name stored twice is an error."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            for key in f.keys():
                assert key not in found, f"{key} is stored twice"
                found[key] = tuple(f.get_slice(key).get_shape())
    return found


def elements(folder: str | Path) -> int:
    return sum(torch.Size(shape).numel() for shape in stored(folder).values())


def unique(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def pointers(model: nn.Module) -> list[list[str]]:
    """Names that share a tensor, as sorted groups: equal lists mean equal sharing."""
    groups: dict[int, list[str]] = {}
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in (pair for kind in named for pair in kind):
        groups.setdefault(tensor.data_ptr(), []).append(name)
    return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def rows(count: int = 8, length: int = 8, seed: int = 3) -> list[dict[str, torch.Tensor]]:
    """A training set of token rows."""
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (count, length), generator=gen)
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model: nn.Module, folder: str | Path, steps: int = 4, **args) -> tf.Trainer:
    defaults = {
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [],
        "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 7,
    }  # fmt: skip
    arguments = tf.TrainingArguments(output_dir=str(folder), **{**defaults, **args})
    return tf.Trainer(model=model, args=arguments, train_dataset=rows(), eval_dataset=rows(4, seed=4))

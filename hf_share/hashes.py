# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Short hashes, by which weights and texts are known again: of names, types, shapes and every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def new() -> Any:
    return hashlib.blake2b(digest_size=8)


def add(digest: Any, name: str, tensor: Tensor) -> None:
    held = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {held.dtype} {tuple(held.shape)} ".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy())


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The hash of named tensors, whatever their order."""
    digest = new()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        add(digest, name, tensor)
    return digest.hexdigest()

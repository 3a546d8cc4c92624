# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of fused weights: which rows of a `qkv` are the queries.

Two layouts exist. *Blocks*: all query rows, then all key rows, then all value rows (GPT-2's `c_attn`, Phi-3's
`qkv_proj`, `gate_up_proj`). *Interleaved*: for each head, or each group of heads that share a key, its query
rows, then its key rows, then its value rows (GPT-NeoX, Falcon). A `Part` describes both: `repeat` runs of
`width` rows, one every `stride` rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


QKV = {
    "c_attn": "blocks",
    "qkv_proj": "blocks",
    "Wqkv": "blocks",
    "qkv": "blocks",
    "query_key_value": "interleaved",
}
HALVES = {"gate_up_proj": ("gate", "up")}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows `start .. start + width` of each of `repeat` runs of `stride` rows of a fused weight."""

    name: str
    start: int
    width: int
    stride: int
    repeat: int = 1

    @property
    def size(self) -> int:
        """Number of rows, the part's `out_features`."""
        return self.width * self.repeat

    def rows(self, device=None) -> torch.Tensor:
        """Row numbers in the fused weight, shape (size,)."""
        run = torch.arange(self.start, self.start + self.width, device=device)
        return (run + self.stride * torch.arange(self.repeat, device=device)[:, None]).flatten()

    def place(self, y: torch.Tensor) -> torch.Tensor:
        """The part's output (..., size) as output of the whole (..., stride * repeat), zero elsewhere."""
        runs = y.unflatten(-1, (self.repeat, self.width))
        return F.pad(runs, (self.start, self.stride - self.start - self.width)).flatten(-2)


def fused_parts(base: torch.nn.Module, path: str, out: int, config: Any) -> tuple[Part, ...]:
    """The parts of the weight at `path` with `out` rows; empty if it is not fused or its layout is not
    known.
    """
    leaf = path.rpartition(".")[2]
    if leaf in HALVES and out % 2 == 0:
        return tuple(
            Part(name=n, start=i * out // 2, width=out // 2, stride=out) for i, n in enumerate(HALVES[leaf])
        )
    if leaf not in QKV or config is None:
        return ()
    heads, groups = _heads(config)
    if not heads:
        return ()
    if (
        QKV[leaf] == "interleaved"
        and getattr(config, "multi_query", False)
        and not getattr(config, "new_decoder_architecture", False)
    ):
        return _blocks(out, heads, 1)
    if QKV[leaf] == "interleaved":
        grouped = groups if getattr(config, "new_decoder_architecture", False) else heads
        return _interleaved(out, heads, grouped)
    return _blocks(out, heads, groups)


def _heads(config: Any) -> tuple[int, int]:
    """(query heads, key heads) of the config, (0, 0) if it names none."""
    get = getattr(config, "get_text_config", lambda: config)()
    heads = getattr(get, "num_attention_heads", 0) or 0
    groups = getattr(get, "num_key_value_heads", None) or getattr(get, "num_kv_heads", None) or heads
    return heads, groups


def _blocks(out: int, heads: int, groups: int) -> tuple[Part, ...]:
    head = out // (heads + 2 * groups)
    if head * (heads + 2 * groups) != out:
        return ()
    q, kv = heads * head, groups * head
    return (
        Part(name="q", start=0, width=q, stride=out),
        Part(name="k", start=q, width=kv, stride=out),
        Part(name="v", start=q + kv, width=kv, stride=out),
    )


def _interleaved(out: int, heads: int, groups: int) -> tuple[Part, ...]:
    per_group = heads // groups + 2
    head = out // (groups * per_group)
    if head * groups * per_group != out:
        return ()
    stride, q = per_group * head, (per_group - 2) * head
    return (
        Part(name="q", start=0, width=q, stride=stride, repeat=groups),
        Part(name="k", start=q, width=head, stride=stride, repeat=groups),
        Part(name="v", start=q + head, width=head, stride=stride, repeat=groups),
    )

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A teacher's logits kept on disk, so that a window that comes again costs a read instead of a pass.

A window is asked of the teacher when it first comes and read from then on, by this run and by later ones.

* Full: (context, vocabulary) in float32 for each window. A window that is read is to the bit what was
  computed; a teacher that is asked again may round otherwise in another batch.
* Top k: per position the k largest logits over T in float32, their tokens, and the log of the sum over all
  tokens. The k probabilities are exact; the rest is one outcome, so that
      KL_k = sum over i <= k of p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest) <= KL,
  equal to KL where k is the vocabulary. Only the full form can tell tokens of the rest apart.

Windows have records of one length in one file, which is as large as what was written; a byte in a second
file says that a record is whole, and is written after it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..dense import is_torchs_own
from ..errors import ConfigError
from ..files import write_text
from ..ties import attached


@dataclass(frozen=True)
class TopLogits:
    """What is kept of a distribution at temperature T."""

    values: Tensor  # (batch, length, k), logits / T
    tokens: Tensor  # (batch, length, k)
    total: Tensor  # (batch, length), log of the sum of exp(logits / T) over the vocabulary

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float) -> TopLogits:
        scaled = logits.float() / temperature
        values, tokens = scaled.topk(k, dim=-1)
        return cls(values, tokens, scaled.logsumexp(-1))

    def divergence(self, own: Tensor, kept: Tensor) -> Tensor:
        """KL_k summed over tokens.

        Args:
            own: the student's log probabilities (tokens, vocabulary).
            kept: which positions (batch, length - 1) they are of.
        """
        parts = (self.values, self.tokens, self.total)
        values, tokens, total = (part[:, :-1][kept].to(own.device) for part in parts)
        log_p, log_q = values - total[:, None], own.gather(-1, tokens.long())
        loss = (log_p.exp() * (log_p - log_q)).sum()
        rest = (1.0 - log_p.exp().sum(-1)).clamp(min=0.0)
        tiny = torch.finfo(torch.float32).eps
        q_rest = (1.0 - log_q.exp().sum(-1)).clamp(min=tiny)
        counted = torch.where(rest > tiny, rest * (rest.clamp(min=tiny).log() - q_rest.log()), 0.0)
        return loss + counted.sum()


class TeacherCache:
    """Logits of the windows of one training set.

    Args:
        folder: made if new; what another teacher or other windows left there is refused.
        count, context, vocabulary: shape of what is kept, window by window.
        top_k: logits kept at a position; 0: all.
        temperature: of the loss.
        of: what tells this teacher and these windows from others.
    """

    def __init__(
        self, folder: str | Path, count: int, context: int, vocabulary: int, *, top_k: int = 0,
        temperature: float = 1.0, of: str = "",
    ):  # fmt: skip
        if top_k > vocabulary:
            raise ConfigError(f"teacher_top_k={top_k}: the vocabulary has {vocabulary} tokens")
        self.context, self.vocabulary, self.k, self.temperature = context, vocabulary, top_k, temperature
        self.shape = (context, 2 * top_k + 1) if top_k else (context, vocabulary)
        self.size = 4 * self.shape[0] * self.shape[1]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        known = {"of": of, "count": count, "context": context, "vocabulary": vocabulary, "top_k": top_k}
        _claim(folder / "cache.json", {**known, **({"temperature": temperature} if top_k else {})})
        files = (folder / "records.bin", folder / "whole.bin")
        self.records, self.whole = (os.open(file, os.O_RDWR | os.O_CREAT, 0o666) for file in files)

    def get(self, index: Sequence[int], ask: Callable[[], Tensor]) -> Tensor | TopLogits:
        """The teacher's logits of some windows, from the disk or else from `ask`, a pass over all of them."""
        missing = [place for place, i in enumerate(index) if os.pread(self.whole, 1, i) != b"\1"]
        if missing:
            rows = self._rows(ask().detach().float().cpu())
            for place in missing:
                self._write(index[place], rows[place])
        return self._unpack(torch.stack([self._read(i) for i in index]))

    def _rows(self, logits: Tensor) -> Tensor:
        if not self.k:
            return logits
        top = TopLogits.of(logits, self.k, self.temperature)
        tokens = top.tokens.to(torch.int32).view(torch.float32)  # their bits, in a record of one type
        return torch.cat([top.values, tokens, top.total[..., None]], dim=-1)

    def _unpack(self, rows: Tensor) -> Tensor | TopLogits:
        if not self.k:
            return rows
        values, tokens, total = rows.split([self.k, self.k, 1], dim=-1)
        return TopLogits(values, tokens.contiguous().view(torch.int32).long(), total[..., 0])

    def _write(self, i: int, row: Tensor) -> None:
        data, at = memoryview(row.contiguous().numpy().tobytes()), i * self.size
        while data:  # a full disk raises here, and the record does not count
            done = os.pwrite(self.records, data, at)
            data, at = data[done:], at + done
        os.pwrite(self.whole, b"\1", i)

    def _read(self, i: int) -> Tensor:
        data = os.pread(self.records, self.size, i * self.size)
        return torch.from_numpy(np.frombuffer(data, dtype=np.float32).reshape(self.shape).copy())


def _claim(file: Path, known: dict) -> None:
    if not file.exists():
        write_text(file, json.dumps(known))
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    if found != known:
        other = ", ".join(key for key in known if found.get(key) != known[key]) or "settings"
        raise ConfigError(
            f"{file.parent} holds the logits of another teacher, other text or other numbers (different: "
            f"{other}); name another folder by teacher_cache"
        )


def weights_name(model: nn.Module) -> str:
    """A short name of a model's weights: it differs where its plan, the choices made in it, names, shapes or
    any of some thousand numbers of a tensor, taken from all over it, differ. Quantised weights of other
    libraries are not looked at.
    """
    digest = hashlib.sha256()
    record = attached(model)
    digest.update(record.plan.to_json().encode() if record is not None else b"")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not is_torchs_own(tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        some = tensor.detach().flatten()[:: tensor.numel() // 4096 + 1].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What trains and its checkpoints are in float32; the result is stored in the type its model came in.

A step of training is often smaller than what bfloat16 can tell from nothing, so weights need float32 while
they learn. The result does not, and would be twice the file of a bfloat16 model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ..errors import ConfigError, unknown
from ..shapes import DTYPES
from .arguments import RunConfig


M = TypeVar("M", bound=nn.Module)
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class WholeRun(RunConfig):
    """Numbers of a training whose result is a whole model."""

    dtype: str = AUTO  # of the result; auto: that of `model`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in (AUTO, *DTYPES):
            raise unknown("dtype", self.dtype, (AUTO, *DTYPES), ConfigError)

    def result_dtype(self) -> torch.dtype:
        """What the result is stored in."""
        if self.dtype != AUTO:
            return DTYPES[self.dtype]
        return getattr(AutoConfig.from_pretrained(self.model), "dtype", None) or torch.float32


@torch.no_grad()
def as_stored(model: M, dtype: torch.dtype) -> M:
    """The model with what it stores in float32 as `dtype`, in place; tied tensors stay tied.

    `model.to(dtype)` would also round what is not stored, such as the frequencies of rotary positions, which
    a model that is loaded in `dtype` has in float32.
    """
    for tensor in (*model.parameters(), *_stored_buffers(model)):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.to(dtype)
    return model


def _stored_buffers(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer

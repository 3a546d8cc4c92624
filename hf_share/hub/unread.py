# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of an adapter that a file was to bring, and did not.

A config from an adapter's folder says that its tensors follow, so nothing is fitted for them: what a rule
would read off the base's weights starts as NaN. peft only warns of tensors a file lacks, and takes such a
config for a new adapter without a word. So the first forward pass looks, once, and raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..sites import backbone
from .layer import ShareTunerLayer


def expect_file(model: nn.Module, adapter: str) -> None:
    """Look at the tensors of `adapter` before the next forward pass of `model`."""
    backbone(model).register_forward_pre_hook(_RequireRead(adapter))


class _RequireRead:
    def __init__(self, adapter: str):
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        held = dict(_tensors(module, self.adapter))
        if any(t.is_meta for t in held.values()):
            return
        unread = [name for name, tensor in held.items() if tensor.isnan().any()]
        if unread:
            raise CheckpointError(
                f"adapter {self.adapter!r}: {len(unread)} of {len(held)} tensors hold no numbers, "
                f"{unread[0]} first. Its config came from a folder whose file has to bring them: load both "
                "by PeftModel.from_pretrained(model, folder). For a new adapter of the same plan take "
                "hf_share.ShareConfig(plan=config.plan)"
            )
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is self]:
            del hooks[key]


def _tensors(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    for path, layer in model.named_modules():
        for name, held in layer.held() if isinstance(layer, ShareTunerLayer) else ():
            if adapter in held:
                yield f"{path}.{name}", held[adapter]

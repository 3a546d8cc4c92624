# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizers of pretraining.

* Muon (Jordan et al. 2024) for the matrices of the blocks: momentum B_t = mu B_{t-1} + g_t, step -eta 0.2
  sqrt(max(m, n)) NS(B_t) for W of shape (m, n), where NS drives all singular values to about one. The
  factor 0.2 sqrt(max(m, n)) gives the step the typical size of AdamW's (Liu et al. 2025,
  arXiv:2502.16982), so that one learning rate eta serves both Muon and the AdamW that trains embeddings
  and norms, and whatever else is no matrix: stacks of atoms, coefficients.
* AdamW with weight decay on everything that has two dimensions or more. A decay of shared weights acts on all
  layers that use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the block matrices and AdamW on the rest, as one optimizer.

    Groups and state are this object's own, and the two halves work on parts of them: schedulers, gradient
    scaling and checkpoints see an ordinary optimizer with two groups.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        matrices, others = _split_parameters(model)
        self._halves: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        )
        super().__init__([group for half in self._halves for group in half.param_groups], {})
        self._link()

    def _link(self) -> None:
        for half, group in zip(self._halves, self.param_groups, strict=True):
            half.param_groups, half.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._link()  # loading replaced the groups and the state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in self._halves:
            half.step()
        return loss


def adamw(model: nn.Module, *, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW that leaves vectors (norms, biases, coefficients) without decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2))


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Muon is for maps between hidden states, not for embeddings, whose rows are used one by one."""
    ends = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = getattr(model, "lm_head", None)
    ends |= {id(p) for p in head.parameters()} if head is not None else set()
    matrices, others = [], []
    for parameter in model.parameters():
        hidden = parameter.ndim == 2 and id(parameter) not in ends
        (matrices if hidden else others).append(parameter)
    return matrices, others

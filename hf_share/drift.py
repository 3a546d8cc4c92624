# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""How far what a model would say drifts from layer to layer, to cut its layers into groups (MASA).

    h_l = mean over tokens of the hidden state that leaves layer l
    p_l = softmax(head(norm(h_l))),    drift_l = KL(p_l || p_l+1)

Layers between which little drifts do alike, and share. The paper leaves open whether the final norm is
applied, the direction of KL and the cut; here what the model itself applies between its last layer and its
head is applied (found by following one batch through the modules), and G groups are cut at the G - 1 largest
drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .errors import ConfigError, Refused
from .importance import batches, evaluating, only_stack
from .sites import stacks


Call = tuple[nn.Module, Tensor, Tensor]  # a module, what went in, what came out


def kl_drift(model: nn.Module, calibration: Sequence[Any], stack: str | None = None) -> list[float]:
    """KL(p_l || p_l+1) in nats for every two neighbouring layers of `stack`: one number less than layers.

    Args:
        calibration: texts, or batches, as for `block_influence`.
        stack: path of the stack; may be left out if the model has only one.

    Raises:
        Refused: for a model without a head over a vocabulary, or whose head does not follow from the stack's
            last layer by modules alone.
    """
    path = only_stack(model, stack)
    if any(p.is_meta for p in model.parameters()):
        raise Refused(
            "KL drift runs the model, and this one has no values. Load them, or give the groups as a list. "
            "If a method before this one merges layers, share twice: first by that config, then by this one"
        )
    head, layers = _head(model), stacks(model)[path].layers
    data = list(batches(model, calibration))
    with evaluating(model), torch.no_grad():
        tail = _tail(model, layers, head, data[0], path)
        states = _means(model, layers, data)
        for module in (*tail, head):
            states = module(states)
        logs = F.log_softmax(states[0].double(), dim=-1)
    drift = F.kl_div(logs[1:], logs[:-1], reduction="none", log_target=True).sum(-1)
    return drift.clamp_min(0.0).tolist()


def cut(drift: Sequence[float], groups: int) -> list[list[int]]:
    """Layers 0 to len(drift) in `groups` runs, cut at the largest drifts."""
    if groups > len(drift) + 1:
        raise ConfigError(f"{len(drift) + 1} layers cannot be cut into {groups} groups")
    largest = sorted(range(len(drift)), key=lambda i: (-drift[i], i))[: groups - 1]
    edges = [0, *(i + 1 for i in sorted(largest)), len(drift) + 1]
    return [list(range(a, b)) for a, b in zip(edges, edges[1:], strict=False)]


def _head(model: Any) -> nn.Module:
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        raise Refused(
            f"KL drift compares what a model would say, and {type(model).__name__} has no head over a "
            "vocabulary; load it with its head, or give the groups as a list"
        )
    return head


def _means(model: nn.Module, layers: nn.ModuleList, data: list[dict[str, Tensor]]) -> Tensor:
    """Mean over tokens of what leaves each layer, (1, layers, width)."""
    sums: list[Any] = [0.0] * len(layers)
    seen = [0] * len(layers)

    def record(index: int):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            sums[index] = sums[index] + state.double().flatten(0, -2).sum(0)
            seen[index] += state[..., 0].numel()

        return hook

    handles = [layer.register_forward_hook(record(i)) for i, layer in enumerate(layers)]
    try:
        for batch in tqdm(data, desc="KL drift", unit="batch", leave=False):
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    means = torch.stack([total / count for total, count in zip(sums, seen, strict=True)])
    return means.to(next(model.parameters()).dtype)[None]


def _tail(
    model: nn.Module, layers: nn.ModuleList, head: nn.Module, batch: dict[str, Tensor], path: str
) -> list[nn.Module]:
    """The modules through which the last layer's output reaches the head."""
    calls, current, into = _trace(model, layers, head, batch)
    chain: list[nn.Module] = []
    while current is not None and into is not None:
        if _same(current, into):
            return chain
        # a module's hook fires after those of its children, so the last match is the outermost
        at = max((i for i, (_, x, _) in enumerate(calls) if _same(x, current)), default=None)
        if at is None:
            break
        module, _, current = calls[at]
        calls = calls[at + 1 :]
        chain.append(module)
    raise Refused(
        f"KL drift needs what lies between the last layer of {path!r} and the head of {type(model).__name__} "
        "to be modules alone, and it is more; give the groups as a list"
    )


def _trace(
    model: nn.Module, layers: nn.ModuleList, head: nn.Module, batch: dict[str, Tensor]
) -> tuple[list[Call], Tensor | None, Tensor | None]:
    """Calls after the last layer, outside the layers and around no head; the last layer's output; the head's
    input.
    """
    calls: list[Call] = []
    ends: dict[str, Tensor] = {}

    def last(module: nn.Module, args: tuple, output: Any) -> None:
        ends["out"] = output[0] if isinstance(output, tuple) else output

    def before(module: nn.Module, args: tuple) -> None:
        ends["in"] = args[0]

    def call(module: nn.Module, args: tuple, output: Any) -> None:
        if "out" in ends and args and torch.is_tensor(args[0]) and torch.is_tensor(output):
            if args[0].shape[:-1] == output.shape[:-1]:
                calls.append((module, args[0], output))

    inside = {id(m) for m in layers.modules()}
    others = [m for m in model.modules() if id(m) not in inside and not any(c is head for c in m.modules())]
    handles = [layers[-1].register_forward_hook(last), head.register_forward_pre_hook(before)]
    handles += [m.register_forward_hook(call) for m in others]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls, ends.get("out"), ends.get("in")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan for a number of bytes: which layers go, and which share with the layer before them.

Bytes say how many layers u can be stored. Between leaving out the L - u layers of least block influence
(ShortGPT) and keeping all L, of which those of least influence take the weights of the layer before
(FoldGPT), lie all mixtures: k go, and of the L - k that stay, L - k - u share. Block influence cannot say
which k is best, so each is tried on the model itself, and the one that leaves it nearest wins:

    distance(k) = mean over tokens of KL(dense || shared)           in nats, before any healing

The trials are views of the dense model's weights: they take no memory for weights and change none. With
`low_rank` products of two thin matrices are tried as well (`SvdConfig`), which share nothing, often lose
less, and take a decomposition of every weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .describe import readable
from .errors import ConfigError, Refused
from .filesize import file_size, parse_target
from .importance import batches, block_influence, evaluating, only_stack
from .methods.fold import FoldConfig
from .methods.svd import SvdConfig
from .plan import SharePlan
from .shapes import build_on_meta
from .share import share
from .sites import backbone, resolve, stacks
from .targets import select
from .ties import attached


MOST = 9  # trials; more of a deep stack are thinned out evenly


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to reach the bytes: how many layers go, and how many visits the stored ones get; or `ratio`,
    what low-rank factors keep of every layer's numbers.
    """

    removed: int
    stored: int
    visits: int
    bytes: int
    distance: float
    plan: SharePlan
    ratio: float | None = None

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"low-rank, ratio {self.ratio:.3f}"
        shared = self.visits - self.stored
        if not shared:
            return f"remove {self.removed}"
        return f"share {shared}" if not self.removed else f"remove {self.removed}, share {shared}"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan that is nearest to the dense model within `limit` bytes, and what it was chosen from."""

    model: str
    dense: int
    limit: int
    influence: tuple[float, ...]
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial:
        return min(self.trials, key=lambda t: t.distance)

    @property
    def plan(self) -> SharePlan:
        return self.chosen.plan

    @property
    def why(self) -> str:
        """The reason for the choice, for people."""
        best, layers = self.chosen, len(self.influence)
        others = [t for t in self.trials if t is not best]
        stored = min(t.stored for t in self.trials)
        told = f"{stored} of {layers} layers can be stored; {best} is nearest to the dense model of "
        told += f"{len(self.trials)} ways to do it: KL {best.distance:.3f} nats a token, before healing"
        rest = ", ".join(f"{t} {t.distance:.3f}" for t in sorted(others, key=lambda t: t.distance))
        return f"{told} ({rest})" if rest else told

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        trials = [{**asdict(t), "plan": t.plan.to_dict(), "name": str(t)} for t in self.trials]
        sizes = {"dense": self.dense, "asked": self.limit, "got": self.chosen.bytes}
        return {
            "model": self.model, "bytes": sizes, "why": self.why, "influence": list(self.influence),
            "plan": self.plan.to_dict(), "trials": trials,
        }  # fmt: skip


def propose(
    model: nn.Module,
    target: str | float,
    calibration: Sequence[Any],
    stack: str | None = None,
    low_rank: bool = False,
) -> Proposal:
    """The plan of removed and shared layers that is nearest to `model` within `target` bytes.

    Args:
        model: a dense model with a head; it is not changed.
        target: a fraction of the dense file (`0.6`), or a size (`"4GB"`).
        calibration: texts or token batches to rank layers on and to measure distances.
        stack: path of the stack; may be left out if the model has only one.
        low_rank: try low-rank factors, too. A plan of theirs is shared with the same calibration:
            `share(model, plan, calibration)`.

    Raises:
        ConfigError: if no plan of whole layers is that small; it names the smallest.

    Example:
        >>> plan = propose(model, 0.6, texts).plan  # doctest: +SKIP
    """
    sizes, limit = _limited(model, target, stack)
    path = sizes.path
    data = list(batches(model, calibration))
    influence = block_influence(model, data, path)
    free = [d for d in range(sizes.depth) if d not in stacks(model)[path].owners]
    ways = list(_ways(sizes, sorted(free, key=lambda d: (influence[d], d)), limit))
    ways += [found for found in (_low_rank(sizes, limit, data),) if found] if low_rank else []
    distances = _distances(model, [way["plan"] for way in ways], data)
    trials = [Trial(distance=d, **way) for way, d in zip(ways, distances, strict=True)]
    told = tuple(float(f"{score:.6g}") for score in influence)
    return Proposal(
        model=type(model).__name__, dense=sizes.dense, limit=limit, influence=told, trials=tuple(trials)
    )


ASSUMED = "as many layers run as may, and the last of them take the weights of the layer before"


def outline(model: nn.Module, target: str | float, stack: str | None = None) -> SharePlan:
    """A plan within `target` bytes of shapes alone, to count by: `ASSUMED` where `propose` would measure.
    What that finds is about as large, and may leave out layers.
    """
    sizes, limit = _limited(model, target, stack)
    owners = stacks(model)[sizes.path].owners
    return next(_ways(sizes, [d for d in reversed(range(sizes.depth)) if d not in owners], limit))["plan"]


def _limited(model: nn.Module, target: str | float, stack: str | None) -> tuple[_Sizes, int]:
    """What counts the bytes of plans, and the bytes asked for."""
    path = only_stack(model, stack)
    _require_dense(model)
    sizes = _Sizes(model, path)
    limit = parse_target(target, sizes.dense)
    if limit >= sizes.dense:
        raise ConfigError(f"the dense file has {readable(sizes.dense)}; {readable(limit)} asks for no less")
    return sizes, limit


def _ways(sizes: _Sizes, order: Sequence[int], limit: int) -> Iterator[dict[str, Any]]:
    """The plans of as many stored layers as fit; those that are first in `order` go, or share."""
    stored = sizes.most_layers(order, limit)
    for k in _counts(min(sizes.depth - stored, len(order))):
        size = sizes.of(plan := _plan(sizes.model, sizes.path, order, k, stored))
        if size is not None and size <= limit:
            visits = sizes.depth - k
            yield {"removed": k, "stored": stored, "visits": visits, "bytes": size, "plan": plan}


def _require_dense(model: Any) -> None:
    if attached(model) is not None or hasattr(model, "peft_config"):
        raise ConfigError("the model is shared or carries adapters already; propose starts from a dense one")
    if getattr(model, "hf_quantizer", None) is not None:
        raise Refused("the model is quantised; share the dense one and quantise while loading (inner_config)")


class _Sizes:
    """Bytes of the file under a plan, each built on the meta device once."""

    def __init__(self, model: Any, path: str):
        self.model, self.path = model, path
        self.depth = stacks(model)[path].depth
        self.dense = file_size(model)
        self.known: dict[SharePlan, int | None] = {}

    def of(self, plan: SharePlan) -> int | None:
        """Bytes under `plan`; None if the model cannot be arranged so."""
        if plan not in self.known:
            try:
                self.known[plan] = file_size(share(build_on_meta(self.model), plan))
            except Refused:
                self.known[plan] = None
        return self.known[plan]

    def least(self, order: Sequence[int], stored: int) -> int | None:
        """The smallest file with `stored` layers: norms go with what is removed."""
        counts = reversed(_counts(self.depth - stored))
        sizes = (self.of(_plan(self.model, self.path, order, k, stored)) for k in counts if k <= len(order))
        return next((size for size in sizes if size is not None), None)

    def most_layers(self, order: Sequence[int], limit: int) -> int:
        """The largest number of stored layers within `limit`."""
        low, high = 0, self.depth - 1
        while low < high:
            middle = (low + high + 1) // 2
            size = self.least(order, middle)
            low, high = (middle, high) if size is not None and size <= limit else (low, middle - 1)
        if low == 0:
            smallest = self.least(order, 1)
            if smallest is None:
                raise Refused(f"layers of stack {self.path!r} can neither be shared nor removed")
            share = -(-smallest * 10_000 // self.dense) / 10_000
            raise ConfigError(
                f"{readable(limit)} is out of reach: with whole layers shared or removed, the smallest file "
                f"has {readable(smallest)}, {share:.4g} of the dense one's {readable(self.dense)}"
            )
        return low


def _counts(most: int) -> list[int]:
    """Numbers of layers to remove, 0 to `most`, at most `MOST` of them."""
    if most < MOST:
        return list(range(most + 1))
    return sorted({round(i * most / (MOST - 1)) for i in range(MOST)})


def _plan(model: nn.Module, path: str, order: Sequence[int], removed: int, stored: int) -> SharePlan:
    """`removed` layers of least influence go; of the rest, those of least influence join the one before."""
    depth = stacks(model)[path].depth
    kept = [d for d in range(depth) if d not in order[:removed]]
    rank = {layer: i for i, layer in enumerate(order)}
    follow = sorted(kept[1:], key=lambda d: rank.get(d, depth))[: max(len(kept) - stored, 0)]
    groups: list[list[int]] = []
    for layer in kept:
        if layer in follow:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return FoldConfig(stack=path, groups=groups).resolve(model)


def _low_rank(sizes: _Sizes, limit: int, data: list[dict[str, Tensor]]) -> dict[str, Any] | None:
    """The largest low-rank factors within `limit`; None where rank 1 is too large."""
    found = select(sizes.model, SvdConfig())
    weights = [resolve(backbone(sizes.model), site.module).weight for site in found]
    linear = sum(W.numel() * W.element_size() for W in weights)
    ratio = 1.0 - (sizes.dense - limit) / linear
    if ratio <= 0.0:
        return None
    plan_at = SvdConfig().by_ratio(sizes.model, data)
    while ratio > 0.0:
        try:
            plan = plan_at(ratio)
        except ConfigError:
            return None
        size = sizes.of(plan)
        if size is None:
            return None
        if size <= limit:
            visits = {"removed": 0, "stored": sizes.depth, "visits": sizes.depth}
            return {**visits, "bytes": size, "plan": plan, "ratio": round(ratio, 4)}
        ratio -= (size - limit + 64) / linear  # the header is longer, too
    return None


@torch.no_grad()
def _distances(model: Any, plans: list[SharePlan], data: list[dict[str, Tensor]]) -> list[float]:
    """Mean KL to what the dense model says, in nats a token, of each plan."""
    views = [share(_view(model), plan, data) for plan in plans]
    totals, seen = [0.0] * len(plans), 0
    with evaluating(model):
        for batch in tqdm(data, desc="trying plans", unit="batch", leave=False):
            target = _says(model, batch)
            seen += target[..., 0].numel()
            for i, view in enumerate(views):
                said = _says(view.eval(), batch)
                totals[i] += float(F.kl_div(said, target, reduction="sum", log_target=True))
    return [total / seen for total in totals]


def _says(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = getattr(model(**batch), "logits", None)
    if logits is None:
        raise Refused(f"{type(model).__name__} says nothing that could be compared; load it with its head")
    return F.log_softmax(logits.float(), dim=-1)


def _view(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})

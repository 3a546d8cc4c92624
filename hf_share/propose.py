# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""A plan for a number of bytes: which layers go, and which share with the layer before them.

Bytes say how many layers u of L can be stored; what the others do, go (ShortGPT) or take the weights of the
layer before (FoldGPT), and which they are, is tried on the model itself. The layout that leaves it nearest
wins:

    distance = mean over tokens of KL(dense || shared)              in nats, before any healing

First tried are the layers of least block influence: k of them go, L - k - u share, for each k. Block
influence measures every layer by itself, in the whole model, and cannot say what layers are worth together;
so then, `ROUND` at a time, what is one exchange away from the nearest layout so far, until none of them is
nearer.

The trials are views of the dense model's weights: they take no memory for weights and change none. With
`low_rank` products of two thin matrices are tried as well (`SvdConfig`), which share nothing, often lose
less, and take a decomposition of every weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .describe import readable
from .errors import ConfigError, Refused
from .filesize import file_size, parse_target
from .importance import batches, block_influence, evaluating, only_stack
from .layout import GONE, STORED, Layout, by_order, groups, neighbours, words
from .methods.fold import FoldConfig
from .methods.svd import SvdConfig
from .plan import SharePlan
from .shapes import build_on_meta
from .share import share
from .sites import backbone, resolve, stacks
from .targets import select
from .ties import attached


Batch = dict[str, Tensor]

STARTS = 9  # layouts by block influence; more of a deep stack are thinned out evenly
ROUND = 4  # layouts that are compared to one pass of the dense model
NAMED = 3  # of the others, in the reason for the choice
TRIALS = 64  # together a pass forward of about a quarter million tokens, less than healing takes


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to reach the bytes: what each layer does, or `ratio`, what low-rank factors keep of every
    layer's numbers. `distance` is NaN until it is measured.
    """

    layout: Layout
    bytes: int
    plan: SharePlan
    distance: float = math.nan
    ratio: float | None = None

    @property
    def stored(self) -> int:
        """Layers with weights of their own."""
        return self.layout.count(STORED)

    @property
    def visits(self) -> int:
        """Layers that run."""
        return len(self.layout) - self.layout.count(GONE)

    def __str__(self) -> str:
        return words(self.layout) if self.ratio is None else f"low-rank, ratio {self.ratio:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": str(self), "layout": list(self.layout), "ratio": self.ratio, "stored": self.stored,
            "visits": self.visits, "bytes": self.bytes, "distance": self.distance,
            "plan": self.plan.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan that is nearest to the dense model within `limit` bytes, and what it was chosen from."""

    model: str
    dense: int
    limit: int
    influence: tuple[float, ...]
    trials: tuple[Trial, ...]

    @property
    def nearest(self) -> list[Trial]:
        """The trials, nearest first."""
        return sorted(self.trials, key=lambda t: t.distance)

    @property
    def chosen(self) -> Trial:
        return self.nearest[0]

    @property
    def plan(self) -> SharePlan:
        return self.chosen.plan

    @property
    def why(self) -> str:
        """The reason for the choice, for people."""
        best, *others = self.nearest
        stored = min(t.stored for t in self.trials)
        told = f"{stored} of {len(self.influence)} layers can be stored; of {len(self.trials)} ways tried "
        told += f"{best} is nearest to the dense model: KL {best.distance:.3f} nats a token, before healing"
        rest = "; ".join(f"{t}: {t.distance:.3f}" for t in others[:NAMED])
        return f"{told} (next {rest})" if rest else told

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        sizes = {"dense": self.dense, "asked": self.limit, "got": self.chosen.bytes}
        return {
            "model": self.model, "bytes": sizes, "why": self.why, "influence": list(self.influence),
            "plan": self.plan.to_dict(), "trials": [t.to_dict() for t in self.trials],
        }  # fmt: skip


def propose(
    model: nn.Module,
    target: str | float,
    calibration: Sequence[Any],
    stack: str | None = None,
    low_rank: bool = False,
    trials: int = TRIALS,
) -> Proposal:
    """The plan of removed and shared layers that is nearest to `model` within `target` bytes.

    Args:
        model: a dense model with a head; it is not changed.
        target: a fraction of the dense file (`0.6`), or a size (`"4GB"`).
        calibration: texts or token batches to rank layers on and to measure distances.
        stack: path of the stack; may be left out if the model has only one.
        low_rank: try low-rank factors, too. A plan of theirs is shared with the same calibration:
            `share(model, plan, calibration)`.
        trials: at most so many layouts are tried, each a pass over the calibration; those by block influence
            come first.

    Raises:
        ConfigError: if no plan of whole layers is that small; it names the smallest.

    Example:
        >>> plan = propose(model, 0.6, texts).plan  # doctest: +SKIP
    """
    if trials < 1:
        raise ConfigError(f"trials is {trials}; at least one layout must be tried")
    sizes, limit = _limited(model, target, stack)
    data = list(batches(model, calibration))
    influence = block_influence(model, data, sizes.path)
    tried = _search(model, data, sizes, limit, influence, trials)
    if low_rank:
        tried += _measured(model, _low_rank(sizes, limit, data), data)
    told = tuple(float(f"{score:.6g}") for score in influence)
    return Proposal(
        model=type(model).__name__, dense=sizes.dense, limit=limit, influence=told, trials=tuple(tried)
    )


ASSUMED = "as many layers run as may, and the last of them take the weights of the layer before"


def outline(model: nn.Module, target: str | float, stack: str | None = None) -> SharePlan:
    """A plan within `target` bytes of shapes alone, to count by: `ASSUMED` where `propose` would measure.
    What that finds is about as large, and may leave out layers.
    """
    sizes, limit = _limited(model, target, stack)
    order = [d for d in reversed(range(sizes.depth)) if d not in sizes.owners]
    return next(_starts(sizes, order, limit)).plan


def _search(
    model: nn.Module, data: list[Batch], sizes: _Sizes, limit: int, influence: Sequence[float], most: int
) -> list[Trial]:
    """The layouts by block influence, then those around the nearest: `most` trials at most."""
    order = sorted((d for d in range(sizes.depth) if d not in sizes.owners), key=influence.__getitem__)
    tried: dict[Layout, Trial] = {}
    todo = list(islice(_starts(sizes, order, limit), most))
    with tqdm(desc="trying layouts", total=most, unit="layout", leave=False) as bar:
        while todo:
            tried |= {trial.layout: trial for trial in _measured(model, todo, data)}
            bar.update(len(todo))
            nearest = min(tried.values(), key=lambda t: t.distance)
            around = neighbours(nearest.layout, influence, sizes.owners)
            fitting = sizes.trials((other for other in around if other not in tried), limit)
            todo = list(islice(fitting, min(ROUND, most - len(tried))))
    return list(tried.values())


def _limited(model: nn.Module, target: str | float, stack: str | None) -> tuple[_Sizes, int]:
    """What counts the bytes of plans, and the bytes asked for."""
    path = only_stack(model, stack)
    _require_dense(model)
    sizes = _Sizes(model, path)
    limit = parse_target(target, sizes.dense)
    if limit >= sizes.dense:
        raise ConfigError(f"the dense file has {readable(sizes.dense)}; {readable(limit)} asks for no less")
    return sizes, limit


def _starts(sizes: _Sizes, order: Sequence[int], limit: int) -> Iterator[Trial]:
    """Layouts of as many stored layers as fit; those that are first in `order` go, or share."""
    stored = sizes.most_layers(order, limit)
    counts = _counts(min(sizes.depth - stored, len(order)))
    return sizes.trials((by_order(sizes.depth, order, k, stored) for k in counts), limit)


def _require_dense(model: Any) -> None:
    if attached(model) is not None or hasattr(model, "peft_config"):
        raise ConfigError("the model is shared or carries adapters already; propose starts from a dense one")
    if getattr(model, "hf_quantizer", None) is not None:
        raise Refused("the model is quantised; share the dense one and quantise while loading (inner_config)")


class _Sizes:
    """Bytes of the file under a plan, each built on the meta device once."""

    def __init__(self, model: Any, path: str):
        self.model, self.path = model, path
        found = stacks(model)[path]
        self.depth, self.owners = found.depth, frozenset(found.owners)
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

    def plan(self, layout: Layout) -> SharePlan:
        return FoldConfig(stack=self.path, groups=groups(layout)).resolve(self.model)

    def trials(self, layouts: Iterable[Layout], limit: int) -> Iterator[Trial]:
        """Those of the layouts that the model can be arranged by within `limit`."""
        for layout in layouts:
            size = self.of(plan := self.plan(layout))
            if size is not None and size <= limit:
                yield Trial(layout=layout, bytes=size, plan=plan)

    def least(self, order: Sequence[int], stored: int) -> int | None:
        """The smallest file with `stored` layers: norms go with what is removed."""
        counts = reversed(_counts(self.depth - stored))
        layouts = (by_order(self.depth, order, k, stored) for k in counts if k <= len(order))
        sizes = (self.of(self.plan(layout)) for layout in layouts)
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
    """Numbers of layers to remove, 0 to `most`, at most `STARTS` of them."""
    if most < STARTS:
        return list(range(most + 1))
    return sorted({round(i * most / (STARTS - 1)) for i in range(STARTS)})


def _low_rank(sizes: _Sizes, limit: int, data: list[Batch]) -> list[Trial]:
    """The largest low-rank factors within `limit`; none where rank 1 is too large."""
    found = select(sizes.model, SvdConfig())
    weights = [resolve(backbone(sizes.model), site.module).weight for site in found]
    linear = sum(W.numel() * W.element_size() for W in weights)
    ratio = 1.0 - (sizes.dense - limit) / linear
    if ratio <= 0.0:
        return []
    plan_at = SvdConfig().by_ratio(sizes.model, data)
    while ratio > 0.0:
        try:
            plan = plan_at(ratio)
        except ConfigError:
            return []
        size = sizes.of(plan)
        if size is None:
            return []
        if size <= limit:
            whole = (STORED,) * sizes.depth
            return [Trial(layout=whole, bytes=size, plan=plan, ratio=round(ratio, 4))]
        ratio -= (size - limit + 64) / linear  # the header is longer, too
    return []


@torch.no_grad()
def _measured(model: Any, trials: list[Trial], data: list[Batch]) -> list[Trial]:
    """The trials with their distance, the mean KL to what the dense model says, in nats a token."""
    views = [share(_view(model), trial.plan, data) for trial in trials]
    totals, seen = [0.0] * len(trials), 0
    with evaluating(model):
        for batch in data:
            target = _says(model, batch)
            seen += target[..., 0].numel()
            for i, view in enumerate(views):
                said = _says(view.eval(), batch)
                totals[i] += float(F.kl_div(said, target, reduction="sum", log_target=True))
    return [replace(trial, distance=total / seen) for trial, total in zip(trials, totals, strict=True)]


def _says(model: Any, batch: Batch) -> Tensor:
    logits = getattr(model(**batch), "logits", None)
    if logits is None:
        raise Refused(f"{type(model).__name__} says nothing that could be compared; load it with its head")
    return F.log_softmax(logits.float(), dim=-1)


def _view(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})

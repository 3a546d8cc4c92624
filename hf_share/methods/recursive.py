# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Relaxed recursive transformers: a block of K layers runs B times, and each visit has a LoRA of its own
(arXiv 2410.20672).

L layers become K = L / B unique ones. Depth l of the model uses the block's layer s(l), norms included:

    y = W'[s(l)] x + B[l] A[l] x        cycle: s(l) = l mod K        sequence: s(l) = l div B

    stored = embeddings + head + K layers + sum over depths and weights of min(r, in, out) (in + out)

The block starts from the source model: *stepwise* takes K of its layers on an even grid from the first to the
last, *average* the mean of the layers that will share, *lower* the first K, *random* new weights. The LoRA of
depth l starts as the best rank-r approximation of what its weight lost,

    B[l] A[l] = SVD_r(W[l] - W'[s(l)]),

so with r = min(in, out) and norms left to each depth the model starts as the source model; where nothing was
lost it starts like LoRA.
Rank 0 is strict recursion, whose best start is stepwise; with LoRA it is average. There is no factor alpha /
r: it would break the start. Every depth keeps its place in the KV cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..about import About
from ..adapter import ends, group_names, require_ends
from ..config import ShareConfig, method
from ..errors import ConfigError, unknown
from ..importance import only_stack
from ..low_rank import LowRank
from ..plan import SharePlan
from ..sites import Site, Stack, sites, stacks
from ..steps import Arrange, Generate
from ..targets import ALL_LINEAR, select


ORDERS = ("cycle", "sequence", "middle-cycle")
MERGES = {"stepwise": "first", "average": "mean", "lower": "first", "random": "random"}
LORA_INITS = {"svd": "svd", "zero": "kaiming", "whitened": "whitened"}


@method
@dataclass
class RecursiveConfig(ShareConfig):
    """Config of (relaxed) recursion, for `hf_share.share` or `get_peft_model`.

    Args:
        num_loops: how often the block runs; divides the layers that share.
        order: `"cycle"` runs the block from beginning to end, then again; `"sequence"` runs each of its
            layers `num_loops` times; `"middle-cycle"` is a cycle between a first and a last layer of their
            own.
        init: the block's weights: `"stepwise"`, `"average"`, `"lower"` or `"random"`. None takes stepwise
            without LoRA and average with it.
        lora_rank: rank of each visit's LoRA, at most min(in, out) of its weight; a fused qkv gets 1.5 times
            it. 0 is strict recursion.
        rank_pattern: ranks of some weights, by the end of their role: `{"q_proj": 128, "mlp.up_proj": 256}`.
            The longest end wins and is taken as it is; 0 leaves a weight without LoRA.
        lora_init: `"svd"` of the residual; `"whitened"`, the same weighed by the inputs of calibration text;
            or `"zero"`, which starts as the strict model.
        share_norms: whether norms and biases are part of the block, as in the paper, or every depth keeps its
            own, which costs next to nothing. None shares them where there is no LoRA; with it they stay, or
            the start at full rank would not be exact.
        stack: path of the stack, for models with several (T5: `"encoder.block"`, `"decoder.block"`).
        target_modules: weights that get LoRA, as in peft. None is all linear weights of the layers that
            share; expert tensors, and weights that are read without calling their module, have none.

    Example:
        >>> RecursiveConfig(num_loops=2, lora_rank=8).start
        'average'
    """

    name: ClassVar[str] = "recursive"
    arranges: ClassVar[dict[str, About]] = {
        "loops": About("recursive", "a block of layers runs several times", "2410.20672"),
    }

    num_loops: int = 2
    order: str = "cycle"
    init: str | None = None
    lora_rank: int = 0
    rank_pattern: dict[str, int] | None = None
    lora_init: str = "svd"
    share_norms: bool | None = None
    stack: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.require_count("num_loops", least=2)
        self.require_count("lora_rank", least=0)
        for name, known in (("order", ORDERS), ("init", MERGES), ("lora_init", LORA_INITS)):
            value = getattr(self, name)
            if not (value is None and name == "init") and (not isinstance(value, str) or value not in known):
                raise unknown(name, value, known, ConfigError)
        if self.share_norms is not None and not isinstance(self.share_norms, bool):
            raise ConfigError(f"share_norms is {self.share_norms!r}; True, False or None fits")
        self._check_pattern()

    def _check_pattern(self) -> None:
        if self.rank_pattern is None:
            return
        if not isinstance(self.rank_pattern, Mapping):
            raise ConfigError(f"rank_pattern is {self.rank_pattern!r:.80}; a dict from roles to ranks fits")
        for role, rank in self.rank_pattern.items():
            if not isinstance(role, str) or isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
                raise ConfigError(f"rank_pattern gives {role!r:.80} the rank {rank!r:.80}; whole numbers fit")
        self.rank_pattern = dict(self.rank_pattern)

    @property
    def relaxed(self) -> bool:
        """Whether any weight has a LoRA for each visit."""
        return bool(self.lora_rank) or any((self.rank_pattern or {}).values())

    @property
    def start(self) -> str:
        """How the block starts, where `init` leaves it to the ranks."""
        return self.init or ("average" if self.relaxed else "stepwise")

    def _private(self, stack: Stack) -> tuple[str, ...]:
        share = not self.relaxed if self.share_norms is None else self.share_norms
        return () if share else (*stack.norms, *stack.biases)

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        stack = stacks(model)[only_stack(model, self.stack)]
        slots = self._slots(stack)
        source = {depth: layer for layer, slot in self._sources(slots) for depth in slot}
        block = Arrange(
            stack=stack.path,
            order=tuple(source[depth] for depth in range(stack.depth)),
            sources=tuple(range(stack.depth)),
            depth=stack.depth,
            private=self._private(stack),
            merge=MERGES[self.start],
        )
        return SharePlan((block, *self._deltas(model, stack, {d for s in slots if len(s) > 1 for d in s})))

    def _slots(self, stack: Stack) -> list[list[int]]:
        """The depths that share each layer, layers in the order of their first visit."""
        edge, loops = int(self.order == "middle-cycle"), self.num_loops
        inner = range(edge, stack.depth - edge)
        if not len(inner) or len(inner) % loops:
            fits = [n for n in range(2, len(inner) + 1) if len(inner) % n == 0]
            raise ConfigError(
                f"num_loops={loops} does not divide the {len(inner)} layers of stack {stack.path!r}"
                + (" between the first and the last" if edge else "")
                + (f"; {', '.join(map(str, fits))} fit" if fits else "; no number of loops fits")
            )
        unique = len(inner) // loops
        if self.order == "sequence":
            return [list(inner[i : i + loops]) for i in range(0, len(inner), loops)]
        cycle = [list(inner[slot::unique]) for slot in range(unique)]
        return [[0], *cycle, [stack.depth - 1]] if edge else cycle

    def _sources(self, slots: list[list[int]]) -> list[tuple[int, list[int]]]:
        """Each slot with the source layer whose weights, or whose place, it takes."""
        shared = [slot for slot in slots if len(slot) > 1]
        inner = sorted(depth for slot in shared for depth in slot)
        if self.start == "stepwise":
            last, steps = len(inner) - 1, max(len(shared) - 1, 1)
            layers = [inner[round(last * i / steps)] for i in range(len(shared))]  # half to even
        elif self.start == "lower":
            layers = inner[: len(shared)]
        else:
            layers = [slot[0] for slot in shared]
        alone = [(slot[0], slot) for slot in slots if len(slot) == 1]
        return [*zip(layers, shared, strict=True), *alone]

    def _deltas(self, model: nn.Module, stack: Stack, depths: set[int]) -> list[Generate]:
        """One step a role: the LoRA of all its visits."""
        if not self.relaxed:
            return []
        asked = copy.copy(self)
        asked.target_modules = self.target_modules or ALL_LINEAR
        types: dict[tuple, list[Site]] = {}
        for site in select(model, asked):
            if site.stack == stack.path and site.depth in depths:
                types.setdefault((site.role, site.shape), []).append(site)
        require_ends(self.rank_pattern or (), [role for role, _ in types], "rank_pattern names ")
        fused = _fused_qkv(model)
        ranks = [(found, self._rank(found[0], found[0].module in fused)) for found in types.values()]
        ranks = [(found, rank) for found, rank in ranks if rank]
        names = group_names(model, "loops", [found for found, _ in ranks])
        return [self._delta(*pair, name) for pair, name in zip(ranks, names, strict=True)]

    def _rank(self, site: Site, fused: bool) -> int:
        named = [name for name in self.rank_pattern or {} if ends(site.role, name)]
        rank = self.lora_rank * 3 // 2 if fused else self.lora_rank
        if named:
            rank = (self.rank_pattern or {})[max(named, key=len)]
        return min(rank, *site.shape)

    def _delta(self, found: list[Site], rank: int, group: str) -> Generate:
        return LowRank(r=rank, init=LORA_INITS[self.lora_init]).step(found, group)


def _fused_qkv(model: nn.Module) -> set[str]:
    """Modules that hold queries, keys and values as one weight."""
    parts: dict[str, set[str]] = {}
    for site in sites(model, parts=True):
        if site.part is not None:
            parts.setdefault(site.module, set()).add(site.part.name)
    return {module for module, names in parts.items() if {"q", "k", "v"} <= names}

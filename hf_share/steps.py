# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The three steps a plan is made of, as plain data: names and numbers, checked when they are made.

`Arrange` says which source layer stands at each depth, `Generate` which rule makes the weights of some sites,
`Insert` which small module is put where. This file imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .errors import PlanError, unknown
from .plain import freeze, frozen_args, is_whole, require_count, require_name, require_sites


MAX_VISITS = 2048
LARGEST_SCORE = 1e300
MERGES = ("first", "mean", "random")


@dataclass(frozen=True, kw_only=True)
class Arrange:
    """Which source layer stands at each depth: a repeated source is stored once, a missing one is gone.

    Args:
        stack: path of the layer list, relative to the backbone (`layers`, `h`, `encoder.block`).
        order: a source layer for each depth. With `roles` narrowed to a sub-layer, `None` removes it there.
        roles: `"all"`, or paths inside a layer (`("self_attn",)`): only these are arranged.
        private: roles (norms), or single tensors (`"attn.c_attn.bias"`), that stay per depth although the
            rest is shared.
        merge: how the layers that meet in one source become one weight: `"first"`, `"mean"`, or
            `"random"`, drawn anew as before any training.
        sources: the layer each depth stands for in the source model. What is no weight (its kind of
            attention) and private roles are taken from it, and `merge` draws on it: with order `(0, 0)` and
            sources `(0, 1)`, depth 1 is layer 1 with layer 0's weights.
        depth: number of layers the step expects to find, so that a plan for another model is refused.
        loops: the active choice of how often a repeated source is visited, from its first visit on; all
            visits if None. The depths beyond stay in the model and its files.
        drops: depths that may be left out, the first to go first; with `depths`, the numbers of layers that
            are offered, rising, all of them last.
        layers: the active choice of how many layers run; all if None. Those left out stay in the model and
            its files.
        scores: what each source layer was measured to be worth when the order was chosen, for audit; in
            checkpoint form only `origin` has them.
        scored_by: the name of that measure (`"bi"`, `"gate"`).
        origin: in checkpoint form, the source-form step this one came from.
    """

    step: ClassVar[str] = "arrange"
    stack: str
    order: tuple[int | None, ...]
    roles: str | tuple[str, ...] = "all"
    private: tuple[str, ...] = ()
    merge: str = "first"
    sources: tuple[int, ...] | None = None
    depth: int | None = None
    loops: int | None = None
    drops: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    layers: int | None = None
    scores: tuple[float, ...] | None = None
    scored_by: str | None = None
    origin: Arrange | None = None

    def __post_init__(self):
        require_name(self.stack, "arrange step: stack")
        where = f"arrange step on stack {self.stack!r}"
        freeze(self, "order", "private", "drops", "depths")
        if self.roles != "all":
            freeze(self, "roles")
        if self.sources is not None:
            freeze(self, "sources")
        self._read_origin(where)
        if not self.order or len(self.order) > MAX_VISITS:
            raise PlanError(f"{where}: order has {len(self.order)} depths; 1 to {MAX_VISITS} fit")
        for source in self.order:
            if source is None and self.roles != "all":
                continue
            require_count(source, f"{where}: order", least=0)
        if not self.roles:
            raise PlanError(f"{where}: roles is empty; give 'all' or a list of paths inside a layer")
        for role in (*(() if self.roles == "all" else self.roles), *self.private):
            require_name(role, f"{where}: role")
        if self.merge not in MERGES:
            raise unknown("merge", self.merge, MERGES)
        if self.sources is not None:
            if len(self.sources) != len(self.order):
                raise PlanError(f"{where}: {len(self.sources)} sources for {len(self.order)} depths")
            for source in self.sources:
                require_count(source, f"{where}: sources", least=0)
        if self.depth is not None:
            require_count(self.depth, f"{where}: depth", least=1)
            last = max((s for s in (*self.order, *(self.sources or ())) if s is not None), default=0)
            if last >= self.depth:
                raise PlanError(
                    f"{where}: order names layer {last}, but the stack has layers 0 to {self.depth - 1}"
                )
        if self.merge == "mean":
            self._check_mean(where)
        self._check_choice(where)

    def _read_origin(self, where: str):
        if self.origin is None:
            return
        if isinstance(self.origin, Mapping):
            if self.origin.get("origin") is not None:  # before it is built: nesting could be of any depth
                raise PlanError(f"{where}: an origin has no origin of its own")
            object.__setattr__(self, "origin", build_step(Arrange, self.origin, "origin of an arrange step"))
        if not isinstance(self.origin, Arrange) or self.origin.origin is not None:
            raise PlanError(f"{where}: origin must be one arrange step in source form")

    def _check_mean(self, where: str):
        owner: dict[int, int] = {}
        for source, layers in self.groups().items():
            if source not in layers:
                raise PlanError(f"{where}: merge 'mean' into layer {source}, which is not among {layers}")
            for layer in layers:
                if owner.setdefault(layer, source) != source:
                    raise PlanError(
                        f"{where}: merge 'mean' takes layer {layer} into layer {owner[layer]} and {source}"
                    )

    def _check_choice(self, where: str):
        if self.loops is not None:
            require_count(self.loops, f"{where}: loops", least=1)
            if self.roles != "all":
                raise PlanError(f"{where}: loops are of whole layers, and roles is {self.roles!r}")
            if self.loops > self.visits:
                raise PlanError(f"{where}: loops is {self.loops}; a source has at most {self.visits} visits")
        self._check_depths(where)
        if (self.scores is None) != (self.scored_by is None):
            raise PlanError(f"{where}: scores and scored_by, the name of the measure, go together")
        if self.scores is not None:
            self._check_scores(where)

    def _check_depths(self, where: str):
        if not self.drops and not self.depths and self.layers is None:
            return
        every = len(self.order)
        for value in (*self.drops, *self.depths):
            require_count(value, f"{where}: drops and depths", least=0)
        if self.roles != "all" or self.visits > 1:
            raise PlanError(f"{where}: depth is a choice of whole layers that are visited once")
        if len(set(self.drops)) != len(self.drops) or max(self.drops, default=0) >= every:
            raise PlanError(f"{where}: drops is {self.drops}; distinct depths below {every} fit")
        least = every - len(self.drops)
        rising = list(self.depths) == sorted(set(self.depths))
        if not self.depths or not rising or self.depths[-1] != every or self.depths[0] < max(least, 1):
            raise PlanError(
                f"{where}: depths is {self.depths}; rising numbers from {max(least, 1)} to {every} fit, "
                f"{every} among them"
            )
        if self.layers is not None and (not is_whole(self.layers) or self.layers not in self.depths):
            raise PlanError(f"{where}: layers is {self.layers!r}; {self.depths} are offered")

    def _check_scores(self, where: str):
        require_name(self.scored_by, f"{where}: scored_by")
        freeze(self, "scores")
        scores: tuple[Any, ...] = self.scores or ()
        if not 0 < len(scores) <= MAX_VISITS or len(scores) != (self.depth or len(scores)):
            raise PlanError(f"{where}: {len(scores)} scores for {self.depth or f'1 to {MAX_VISITS}'} layers")
        for score in scores:
            known = isinstance(score, (int, float)) and not isinstance(score, bool)
            if not known or not abs(score) < LARGEST_SCORE:
                raise PlanError(f"{where}: scores holds {type(score).__name__} {score!r:.80}; numbers fit")
        object.__setattr__(self, "scores", tuple(map(float, scores)))

    @property
    def visits(self) -> int:
        """How often the source that is visited most is visited."""
        return max(self._turns)

    @property
    def _turns(self) -> tuple[int, ...]:
        """For each depth, which visit of its source it is, from 1 on."""
        seen: dict[int | None, int] = {}
        turns = []
        for source in self.order:
            seen[source] = 1 if source is None else seen.get(source, 0) + 1
            turns.append(seen[source])
        return tuple(turns)

    def active(self, loops: int | None) -> tuple[int, ...]:
        """The depths that run if each source is visited at most `loops` times."""
        return tuple(d for d, turn in enumerate(self._turns) if loops is None or turn <= loops)

    @property
    def running(self) -> tuple[int, ...]:
        """The depths that run with the choices active here."""
        gone = set(self.drops[: len(self.order) - self.layers]) if self.layers is not None else set()
        return tuple(depth for depth in self.active(self.loops) if depth not in gone)

    @property
    def is_whole(self) -> bool:
        """Whether all depths run."""
        return self.loops is None and self.layers is None

    @property
    def members(self) -> tuple[int | None, ...]:
        """The layer each depth stands for: `sources`, or `order` where none are given."""
        return self.order if self.sources is None else self.sources

    def owns(self, tensor: str) -> bool:
        """Whether the step decides where this tensor of a layer (`self_attn.q_norm.weight`) comes from."""
        return self.roles == "all" or any(tensor.startswith(f"{role}.") for role in self.roles)

    def keeps(self, tensor: str) -> bool:
        """Whether the tensor is private, or belongs to a private role."""
        return any(tensor == role or tensor.startswith(f"{role}.") for role in self.private)

    @property
    def first_visits(self) -> tuple[int | None, ...]:
        """For each depth the first depth with the same source: `(0, 1, 1, 4)` gives `(0, 1, 1, 3)`."""
        seen: dict[int, int] = {}
        return tuple(None if s is None else seen.setdefault(s, d) for d, s in enumerate(self.order))

    @property
    def only_removes(self) -> bool:
        """True if each depth keeps a layer of its own, so that the result is a plain, shallower model."""
        once = len(set(self.order)) == len(self.order) and self.members == self.order
        return self.roles == "all" and once and not self.drops

    @property
    def pattern(self) -> str:
        """`"loops"` where a block comes round whole (0 1 2 0 1 2), else `"groups"` where layers share, else
        `"removal"`.
        """
        order = [s for s in self.order if s is not None]
        block = list(dict.fromkeys(order))
        if 1 < len(block) < len(order) and order == block * (len(order) // len(block)):
            return "loops"
        return "groups" if len(block) < len(order) else "removal"

    def groups(self) -> dict[int, tuple[int, ...]]:
        """Source layer -> the layers that meet in it, in the order of their depths."""
        met: dict[int, list[int]] = {}
        for source, member in zip(self.order, self.members, strict=True):
            if source is not None and member is not None:
                met.setdefault(source, []).append(member)
        return {source: tuple(dict.fromkeys(layers)) for source, layers in met.items()}


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A rule makes the weights of `sites` from a store their `group` shares, plus small private numbers.

    Args:
        rule: name of a registered rule (`low_rank`).
        sites: paths of weights relative to the backbone; a part of a fused weight is `path:part`
            (`h.0.attn.c_attn:q`).
        group: name of the store, unique in the model.
        args: the rule's arguments, plain values.
    """

    step: ClassVar[str] = "generate"
    rule: str
    sites: tuple[str, ...]
    group: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_name(self.rule, "generate step: rule")
        require_name(self.group, "generate step: group")
        freeze(self, "sites")
        object.__setattr__(self, "args", frozen_args(self.args, f"generate step {self.group!r}: args"))
        if "." in self.group or self.group.startswith("hf_share"):
            raise PlanError(
                f"generate step: group {self.group!r} must have no dot and not begin with 'hf_share'"
            )
        require_sites(self.sites, f"generate step {self.group!r}")


@dataclass(frozen=True, kw_only=True)
class Insert:
    """A small registered module (a gate, an output norm) at each of `sites`: layers or sub-layers."""

    step: ClassVar[str] = "insert"
    kind: str
    sites: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_name(self.kind, "insert step: kind")
        freeze(self, "sites")
        object.__setattr__(self, "args", frozen_args(self.args, f"insert step {self.kind!r}: args"))
        require_sites(self.sites, f"insert step {self.kind!r}")


Step = Arrange | Generate | Insert
STEPS: dict[str, type] = {cls.step: cls for cls in (Arrange, Generate, Insert)}


def build_step(cls: type, data: Mapping[str, Any], where: str) -> Any:
    """An instance of `cls` from JSON values; unknown keys are errors."""
    require_known(data, [f.name for f in fields(cls)], where)
    try:
        return cls(**data)
    except TypeError as error:
        raise PlanError(f"{where}: {error}") from None


def require_known(data: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for key in data:
        if key not in names:
            raise unknown(f"key of the {where}", key, names)

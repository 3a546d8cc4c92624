# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Rules: how a weight is made from what its group shares and what it keeps for itself.

A rule is a frozen dataclass; its fields are the `args` of a `Generate` step. It names its tensors by shape,
so that a checkpoint is built without values, and it defines the dense weight:

    t = rule.form({**stored, **constants})   # what the rule multiplies with; most take what is stored
    W = rule.weight(t)                       # (out, in)
    y = rule.apply(x, t)                     # the same product, usually faster

A rule of kind `map` makes its weight of the base's, so there t also holds what the rule is `over`.

`weight` is the definition; merging, export and analysis use nothing else. Rules know no modules, no adapter
names and no models: a new method is a new rule, or an old rule with other sites and groups.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .about import About, about_rule
from .errors import PlanError, unknown
from .plan import SharePlan
from .sites import Site
from .steps import Arrange, Generate, Step


RULES: dict[str, type[Rule]] = {}
KINDS = ("add", "replace", "map", "limit")
Shape = tuple[int, ...]


class Rule(ABC):
    """Base of all rules. Subclasses are frozen dataclasses with a `name` and a `kind`, registered with
    `@rule`.

    `kind` is `add` (a delta on the site's own weight), `replace` (the weight itself), `map` (a function of
    the site's own weight) or `limit` (a function of its inputs, before all others: `limit(x)`). A map finds
    that weight (out, in) as `t["W"]` in `weight`, and in `apply` what it is `over`: `"W"`, or `"y"`, the
    product of x and the own weight (..., out), which a quantised module gives as well, or both, `"Wy"`. A
    limit finds as `t["W"]` what all other rules make of it.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    over: ClassVar[str] = "W"
    about: ClassVar[About | None] = None
    light: ClassVar[bool] = False  # what it forms is small, and kept while nothing trains
    frozen: ClassVar[bool] = False  # all it stores are whole numbers, and a weight of theirs is fp32
    active: ClassVar[tuple[str, ...]] = ()  # the fields that hold the active choices
    prefixes: ClassVar[bool] = False  # what a smaller site stores is the first part of what a larger one does

    def told(self) -> About:
        """What model cards say of this rule with these arguments."""
        return self.about or about_rule(self.name)

    @property
    def reads(self) -> str:
        """What `fit` is given of the source model: `"weight"`, the dense weights of the sites; `"residual"`,
        what they lack of the source model's; or `""`, if every tensor starts with `reset`.
        """
        return "weight" if self.kind == "replace" else ""

    @property
    def calibrated(self) -> bool:
        """Whether `fit` also needs the second moments of the sites' inputs, from calibration text."""
        return False

    @property
    def rewrites(self) -> bool:
        """Whether the `fit` of a map also gives `"W"`, the weight that each site has from then on."""
        return False

    def check(self, sites: Sequence[Site]) -> None:  # noqa: B027 - most rules have nothing to check
        """Raise `PlanError` if the arguments do not fit these sites. Called before anything is allocated."""

    @abstractmethod
    def shared(self, sites: Sequence[Site]) -> dict[str, Shape]:
        """Shapes of the tensors the group stores once."""

    @abstractmethod
    def private(self, site: Site) -> dict[str, Shape]:
        """Shapes of the tensors each site keeps for itself."""

    def whole(self, name: str) -> torch.dtype | None:
        """The type of a stored tensor of whole numbers, which no cast changes and no gradient reaches; None
        for one of trained numbers.
        """
        return None

    def along(self, name: str) -> int:
        """The axis of a stored matrix on which neighbours are numbers of one rank, so of one size."""
        return -1

    def numbers(self, sites: Sequence[Site]) -> tuple[int, list[int]]:
        """How many numbers the group stores once, and how many each site keeps for itself."""
        private = [sum(map(math.prod, self.private(site).values())) for site in sites]
        return sum(map(math.prod, self.shared(sites).values())), private

    def constants(self, site: Site, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Tables of whole numbers that follow from the arguments and the sites' names, and are never
        stored.
        """
        return {}

    def form(self, t: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What `weight`, `apply` and `factors` take, from stored tensors and constants by name."""
        return t

    @abstractmethod
    def weight(self, t: Mapping[str, Tensor]) -> Tensor:
        """The dense weight (out, in), or the dense delta for kind `add`, from what `form` gives."""

    def apply(self, x: Tensor, t: Mapping[str, Tensor], training: bool = False) -> Tensor:
        """`x @ weight(t).T` for x of shape (..., in)."""
        return F.linear(x, self.weight(t))

    def limit(self, x: Tensor) -> Tensor:
        """For kind `limit`: what of the inputs x (..., in) the weight sees, (..., in)."""
        return x

    @abstractmethod
    def reset(self, name: str, tensor: Tensor, sites: Sequence[Site], generator: torch.Generator) -> None:
        """Set the starting value of one tensor in place."""

    def fit(
        self, source: Mapping[str, Tensor], sites: Sequence[Site], moments: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """Values from what the rule `reads`, (out, in) by site name, and from the second moments E[x x^T]
        (in, in) of the sites' inputs if it is `calibrated`.

        Returns `{"": shared tensors, site name: private tensors}`; what is left out starts with `reset`.
        """
        return {}

    def factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """`(A, B)` with `weight = B @ A`, for rules that are low-rank; None otherwise."""
        return None

    def scaled_factors(self, t: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
        """`(A, B, s)` with `weight = s B @ A`, for rules that multiply by a number of their own last."""
        pair = self.factors(t)
        return None if pair is None else (*pair, 1.0)

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Nested settings that `choose` may switch in place: name -> values, smallest first."""
        return {}

    def settled(self, t: Mapping[str, Tensor]) -> tuple[Rule, dict[str, Tensor]] | None:
        """For a rule with parts that only help it train: the simpler rule that makes the same weights, and
        its tensors for one site, from those stored now. None if there is nothing to leave out.
        """
        return None

    def args(self) -> dict[str, Any]:
        """The arguments that are not at their default, as a `Generate` step keeps them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        defaults = {f.name: f.default for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in given.items() if value != defaults[name]}

    def step(self, sites: Sequence[Site], group: str) -> Generate:
        """The step of a plan that makes the weights of these sites by this rule."""
        names = tuple(site.name for site in sites)
        return Generate(rule=self.name, sites=names, group=group, args=self.args())


def rule(cls: type[Rule]) -> type[Rule]:
    """Register a rule class under its `name`."""
    if cls.kind not in KINDS:
        raise unknown("kind of rule", cls.kind, KINDS)
    if RULES.setdefault(cls.name, cls) is not cls and RULES[cls.name].__qualname__ != cls.__qualname__:
        raise PlanError(
            f"two rules are called {cls.name!r}: {RULES[cls.name].__module__} and {cls.__module__}"
        )
    RULES[cls.name] = cls
    return cls


def make_rule(name: str, args: Mapping[str, Any]) -> Rule:
    """The rule a `Generate` step names, with its arguments checked."""
    if name not in RULES:
        raise unknown("rule", name, RULES)
    cls = RULES[name]
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in args:
        if key not in known:
            raise unknown(f"argument of rule {name!r}", key, known)
    missing = [
        k for k, f in known.items() if k not in args and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise PlanError(f"rule {name!r} needs {', '.join(missing)}")
    return cls(**args)


def step_rule(step: Generate) -> Rule:
    """The rule of a step as a whole: choices that differ from site to site are at their full size."""
    return make_rule(step.rule, {k: v for k, v in step.args.items() if not _is_by_site(step, k)})


def site_rules(step: Generate) -> list[Rule]:
    """The rule of a step at each of its sites, with the choices active there."""
    whole = step_rule(step)
    differing = [key for key in step.args if _is_by_site(step, key)]
    if not differing:
        return [whole] * len(step.sites)
    for key in differing:
        if len(step.args[key]) != len(step.sites):
            raise PlanError(
                f"group {step.group!r}: {key} has {len(step.args[key])} values for {len(step.sites)} sites"
            )
    made: dict[tuple, Rule] = {}
    columns = zip(*(step.args[key] for key in differing), strict=True)
    return [made.setdefault(row, replace(whole, **dict(zip(differing, row, strict=True)))) for row in columns]  # type: ignore[type-var]


def _is_by_site(step: Generate, key: str) -> bool:
    return isinstance(step.args[key], tuple) and step.rule in RULES and key in RULES[step.rule].active


def with_choices(plan: SharePlan, settings: Mapping[str, Any] | None = None) -> SharePlan:
    """The plan with these choices active, where its rules offer them; a choice of None is the full size. A
    choice that is a mapping says it site by site, and leaves the sites it does not name.

    Without `settings` every rule is at its full size: two plans that differ in a choice only describe the
    same tensors.
    """
    return SharePlan(tuple(_with_choices(step, settings) for step in plan.steps), plan.form)


def _with_choices(step: Step, settings: Mapping[str, Any] | None) -> Step:
    if isinstance(step, Arrange):
        return _with_depths(step, {"loops": None, "depth": None} if settings is None else settings)
    if not isinstance(step, Generate):
        return step
    offered = step_rule(step).choices()
    asked = dict.fromkeys(offered) if settings is None else settings
    active = {k: _by_site(step, k, v) for k, v in asked.items() if k in offered}
    args = {k: v for k, v in {**step.args, **active}.items() if not (k in offered and v is None)}
    return replace(step, args=args)


def _by_site(step: Generate, key: str, value: Any) -> Any:
    """The active choice as a step keeps it: one value, or a tuple of one for each site where they differ."""
    if not isinstance(value, Mapping):
        return value
    now = step.args.get(key)
    before = now if isinstance(now, tuple) else (now,) * len(step.sites)
    values = tuple(value.get(site, old) for site, old in zip(step.sites, before, strict=True))
    return values[0] if len(set(values)) == 1 else values


def _with_depths(step: Arrange, settings: Mapping[str, Any]) -> Arrange:
    loops, layers = settings.get("loops", step.loops), settings.get("depth", step.layers)
    loops = None if loops is None or loops >= step.visits or step.roles != "all" else loops
    layers = None if layers is None or not step.drops or layers >= len(step.order) else layers
    active: dict[str, Any] = {"loops": loops, "layers": layers}
    origin = None if step.origin is None else replace(step.origin, **active)
    return replace(step, origin=origin, **active)


def draw_seed() -> int:
    """A seed from torch's generator: `torch.manual_seed` makes adapters equal, whatever their names, and
    without it a second adapter differs from the first.
    """
    return int(torch.randint(2**62, (), device="cpu"))


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator for one tensor, from a seed and names only: the order of the model's modules does
    not matter.
    """
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

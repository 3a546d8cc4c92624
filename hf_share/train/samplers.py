# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Which subnets of an elastic model a step trains.

A sampler is a pure function of (seed, step, micro-step): all ranks agree on the subnet, gradient
checkpointing recomputes the same one, and a restarted run repeats it. The loss of a micro-step is

    L = sum over k of w_k L(subnet k)

    every          each offered value, set everywhere (Sorted's loss, arXiv 2309.08968)
    uniform        p(v) = 1/n for each unit by itself; the mean over L units then varies by sigma^2/L only
    triangular     mean over units mu(t) = lo + (hi - lo) |2 (t mod SL)/SL - 1|, SL = `period` (LLM-QFA,
                   arXiv 2405.20202); p(v) by maximum entropy, which that paper leaves open
    random_mean    the same with mu ~ U(lo, hi) drawn at each micro-step: no period to tune
    mixture        with probability p one value for all units, else random_mean
    sandwich       the largest, the smallest and n more, drawn by another sampler (BigNAS, arXiv 2003.11142)

Any of them may be delayed (DepS, arXiv 2407.06167): only the largest subnet trains for `warm` steps, then it
keeps weight 1 while the weight of the others climbs to 1 within `ramp` steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from ..errors import ConfigError, unknown
from .draws import max_entropy, pick, uniform


SAMPLERS: dict[str, type[Sampler]] = {}
Unit = tuple[str, ...]  # names of sites that take one value together


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be chosen.

    Attributes:
        values: offered values by the choice's name, smallest first.
        units: where a choice is made for itself, by the choice's name. A choice without units is made once
            for the whole model.
    """

    values: Mapping[str, tuple[Any, ...]]
    units: Mapping[str, tuple[Unit, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(len(values) > 1 for values in self.values.values()):
            raise ConfigError("there is nothing to sample: this model offers no choice between two values")
        for name, values in self.values.items():
            if list(values) != sorted(set(values)):
                raise ConfigError(f"{name}: values {values} must be distinct and stand smallest first")
        for name in self.units:
            if name not in self.values:
                raise unknown("choice", name, self.values, ConfigError)

    def end(self, index: int) -> dict[str, Any]:
        """Every choice at its largest value (-1) or at its smallest (0), everywhere."""
        return {name: values[index] for name, values in self.values.items()}


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """What `hf_share.choose` is given, and the weight of its loss.

    `largest` says that every choice stands at its largest value.
    """

    choices: Mapping[str, Any]
    weight: float = 1.0
    largest: bool = False


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base of all samplers, registered by `@sampler`.

    Attributes:
        warm: steps that train the largest subnet alone.
        ramp: steps after that in which the weight of the others climbs to 1.
    """

    name: ClassVar[str]

    space: Space
    seed: int = 0
    warm: int = 0
    ramp: int = 0

    def __post_init__(self) -> None:
        if self.warm < 0 or self.ramp < 0:
            raise ConfigError(f"{self.name}: warm={self.warm} and ramp={self.ramp} count steps, 0 or more")

    @abstractmethod
    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        """The subnets of one draw that is not delayed; `key` tells draws of one step apart."""

    def subnets(self, step: int, micro: int = 0) -> tuple[Subnet, ...]:
        """The subnets that optimizer step `step` trains in its micro-step `micro`, both counted from 0;
        the largest one first where it is among them.
        """
        if not self.warm and not self.ramp:
            return tuple(self.drawn(step, micro))
        weight = min(1.0, (step - self.warm + 1) / (self.ramp + 1))
        largest = self._largest()
        if weight <= 0.0:
            return (largest,)
        others = (s for s in self.drawn(step, micro) if not s.largest)
        return (largest, *(replace(s, weight=weight * s.weight) for s in others))

    def _largest(self) -> Subnet:
        return Subnet(choices=self.space.end(-1), largest=True)

    def _uniform_net(self, *key: object) -> Subnet:
        """One value for all units."""
        found = {}
        for name, values in self.space.values.items():
            found[name] = pick(values, [1.0] * len(values), uniform(self.seed, *key, name))
        return Subnet(choices=found, largest=found == self.space.end(-1))

    def _at_level(self, level: float, *key: object) -> Subnet:
        """A value for each unit, the mean of every choice at `level` of its range."""
        found = {}
        for name, values in self.space.values.items():
            found[name] = self._by_unit(name, values, max_entropy(values, level), key)
        return Subnet(choices=found, largest=_is_end(found, self.space))

    def _by_unit(
        self, name: str, values: tuple[Any, ...], weights: tuple[float, ...], key: tuple[object, ...]
    ) -> Any:
        units = self.space.units.get(name, ())
        if not units:
            return pick(values, weights, uniform(self.seed, *key, name))
        drawn = ((unit, pick(values, weights, uniform(self.seed, *key, name, unit[0]))) for unit in units)
        return {site: value for unit, value in drawn for site in unit}


def sampler(cls: type[Sampler]) -> type[Sampler]:
    """Register a sampler class under its `name`."""
    SAMPLERS[cls.name] = cls
    return cls


def make_sampler(kind: str, space: Space, *, seed: int = 0, steps: int = 0, **numbers: Any) -> Sampler:
    """The sampler called `kind`.

    Args:
        steps: of the whole run. A `period`, `warm` or `ramp` below 1 is a fraction of them.
        numbers: the sampler's own, among them `warm` and `ramp`.

    Example:
        >>> space = Space(values={"bits": (2, 3, 4)}, units={"bits": (("q",), ("k",))})
        >>> make_sampler("uniform", space).subnets(step=7)[0].choices
        {'bits': {'q': 3, 'k': 2}}
    """
    if kind not in SAMPLERS:
        raise unknown("sampler", kind, SAMPLERS, ConfigError)
    cls = SAMPLERS[kind]
    known = {f.name: f for f in fields(cls) if f.name not in ("space", "seed")}
    for key, value in numbers.items():
        if key not in known:
            raise unknown(f"number of sampler {kind!r}", key, known, ConfigError)
        if known[key].type != "str" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(f"sampler {kind!r}: {key}={value!r} is not a number")
        if known[key].type == "int":
            numbers[key] = _steps(kind, key, value, steps)
    return cls(space=space, seed=seed, **numbers)


def _steps(kind: str, key: str, value: float, steps: int) -> int:
    if 0.0 < value < 1.0 and steps:
        return max(1, round(value * steps))
    if value != int(value):
        raise ConfigError(
            f"sampler {kind!r}: {key}={value!r} is neither a whole number nor a fraction of a run's steps"
        )
    return int(value)


def _is_end(found: Mapping[str, Any], space: Space) -> bool:
    return all(
        set(value.values() if isinstance(value, Mapping) else (value,)) == {space.values[name][-1]}
        for name, value in found.items()
    )


@sampler
@dataclass(frozen=True, kw_only=True)
class Every(Sampler):
    """Each offered value in turn, largest first; a choice with fewer values stays at its smallest."""

    name = "every"

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        count = max(len(values) for values in self.space.values.values())
        for k in range(count):
            choices = {n: v[max(len(v) - 1 - k, 0)] for n, v in self.space.values.items()}
            yield Subnet(choices=choices, weight=1.0 / count, largest=k == 0)


@sampler
@dataclass(frozen=True, kw_only=True)
class Uniform(Sampler):
    """Every value equally likely at each unit."""

    name = "uniform"

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        found = {
            name: self._by_unit(name, values, (1.0,) * len(values), (step, *key))
            for name, values in self.space.values.items()
        }
        yield Subnet(choices=found, largest=_is_end(found, self.space))


@sampler
@dataclass(frozen=True, kw_only=True)
class Triangular(Sampler):
    """The mean runs down and up again within `period` steps."""

    name = "triangular"

    period: int = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period < 2:
            raise ConfigError(f"triangular: period={self.period}; a wave takes 2 steps or more")

    def level(self, step: int) -> float:
        """Where the mean stands between the smallest value (0) and the largest (1)."""
        return abs(2.0 * (step % self.period) / self.period - 1.0)

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        yield self._at_level(self.level(step), step, *key)


@sampler
@dataclass(frozen=True, kw_only=True)
class RandomMean(Sampler):
    """The mean is drawn anew at each micro-step."""

    name = "random_mean"

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        yield self._at_level(uniform(self.seed, step, *key, "level"), step, *key)


@sampler
@dataclass(frozen=True, kw_only=True)
class Mixture(RandomMean):
    """Subnets of one value everywhere with probability `p`, of many values otherwise."""

    name = "mixture"

    p: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"mixture: p={self.p} must lie in [0, 1]")

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        if uniform(self.seed, step, *key, "mixture") < self.p:
            yield self._uniform_net(step, *key, "one")
        else:
            yield from super().drawn(step, *key)


@sampler
@dataclass(frozen=True, kw_only=True)
class Sandwich(Sampler):
    """The two ends and `n` subnets that the sampler `inner` draws."""

    name = "sandwich"

    n: int = 2
    inner: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 0:
            raise ConfigError(f"sandwich: n={self.n} counts subnets between the ends, 0 or more")
        if self.inner not in SAMPLERS or SAMPLERS[self.inner] in (Every, Sandwich):
            raise unknown("inner sampler", self.inner, set(SAMPLERS) - {"every", "sandwich"}, ConfigError)

    def drawn(self, step: int, *key: object) -> Iterator[Subnet]:
        yield self._largest()
        yield Subnet(choices=self.space.end(0))
        for k in range(self.n):
            one = make_sampler(self.inner, self.space, seed=self.seed)
            yield from one.drawn(step, *key, k)

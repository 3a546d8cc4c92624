# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank factors: every weight becomes a product of two thin matrices (SVD-LLM, arXiv 2403.07378).

    W' = B A,   A (r, in),  B (out, r)        stored: r (in + out) instead of in out

Nothing is shared: it is the yardstick that sharing has to beat at equal bytes, and often does not. B and A
come from the singular value decomposition of W R, where R R^T = E[x x^T] on calibration text, so that they
are the rank-r product with the least error of the *output*; of W alone where no text is given.

The paper keeps the same share of every weight (`ranks="equal"`). Here a budget is spent by error: the rank
goes where it takes most of E |(W - W') x|^2 / E |W x|^2 for a number (`allocate`), and a weight whose product
would cost too much stays dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapter import group_names
from ..allocate import Option, allocate
from ..config import ShareConfig, method
from ..errors import ConfigError, unknown
from ..factors import Factors
from ..linalg import energies
from ..plan import SharePlan
from ..sites import Site
from ..steps import Generate
from ..targets import ALL_LINEAR, select
from ..weighed import weighed


RANKS = ("error", "equal")


@method
@dataclass
class SvdConfig(ShareConfig):
    """Config of low-rank factors, for `hf_share.share` or `get_peft_model`. Give `share` calibration text.

    Args:
        ratio: stored over dense numbers of the targeted weights, what is *kept*; embeddings and norms come on
            top.
        ranks: `"error"` spends it where errors are largest, `"equal"` keeps the same share of each weight.
        target_modules: as in peft: a list of endings, a regex, or `"all-linear"`.

    Example:
        >>> SvdConfig(ratio=0.6).ranks
        'error'
    """

    name: ClassVar[str] = "svd"

    ratio: float = 0.7
    ranks: str = "error"
    target_modules: list[str] | str | None = ALL_LINEAR

    def __post_init__(self):
        super().__post_init__()
        self.require_share("ratio")
        if self.ranks not in RANKS:
            raise unknown("ranks", self.ranks, RANKS, ConfigError)

    @property
    def needs_calibration(self) -> bool:
        return True  # what was measured may come out another way elsewhere: a plan that is given is taken

    @property
    def assumes(self) -> tuple[str, ...]:
        if self.ranks == "equal" or self._given is not None:
            return ()
        return ("every weight keeps the same share of its numbers; by error it differs",)

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        return self.by_ratio(model, calibration)(self.ratio)

    def by_ratio(self, model: nn.Module, calibration: Any = None) -> Callable[[float], SharePlan]:
        """The plan for any ratio, in place of the config's own: the model is measured once.

        Raises:
            Refused: as `steps` does. The plan's function raises `ConfigError` below the smallest ratio.
        """
        found = select(model, self)
        measures = self.ranks == "error" and not self._outlined
        spent = _by_error(model, found, calibration) if measures else partial(_equal, found)
        init = "whitened" if calibration is not None else "svd"
        return lambda ratio: SharePlan(tuple(_steps(model, found, spent(ratio), init)))


def _equal(found: Sequence[Site], ratio: float) -> list[int | None]:
    return [max(int(ratio * _numbers(site) / sum(site.shape)), 1) for site in found]


def _by_error(
    model: nn.Module, found: list[Site], calibration: Any
) -> Callable[[float], list[int | None]]:
    held, roots = weighed(model, found, calibration, 'give ranks="equal"')
    with torch.no_grad():
        units = [[_option(site, held[site.name], roots.get(site.module))] for site in found]
    whole = sum(map(_numbers, found))
    return lambda ratio: [choice.ranks[0] for choice in allocate(units, int(ratio * whole))]


def _steps(
    model: nn.Module, found: Sequence[Site], ranks: Sequence[int | None], init: str
) -> Iterator[Generate]:
    """A step for each type of weight and rank; a weight without a rank stays dense."""
    types: dict[tuple, dict[int, list[Site]]] = {}
    for site, r in zip(found, ranks, strict=True):
        if r is not None:
            types.setdefault((site.stack, site.role, site.shape), {}).setdefault(r, []).append(site)
    names = group_names(model, "svd", [next(iter(by_rank.values())) for by_rank in types.values()])
    for name, by_rank in zip(names, types.values(), strict=True):
        for r, own in by_rank.items():
            yield Factors(r=r, init=init).step(own, f"{name}_{r}")


def _numbers(site: Site) -> int:
    return site.in_features * site.out_features


def _option(site: Site, W: Tensor, R: Tensor | None) -> Option:
    """What each rank leaves of the output of W (out, in), as a share of it."""
    found = energies(W.float() if R is None else W.float() @ R).cpu()
    cost, whole = sum(site.shape), _numbers(site)
    share = found / found.sum().clamp_min(1e-30)
    most = max((whole - 1) // cost, 1)
    return Option(atoms=0, fixed=0, cost=cost, energies=(share,), least=1, most=most, dense=whole)

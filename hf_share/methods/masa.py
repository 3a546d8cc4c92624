# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""MASA: the attention projections of all layers are sums of a few shared matrices (arXiv 2508.04581).

For each projection t of q, k, v and o, S atoms are stored once, and S numbers for each layer l:

    W_l^t = sum over s of c_ls^t D_s^t        stored: S d h + L S instead of L d h, so 1 - S / L is saved

**From scratch** (`init="random"`): atoms and coefficients train with the rest of the model; with
`coef_param="mlp"` a small net makes the coefficients while training, and `hf_share.settle` leaves C alone.

**A pretrained model** (`init="pca"`, the default): layers are grouped (`groups="kl"` cuts where what the
model would say drifts most), atoms and coefficients are the principal ones of each group (`linalg.gram_pca`),
and what they lack is refined by a low-rank product of each layer's own, whitened by the inputs of calibration
text:

    W_l = sum over s of c_ls D_s + B_l A_l    stored: S d h + n S + sum over l of r_l (d + h) for each group

`ratio` picks S and r_l for a budget (`allocate`): the least error on the calibration text, of each weight
over what it puts out, since a large output is not worth more for being large. With no atoms a weight is its
low-rank product alone, and a weight whose product would cost too much stays dense. The spectrum of pretrained
weights is flat, so most of a budget goes to the residual. Biases stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapter import group_names
from ..allocate import Option, allocate
from ..atoms import COEFS, INITS, Atoms
from ..attention import LETTERS, projection_types
from ..config import ShareConfig, method
from ..drift import cut, kl_drift
from ..errors import ConfigError, unknown
from ..factors import Factors
from ..linalg import energies, gram_pca
from ..low_rank import LowRank
from ..plan import SharePlan
from ..sites import Site, stacks
from ..steps import Generate
from ..weighed import weighed


MOST_COUNTS = 9  # numbers of atoms that are tried for a group, spread evenly where there are more layers

ERRORS = ("relative", "absolute")


@method
@dataclass
class MasaConfig(ShareConfig):
    """Config of MASA, for `hf_share.share`, `get_peft_model`, or a model that is to be trained from scratch.

    Args:
        projections: letters of `q k v o`. The output projection gains least from sharing: leave it out first.
            Where q, k and v are one fused weight they are one type, and asked for together.
        num_atoms: S, for each group and projection; a third of the group's layers if None. 0 leaves only the
            low-rank products.
        coef_param: `"direct"`, or `"mlp"`, which trains from random atoms.
        groups: lists of layers that share atoms, `"kl"` to cut `num_groups` at the largest drifts (needs
            calibration text), or None: all layers are one group.
        residual_rank: rank of each layer's own product on top; whitened if calibration is given, a plain
            truncated one otherwise (for `get_peft_model`: `with_calibration`). The plan says which.
        ratio: stored over dense numbers of the targeted weights, what is *kept*. Chooses atoms and ranks; one
            of `num_atoms` and `residual_rank` may be held.
        num_groups: how many groups `"kl"` cuts.
        error: what `ratio` makes least, summed over weights: E |(W - W') x|^2 as it is (`"absolute"`), or
            over E |W x|^2 (`"relative"`, which costs a real model much less perplexity).
        init: `"pca"` of the weights there are, or `"random"`.
        stack: path of the stack, for models with several; all that have attention if None.

    Example:
        >>> MasaConfig(projections="qkv", num_atoms=4).projections
        ['q', 'k', 'v']
    """

    name: ClassVar[str] = "masa"

    projections: list[str] | str = "qkvo"
    num_atoms: int | None = None
    coef_param: str = "direct"
    groups: list[list[int]] | str | None = None
    residual_rank: int | None = None
    ratio: float | None = None
    num_groups: int = 2
    error: str = "relative"
    init: str | None = None
    stack: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.projections = _letters(self.projections)
        for name in ("num_atoms", "residual_rank"):
            if getattr(self, name) is not None:
                self.require_count(name, least=0)
        self.require_count("num_groups")
        if self.coef_param not in COEFS:
            raise unknown("coef_param", self.coef_param, COEFS, ConfigError)
        if self.init is not None and self.init not in INITS:
            raise unknown("init", self.init, INITS, ConfigError)
        if self.coef_param == "mlp" and self.init == "pca":
            raise ConfigError("coef_param='mlp' trains from random atoms; init='pca' goes with 'direct'")
        if self.error not in ERRORS:
            raise unknown("error", self.error, ERRORS, ConfigError)
        if isinstance(self.groups, str) and self.groups != "kl":
            raise unknown("groups", self.groups, ("kl",), ConfigError)
        if self.groups is not None and not isinstance(self.groups, str):
            self._take_list("groups", (list, tuple))
            self.groups = [list(group) for group in self.groups]
        self._check_budget()

    def _check_budget(self) -> None:
        if self.num_atoms == 0 and not self.residual_rank and self.ratio is None:
            raise ConfigError("num_atoms=0 and no residual_rank would leave no weights")
        if self.ratio is None:
            return
        self.require_share("ratio")
        if self.num_atoms is not None and self.residual_rank is not None:
            raise ConfigError("ratio chooses atoms and ranks; hold num_atoms or residual_rank, not both")
        if self._start == "random":
            raise ConfigError("ratio weighs the errors of given weights, and init='random' has none")

    @property
    def _start(self) -> str:
        return self.init or ("random" if self.coef_param == "mlp" else "pca")

    @property
    def needs_calibration(self) -> bool:
        # what was measured may come out another way elsewhere: a plan that is given is taken as it is
        fits = bool(self.residual_rank) and self._start != "random"
        return self.groups == "kl" or self.ratio is not None or fits

    @property
    def assumes(self) -> tuple[str, ...]:
        said = []
        if self.groups == "kl":
            said.append("groups of layers are of one size")
        if self.ratio is not None:
            said.append("each projection keeps the same share of its numbers; by error it differs")
        return tuple(said) if self._given is None else ()

    def steps(self, model: nn.Module, calibration: Any = None) -> SharePlan:
        types = projection_types(model, self.projections, self.stack)
        groups = self._groups(model, types, calibration)
        units = [
            [site for site in sites if site.depth in group]
            for sites in types
            for group in groups[sites[0].stack or ""]
        ]
        units = [unit for unit in units if unit]
        if self.ratio is not None:
            chosen = self._evenly(units) if self._outlined else self._chosen(model, units, calibration)
            return self._written(model, units, chosen, calibration)
        atoms = [self._atoms(len(unit)) for unit in units]
        rank = self.residual_rank or 0
        return self._written(
            model, units, [(S, [rank] * len(u)) for S, u in zip(atoms, units, strict=True)], calibration
        )

    def _atoms(self, layers: int) -> int:
        if self.num_atoms is None:
            return max(layers // 3, 1)
        if self.num_atoms <= layers or self.groups == "kl":
            return min(self.num_atoms, layers)
        raise ConfigError(
            f"num_atoms={self.num_atoms} for a group of {layers} layers: with {layers} atoms nothing is "
            "saved and nothing is lost"
        )

    def _groups(
        self, model: nn.Module, types: list[list[Site]], calibration: Any
    ) -> dict[str, list[list[int]]]:
        """Stack -> groups of its layers."""
        depths = {path: stack.depth for path, stack in stacks(model).items()}
        used = dict.fromkeys(sites[0].stack or "" for sites in types)
        if self.groups is None:
            return {path: [list(range(depths[path]))] for path in used}
        if isinstance(self.groups, str):
            if self._outlined:
                return {path: _even(depths[path], self.num_groups) for path in used}
            if calibration is None:
                raise ConfigError(
                    "groups='kl' measures the model, which needs text: hf_share.share(model, config, "
                    "calibration=...), for get_peft_model config.with_calibration(...); or give the groups "
                    "as a list"
                )
            return {path: cut(kl_drift(model, calibration, path), self.num_groups) for path in used}
        named = [layer for group in self.groups for layer in group]
        for path in used:
            if sorted(named, key=repr) != sorted(range(depths[path]), key=repr):
                raise ConfigError(
                    f"groups is {self.groups}; every layer 0 to {depths[path] - 1} of stack {path!r} stands "
                    "in one group"
                )
        return dict.fromkeys(used, self.groups)

    def _written(
        self,
        model: nn.Module,
        units: list[list[Site]],
        chosen: Sequence[tuple[int, Sequence[int | None]]],
        calibration: Any,
    ) -> SharePlan:
        """The steps of units with these atoms and ranks; a site without a rank (None) stays dense."""
        std = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
        start = {"init": "random", "std": float(std)} if self._start == "random" else {}
        given = "whitened" if calibration is not None else "svd"
        makes: list[Generate] = []
        adds: list[Generate] = []
        names = group_names(model, "masa", units)
        for unit, name, (S, ranks) in zip(units, names, chosen, strict=True):
            if S:
                makes.append(Atoms(S=S, coef=self.coef_param, **start).step(unit, name))
            for r in sorted({r for r in ranks if r}):
                sites = [site for site, rank in zip(unit, ranks, strict=True) if rank == r]
                if S:
                    rest = LowRank(r=r, init="kaiming" if start else given)
                    adds.append(rest.step(sites, f"{name}_rest_{r}"))
                else:
                    makes.append(Factors(r=r, **(start or {"init": given})).step(sites, f"{name}_{r}"))
        return SharePlan((*makes, *adds))

    def _chosen(
        self, model: nn.Module, units: list[list[Site]], calibration: Any
    ) -> list[tuple[int, list[int | None]]]:
        """Atoms and ranks of each unit, by the budget."""
        every = [site for unit in units for site in unit]
        held, roots = weighed(model, every, calibration, "give num_atoms and residual_rank")
        assert self.ratio is not None
        with torch.no_grad():
            options = [
                self._options([held[site.name] for site in unit], [roots.get(site.module) for site in unit])
                for unit in units
            ]
        budget = int(self.ratio * sum(w.numel() for w in held.values()))
        return [(c.option.atoms, c.ranks) for c in allocate(options, budget)]

    def _evenly(self, units: list[list[Site]]) -> list[tuple[int, list[int | None]]]:
        """Atoms and ranks that spend the budget of each unit by itself, none on atoms unless asked to."""
        assert self.ratio is not None
        found: list[tuple[int, list[int | None]]] = []
        for unit in units:
            (out, width), n = unit[0].shape, len(unit)
            S, budget = min(self.num_atoms or 0, n), int(self.ratio * n * out * width)
            atom, rank = out * width + n, n * (out + width)
            if self.residual_rank is not None:
                S = min(max((budget - self.residual_rank * rank) // atom, 0), n)
            most = min(out, width) if S else max((out * width - 1) // (out + width), 1)
            r = (budget - S * atom) // rank if self.residual_rank is None else self.residual_rank
            found.append((S, [min(max(r, 0 if S else 1), most)] * n))
        return found

    def _options(self, weights: list[Tensor], roots: list[Tensor | None]) -> list[Option]:
        """What each number of atoms leaves of a unit's weights, whitened by `roots`."""
        (out, width), n = weights[0].shape, len(weights)
        counts = [self.num_atoms] if self.num_atoms is not None else _spread(n)
        D, C, _ = gram_pca(weights, max(counts, default=0))
        rest, found, done = [w.float() for w in weights], [], 0
        scale = [1.0] * n
        if self.error == "relative":  # of E |W x|^2
            white = [R if root is None else R @ root for R, root in zip(rest, roots, strict=True)]
            scale = [1.0 / max(float(R.square().sum()), 1e-30) for R in white]
        for S in (S for S in counts if S <= n):
            more = [torch.tensordot(c[done:S], D[done:S].float(), dims=1) for c in C]
            rest, done = [R - W for R, W in zip(rest, more, strict=True)], S
            white = [R if root is None else R @ root for R, root in zip(rest, roots, strict=True)]
            most = (out * width - 1) // (out + width) if not S else min(out, width)
            least = 0 if S else 1
            if self.residual_rank is not None:
                least = most = min(self.residual_rank, most)
            if not S and not most:
                continue
            found.append(
                Option(
                    atoms=S, fixed=S * (out * width + n), cost=out + width, least=least, most=most,
                    energies=tuple(a * energies(R).cpu() for R, a in zip(white, scale, strict=True)),
                    dense=0 if S or self.residual_rank is not None else out * width,
                )
            )  # fmt: skip
        return found


def _letters(value: Any) -> list[str]:
    letters = list(value) if isinstance(value, (str, list, tuple)) else [value]
    for letter in letters:
        if not isinstance(letter, str) or letter not in LETTERS:
            raise unknown("projection", letter, LETTERS, ConfigError)
    if not letters or len(set(letters)) != len(letters):
        raise ConfigError(f"projections is {value!r}; letters of q k v o fit, each once")
    return [letter for letter in LETTERS if letter in letters]


def _even(depth: int, count: int) -> list[list[int]]:
    """Layers in order, in `count` groups of nearly one size; refused where drift could not be cut so."""
    edges = {depth * i // count for i in range(1, count)}
    return cut([float(layer in edges) for layer in range(1, depth)], count)


def _spread(layers: int) -> list[int]:
    """Numbers of atoms below `layers`, at most `MOST_COUNTS`."""
    count = min(layers, MOST_COUNTS)
    return sorted({round(i * layers / count) for i in range(count)})

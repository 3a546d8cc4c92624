# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What in a stack could be shared or left out, measured before anything is changed.

    influence   block influence of each layer: what it does to its input                       (ShortGPT)
    drift       KL from each layer to the next of what the model would say                         (MASA)
    heads       how alike the attention heads of two layers are, as weights
    spectrum    for each role and layer, the share of its rank that holds 90 % of its energy

The head h of layer l is the vector w_lh of its query rows and of the key rows it attends with; layers i and j
are alike by the mean over heads of i of the largest cosine with a head of j. Rotations inside a head change
the cosine and not the function, so a low number excludes nothing, while a high one says the weights are
nearly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .attention import LEAVES
from .dense import dense
from .drift import kl_drift
from .errors import ConfigError, Refused, unknown
from .importance import block_influence, only_stack
from .linalg import energies
from .sites import Site, backbone, sites, stacks


ENERGY = 0.9
Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Numbers of one stack; a measure that was not asked for, or that the model has no place for, is None,
    and `missing` says why.
    """

    model: str
    stack: str
    depth: int
    influence: tuple[float, ...] | None = None
    drift: tuple[float, ...] | None = None  # between neighbours: one fewer than layers
    heads: Matrix | None = None  # layers x layers
    spectrum: dict[str, tuple[float | None, ...]] | None = None  # role -> layers
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def plot(self, path: Any) -> None:
        """Draw every measure there is; head similarity and spectrum as heat maps."""
        from .plots import plot_scan

        plot_scan(self, path)


def scan(
    model: nn.Module,
    calibration: Sequence[Any] | None = None,
    stack: str | None = None,
    measures: Sequence[str] | None = None,
) -> Scan:
    """Measure what could be shared in one stack of `model`; nothing is changed.

    Args:
        calibration: texts or token batches, as for `block_influence`; `heads` and `spectrum` need none.
        stack: path of the stack; may be left out if the model has only one.
        measures: some of `influence`, `drift`, `heads` and `spectrum`; all if None. The spectrum decomposes
            every weight, which takes the longest on a large model.

    Example:
        >>> scan(model, texts, measures=["influence"]).influence  # doctest: +SKIP
    """
    path, found, missing = only_stack(model, stack), {}, {}
    if any(p.is_meta for p in model.parameters()):
        raise Refused("a scan reads weights, and this model has none")
    for name in MEASURES if measures is None else measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES, ConfigError)
        try:
            found[name] = MEASURES[name](model, calibration, path)
        except Refused as error:
            missing[name] = str(error)
    depth = stacks(model)[path].depth
    return Scan(model=type(model).__name__, stack=path, depth=depth, missing=missing, **found)


def _influence(model: nn.Module, calibration: Any, stack: str) -> tuple[float, ...]:
    return tuple(map(_short, block_influence(model, _text(calibration), stack)))


def _drift(model: nn.Module, calibration: Any, stack: str) -> tuple[float, ...]:
    return tuple(map(_short, kl_drift(model, _text(calibration), stack)))


def _text(calibration: Any) -> Any:
    if calibration is None:
        raise ConfigError("influence and drift are measured on text: scan(model, texts)")
    return calibration


@torch.no_grad()
def head_similarity(model: nn.Module, calibration: Any, stack: str) -> Matrix:
    """Layers x layers: the mean over heads of one layer of the best cosine with a head of the other."""
    vectors = _heads(model, stack)
    return tuple(tuple(None if None in (a, b) else _alike(a, b) for b in vectors) for a in vectors)


def _alike(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape[1] != theirs.shape[1]:
        return 0.0
    return _short(float((ours @ theirs.mT).amax(1).mean()))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _heads(model: Any, stack: str) -> list[Any]:
    """For each layer the heads as unit vectors, (heads, numbers), or None where there is no attention."""
    config = getattr(model.config, "text_config", model.config)
    count = getattr(config, "num_attention_heads", None)
    every = [s for s in sites(model, parts=True) if s.stack == stack and s.kind != "expert"]
    pairs = [(_projection(every, d, "q"), _projection(every, d, "k")) for d in range(_depth(model, stack))]
    if not isinstance(count, int) or not any(q and k for q, k in pairs):
        raise Refused(f"{type(model).__name__} has no attention with query and key projections in {stack!r}")
    base, out = backbone(model), []
    for q, k in pairs:
        if q is None or k is None or q.out_features % count:
            out.append(None)
            continue
        Q = dense(base, q).float().unflatten(0, (count, -1))  # (heads, width, in)
        K = dense(base, k).float().unflatten(0, (-1, Q.shape[1]))
        K = K.repeat_interleave(count // len(K), 0)  # grouped queries attend with one key head
        out.append(F.normalize(torch.cat([Q, K], 1).flatten(1), dim=1))
    return out


def _projection(every: list[Site], depth: int, letter: str) -> Site | None:
    """The first projection of the layer under a known name: its self-attention's."""
    own = (s for s in every if s.depth == depth)
    return next((s for s in own if s.role.rpartition(":")[2].rpartition(".")[2] in LEAVES[letter]), None)


def _depth(model: nn.Module, stack: str) -> int:
    return stacks(model)[stack].depth


@torch.no_grad()
def spectrum(model: nn.Module, calibration: Any, stack: str) -> dict[str, tuple[float | None, ...]]:
    """Role -> for each layer, the least share of the singular values that holds `ENERGY` of their squares."""
    own = [s for s in sites(model) if s.stack == stack and s.kind != "expert"]
    rows: dict[str, list[float | None]] = {s.role: [None] * _depth(model, stack) for s in own}
    base = backbone(model)
    for site in tqdm(own, desc="spectrum", unit="weight", leave=False):
        held = energies(dense(base, site)).cumsum(0)
        rank = int((held < ENERGY * held[-1]).sum()) + 1
        rows[site.role][site.depth or 0] = _short(rank / min(site.shape))
    return {role: tuple(row) for role, row in rows.items()}


MEASURES: dict[str, Callable[[nn.Module, Any, str], Any]] = {
    "influence": _influence,
    "drift": _drift,
    "heads": head_similarity,
    "spectrum": spectrum,
}

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The attention projections of a model, by the letters q, k, v and o.

Read off the modules: an attention is a module of a layer that holds a query, a key and a value projection
under one of the names below, or one fused weight whose parts they are; its output projection lies beside them
or in the `output` beside it (BERT). A layer may hold several (T5's decoder: self and cross attention), and
each is a type of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from .errors import Refused
from .sites import Site, sites, stacks


LETTERS = ("q", "k", "v", "o")
LEAVES = {
    "q": ("q_proj", "query", "q_lin", "q"),
    "k": ("k_proj", "key", "k_lin", "k"),
    "v": ("v_proj", "value", "v_lin", "v"),
    "o": ("o_proj", "out_proj", "out_lin", "o", "c_proj", "dense"),
}
BESIDE = "output.dense"  # where the output projection lies beside the module with the other three
FUSED = ("q", "k", "v")


def projection_types(model: nn.Module, letters: Sequence[str], stack: str | None = None) -> list[list[Site]]:
    """The sites of the projections `letters`, by stack, attention, letter and shape: the layers that may
    share. q, k and v in one fused weight are one type, taken whole.

    Raises:
        Refused: where there is no attention with such projections, or a fused weight is asked for in part.
    """
    found: list[list[Site]] = []
    paths = list(stacks(model)) if stack is None else [stack]
    every = sites(model, parts=True)
    for path in paths:
        found += _of_stack([s for s in every if s.stack == path], letters)
    if not found:
        where = " or ".join(map(repr, paths)) or "no stack of layers"
        raise Refused(
            f"{type(model).__name__} has no attention with projections q, k and v in {where}; known names "
            f"are {', '.join(n for letter in FUSED for n in LEAVES[letter])}, and fused weights of such parts"
        )
    return found


def attentions(every: Collection[Site]) -> Iterator[dict[str, str]]:
    """For each attention among the sites of one layer, or of the layers of one stack: letter -> role. q, k
    and v may have the role of one fused weight; what has no known name has the role "".
    """
    roles, parts = set(), {}
    for site in every:
        if site.part is not None:
            parts.setdefault(site.role.partition(":")[0], set()).add(site.part.name)
        elif site.kind != "expert":
            roles.add(site.role)
    for home in dict.fromkeys(site.role.rpartition(".")[0] for site in every if site.role in roles):
        own = _attention(home, roles, parts)
        if own:
            yield own


def _of_stack(every: list[Site], letters: Sequence[str]) -> list[list[Site]]:
    roles: dict[str, dict[tuple[int, int], list[Site]]] = {}
    for site in every:
        if site.part is None and site.kind != "expert":
            roles.setdefault(site.role, {}).setdefault(site.shape, []).append(site)
    found: list[list[Site]] = []
    for own in attentions(every):
        home = own["q"].rpartition(".")[0]
        for role in dict.fromkeys(_asked(letter, home, own) for letter in letters):
            found += roles[role].values()
        if own["q"] == own["k"] and 0 < len(set(letters) & set(FUSED)) < len(FUSED):
            raise Refused(
                f"{own['q']!r} of stack {every[0].stack!r} holds q, k and v in one weight, which is made "
                f"whole or not at all; projections={list(letters)} asks for a part. Ask for q, k and v "
                "together"
            )
    return found


def _attention(home: str, roles: Collection[str], parts: dict[str, set[str]]) -> dict[str, str]:
    """Letter -> role of the attention whose q, k and v lie in the module `home`; empty if none do."""
    dot = f"{home}." if home else ""
    fused = [r for r in sorted(roles) if r.rpartition(".")[0] == home and parts.get(r, set()) >= set(FUSED)]
    own = {letter: _first(roles, dot, LEAVES[letter]) for letter in LETTERS}
    own |= dict.fromkeys(FUSED, fused[0]) if fused else {}
    if not all(own[letter] for letter in FUSED):
        return {}
    beside = home.rpartition(".")[0]
    own["o"] = own["o"] or _first(roles, f"{beside}." if beside else "", (BESIDE,))
    return own


def _first(roles: Collection[str], dot: str, leaves: Sequence[str]) -> str:
    return next((dot + leaf for leaf in leaves if dot + leaf in roles), "")


def _asked(letter: str, home: str, own: dict[str, str]) -> str:
    if not own[letter]:
        raise Refused(
            f"the attention {home!r} has no projection {letter!r} under a known name; leave it out of "
            "projections"
        )
    return own[letter]

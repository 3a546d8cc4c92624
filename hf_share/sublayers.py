# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The sub-layers of a model that have lanes: its feed-forward blocks and its attentions (`lanes.py`).

Read off the modules: a feed-forward block is a module that holds one of the pairs of names below, whose
shapes meet; an attention is one of `attention.py`, and has as many lanes as its config counts key-value
heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .attention import FUSED, attentions
from .errors import Refused
from .sites import Site, backbone, resolve, sites, stacks, tensors


# the weight that empties the lanes, and those that fill them; the first that fits wins
BLOCKS = (
    ("down_proj", ("gate_proj", "up_proj")),
    ("down_proj", ("gate_up_proj:gate", "gate_up_proj:up")),
    ("down_proj", ("up_proj",)),
    ("c_proj", ("c_fc",)),
    ("fc2", ("fc1",)),
    ("dense_4h_to_h", ("dense_h_to_4h",)),
    ("fc_out", ("fc_in",)),
    ("w2", ("w1", "w3")),
    ("wo", ("wi_0", "wi_1")),
    ("wo", ("wi",)),
    ("output.dense", ("intermediate.dense",)),
    ("lin2", ("lin1",)),
)
HEADS = (
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "num_attention_heads", "n_head", "num_heads",
    "n_heads",
)  # fmt: skip


@dataclass(frozen=True)
class Sublayer:
    """Sub-layers alike at several depths: the role that empties the lanes, the roles that fill them, how many
    lanes, and the sites of the first role.
    """

    role: str
    feeds: tuple[str, ...]
    lanes: int
    sites: tuple[Site, ...]


def feed_forwards(model: nn.Module) -> list[Sublayer]:
    """The feed-forward blocks of `model`; a lane is a neuron.

    Raises:
        Refused: if there is none under a known name.
    """
    found = [s for roles in _layers(model) for s in _blocks(backbone(model), roles)]
    if not found:
        raise Refused(
            f"{type(model).__name__} has no feed-forward block under a known name; known weights are "
            f"{', '.join(dict.fromkeys(block[0] for block in BLOCKS))}"
        )
    return _alike(found)


def head_groups(model: nn.Module) -> list[Sublayer]:
    """The attentions of `model`; a lane is a key-value head with its queries.

    Raises:
        Refused: if there is none, or one has numbers of its own for each head.
    """
    lanes = _heads(model)
    found = [s for roles in _layers(model) for s in _attentions(backbone(model), roles, lanes)]
    if not found:
        raise Refused(f"{type(model).__name__} has no attention with projections under known names")
    return _alike(found)


def _layers(model: nn.Module) -> Iterator[dict[str, Site]]:
    """For each layer its sites by role, parts included."""
    layers: dict[tuple[Any, ...], dict[str, Site]] = {}
    known = stacks(model)
    for site in sites(model, parts=True):
        if site.stack in known and site.kind in ("linear", "conv1d"):
            layers.setdefault((site.stack, site.depth), {})[site.role] = site
    yield from layers.values()


def _blocks(base: nn.Module, roles: dict[str, Site]) -> Iterator[Sublayer]:
    taken: set[str] = set()
    for end, starts in BLOCKS:
        for role, site in roles.items():
            if role in taken or not (role == end or role.endswith(f".{end}")):
                continue
            feeds = tuple(role.removesuffix(end) + start for start in starts)
            if all(f in roles and roles[f].out_features == site.in_features for f in feeds):
                taken.add(role)
                _require_plain(base, site, [roles[f] for f in feeds], {site.in_features})
                yield Sublayer(role, feeds, site.in_features, (site,))


def _attentions(base: nn.Module, roles: dict[str, Site], lanes: int) -> Iterator[Sublayer]:
    for own in attentions(roles.values()):
        names = [f"{own[x]}:{x}" if own["q"] == own["k"] else own[x] for x in FUSED]
        if not own["o"] or any(name not in roles for name in names):
            continue
        site, feeds = roles[own["o"]], [roles[name] for name in names]
        if any(n % lanes for n in (site.in_features, *(feed.out_features for feed in feeds))):
            raise Refused(
                f"site {site.name!r} and what feeds it do not divide into {lanes} key-value heads, which the "
                "config counts"
            )
        sizes = {lanes, site.in_features, feeds[1].out_features}
        _require_plain(base, site, feeds, sizes | {site.in_features // (feeds[1].out_features // lanes)})
        yield Sublayer(own["o"], tuple(names), lanes, (site,))


def _require_plain(base: nn.Module, site: Site, feeds: Sequence[Site], sizes: set[int]) -> None:
    """Raise if the sub-layer has numbers of its own for each lane."""
    paths = [feed.module for feed in feeds] + [site.module]
    home = paths[0].rpartition(".")[0]
    own = tuple(f"{path.removeprefix(f'{home}.')}." for path in paths if path.startswith(f"{home}."))
    layer = home.rpartition(".")[2].isdigit()  # the block lies in its layer, beside the layer's other tensors
    for name, value in () if layer else tensors(resolve(base, home)):
        if not name.startswith(own) and set(value.shape) & sizes:
            raise Refused(
                f"{home!r} has numbers of its own for each lane ({name}, {tuple(value.shape)}), which a "
                "smaller sub-layer would need fewer of; hf_share does not know how"
            )


def _heads(model: nn.Module) -> int:
    config: Any = getattr(backbone(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(config, name, None) for name in HEADS)
    lanes = next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)
    if lanes is None:
        raise Refused(f"the config of {type(model).__name__} does not say how many key-value heads it has")
    return lanes


def _alike(found: list[Sublayer]) -> list[Sublayer]:
    groups: dict[tuple[Any, ...], list[Site]] = {}
    for s in found:
        groups.setdefault((s.role, s.feeds, s.lanes), []).extend(s.sites)
    return [Sublayer(*key, tuple(held)) for key, held in groups.items()]

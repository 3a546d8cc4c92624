# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What each layer of a stack does where fewer are stored than run: a layout, one part a layer.

| part | the layer |
| --- | --- |
| `STORED` | has weights of its own |
| `SHARED` | takes the weights of the stored layer before it |
| `GONE` | is left out |
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


STORED, SHARED, GONE = "stored", "shared", "gone"

Layout = tuple[str, ...]

VERBS = (("remove", GONE), ("share", SHARED))


def by_order(depth: int, order: Sequence[int], gone: int, stored: int) -> Layout:
    """Of `depth` layers the first `gone` of `order` are left out, and of the rest the first share, until
    `stored` are stored. The first layer that stays is stored, and those not in `order` stay.
    """
    kept = [d for d in range(depth) if d not in order[:gone]]
    rank = {layer: i for i, layer in enumerate(order)}
    follow = sorted(kept[1:], key=lambda d: rank.get(d, depth))[: max(len(kept) - stored, 0)]
    return tuple(GONE if d not in kept else SHARED if d in follow else STORED for d in range(depth))


def groups(layout: Layout) -> list[list[int]]:
    """The layers that run, each stored one with those that share it."""
    found: list[list[int]] = []
    for layer, part in enumerate(layout):
        if part == STORED:
            found.append([layer])
        elif part == SHARED:
            found[-1].append(layer)
    return found


def words(layout: Layout) -> str:
    """`remove 3-5, share 2`."""
    parts = ((word, [d for d, p in enumerate(layout) if p == part]) for word, part in VERBS)
    return ", ".join(f"{word} {_runs(layers)}" for word, layers in parts if layers) or "store all"


def neighbours(layout: Layout, scores: Sequence[float], fixed: Collection[int]) -> list[Layout]:
    """Layouts of as many stored layers that differ in what one layer does, or in which of two is stored.
    First those that store a layer of a high score for one of a low. Layers in `fixed` are left as they are.
    """
    free = [d for d in range(len(layout)) if d not in fixed]
    found = [pair for d in free if layout[d] != STORED for pair in _changes(layout, d, free, scores)]
    return [other for _, other in sorted(found) if _runs_at_all(other)]


def _changes(
    layout: Layout, layer: int, free: Sequence[int], scores: Sequence[float]
) -> Iterator[tuple[float, Layout]]:
    """What a layer that is not stored could do instead, with the score that is stored less."""
    yield 0.0, _with(layout, {layer: GONE if layout[layer] == SHARED else SHARED})
    for other in free:
        if layout[other] == STORED:
            for part in (SHARED, GONE):
                yield scores[other] - scores[layer], _with(layout, {layer: STORED, other: part})


def _with(layout: Layout, parts: dict[int, str]) -> Layout:
    return tuple(parts.get(layer, part) for layer, part in enumerate(layout))


def _runs_at_all(layout: Layout) -> bool:
    """True if the first layer that is not left out has weights to share."""
    return next((part for part in layout if part != GONE), GONE) == STORED


def _runs(layers: Sequence[int]) -> str:
    """`1, 3-5`: neighbours as a range."""
    starts = [d for d in layers if d - 1 not in layers]
    ends = [d for d in layers if d + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))

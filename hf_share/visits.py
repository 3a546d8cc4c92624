# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Names before and after an `Arrange` step: the tensors that become one, where a site goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from .rebuild import find_stack
from .sites import Site
from .steps import Arrange


def ties(model: nn.Module, step: Arrange) -> dict[str, str]:
    """Aliases of a checkpoint-form step, `{target: source}` by name from the backbone."""
    stack = find_stack(model, step)
    out: dict[str, str] = {}
    for depth, first in enumerate(step.order):
        if first is None or first == depth:
            continue
        for name in stack.signatures[depth]:
            if step.owns(name) and not step.keeps(name) and name not in stack.partial:
                out[f"{step.stack}.{depth}.{name}"] = f"{step.stack}.{first}.{name}"
    return out


def visited(index: dict[str, Site], step: Arrange) -> dict[str, Site]:
    """Sites as they are named once the step is applied, from the sites before."""
    if step.roles != "all":
        gone = {(d, r) for d, s in enumerate(step.order) if s is None for r in step.roles}
        return {
            n: s
            for n, s in index.items()
            if not (s.stack == step.stack and any(s.depth == d and _within(s.role, r) for d, r in gone))
        }
    out = {n: s for n, s in index.items() if s.stack != step.stack}
    for depth, source in enumerate(step.order):
        for site in index.values():
            if site.stack == step.stack and site.depth == source:
                head, tail = f"{step.stack}.{source}.", f"{step.stack}.{depth}."
                moved = replace(
                    site,
                    name=tail + site.name[len(head) :],
                    module=tail + site.module[len(head) :],
                    depth=depth,
                )
                out[moved.name] = moved
    return out


def origins(index: dict[str, str], step: Arrange) -> dict[str, str]:
    """Site -> the site of the source model it stands for, once the step is applied, from the same before."""
    head = f"{step.stack}."
    out = dict(index) if step.roles != "all" else {n: o for n, o in index.items() if not n.startswith(head)}
    for depth, member in enumerate(step.members):
        for name, origin in index.items() if member is not None else ():
            at, _, role = name.removeprefix(head).partition(".")
            if name.startswith(head) and at == str(member) and step.owns(f"{role}."):
                out[f"{head}{depth}.{role}"] = origin
    return out


def first_visit(site: Site, steps: Sequence[Arrange]) -> str:
    """Path of the module that stores the weight of `site`, once `steps` are applied."""
    for step in steps:
        tensor = f"{site.role}.weight"
        if site.stack == step.stack and step.owns(tensor) and not step.keeps(tensor):
            assert site.depth is not None
            return f"{step.stack}.{step.first_visits[site.depth]}.{site.role}"
    return site.module


def _within(role: str, outer: str) -> bool:
    return role == outer or role.startswith((f"{outer}.", f"{outer}:"))

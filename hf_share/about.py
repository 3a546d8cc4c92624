# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""What a method says of itself: every rule and every config that arranges layers carries one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """The tag by which the Hub finds such models, what the method does in words, and its paper on arXiv."""

    tag: str
    does: str
    paper: str | None = None


def about_rule(name: str) -> About:
    """What can be said of a rule that says nothing of itself."""
    return About(name.replace("_", "-"), f"the rule `{name}` makes weights")

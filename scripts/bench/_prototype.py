# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of a throw-away prototype beside what is measured here: which of them hold, and which are
corrected.

The prototype had other codes and other windows of text, and one seed, so what is compared is how far a method
lies above a named one, not where it lies.
"""

from dataclasses import dataclass

from hf_share.compare.report import table
from hf_share.compare.stats import Interval, interval


MODEL = "stories260k"
TOLERANCE = 0.02  # nats
HEADING = "## The figures of the prototype"


@dataclass(frozen=True)
class Figure:
    """NLL of a method there and here (one number for each seed), and how far above the named one it lies.

    A method that draws nothing has an `above` without spread.
    """

    what: str
    there: float
    here: list[float]
    above_there: float
    above: Interval

    @property
    def outcome(self) -> str:
        if abs(self.above.mean - self.above_there) <= TOLERANCE:
            return "reproduced"
        return "undecided" if self.above.low <= self.above_there <= self.above.high else "corrected"

    def row(self) -> list[str]:
        spread = "" if self.above.count < 2 else f" ± {self.above.half:.3f}"
        shown = (f"{self.there:.3f}", str(interval(self.here)), f"{self.above_there:+.3f}")
        return [self.what, *shown, f"{self.above.mean:+.3f}{spread}", self.outcome]


def section(figures: list[Figure], above: str) -> list[str]:
    """The part of a page with a table of the figures and their outcomes; none without figures.

    Args:
        above: the name of what the methods are compared with.
    """
    if not figures:
        return []
    words = (
        f"Of a throw-away prototype on {MODEL} with other codes and other windows, one seed. One is "
        f"reproduced if its distance to {above} is the same within {TOLERANCE} nat, corrected if it is "
        "another and the 95 % interval leaves the old one out, and undecided otherwise."
    )
    head = ("method", "NLL there", "NLL here", f"above {above} there", f"above {above} here", "figure")
    found = {f.outcome: [g.what for g in figures if g.outcome == f.outcome] for f in figures}
    told = [f"- {outcome}: {'; '.join(names)}" for outcome, names in found.items()]
    return [HEADING, words, table(head, [f.row() for f in figures]), "\n".join(told)]

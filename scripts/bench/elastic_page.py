# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python scripts/bench/elastic_page.py

Joins the pages of the elastic benchmarks, with their plots, into model_cards/results/elastic.md.
"""

import re
from pathlib import Path

from hf_share.files import write_text


RESULTS = Path(__file__).resolve().parents[2] / "model_cards" / "results"
PARTS = ("nested", "train", "search", "export", "adapters", "structure")
TOP = """# Once for all: what was measured

Each part is one command that goes on where it was stopped; its numbers lie beside it as JSON lines."""


def part(name: str) -> str:
    """One page with its headings a level down, and its plots after its text."""
    page = RESULTS / f"elastic_{name}.md"
    if not page.is_file():
        return ""
    text = re.sub(r"^#", "##", page.read_text(encoding="utf-8").rstrip(), flags=re.MULTILINE)
    plots = sorted(RESULTS.glob(f"elastic_{name}*.png"))
    return "\n\n".join([text, *(f"![{plot.stem}]({plot.name})" for plot in plots)])


def main() -> None:
    print(write_text(RESULTS / "elastic.md", "\n\n".join([TOP, *filter(None, map(part, PARTS))])))


if __name__ == "__main__":
    main()

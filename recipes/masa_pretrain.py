# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python recipes/masa_pretrain.py [--config FILE] [--only masa_qkvo,dense] [--seeds 0,1,2] [--key value ...]

Trains the models of masa_variants.yaml, each with each seed, and prints a line of JSON for each. What is
there already is not trained again, so the work may be cut anywhere.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import yaml

from hf_share.train.pretrain import PretrainConfig, pretrain
from hf_share.train.settings import parse_overrides


HERE = Path(__file__).resolve().parent


def cell(recipe: PretrainConfig, variant: str, changes: dict, seed: int) -> dict:
    """One trained model: its numbers, from the file beside it if it was trained before."""
    output = Path(recipe.output) / f"{variant}-{seed}"
    found = output / "cell.json"
    if not found.exists():
        config = dataclasses.replace(recipe, **changes, seed=seed, output=str(output))
        measured = pretrain(config)
        row = {"variant": variant, "seed": seed, **dataclasses.asdict(measured)}
        found.write_text(json.dumps({**row, "perplexity": measured.perplexity}) + "\n", encoding="utf-8")
    return json.loads(found.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default=str(HERE / "masa_pretrain.yaml"))
    parser.add_argument("--only", default="", help="names of variants, all if left out")
    parser.add_argument("--seeds", default="0,1,2")
    options, rest = parser.parse_known_args()
    recipe = PretrainConfig.load(options.config, parse_overrides(rest))
    variants = yaml.safe_load((HERE / "masa_variants.yaml").read_text(encoding="utf-8"))
    names = options.only.split(",") if options.only else list(variants)
    unknown = sorted(set(names) - set(variants))
    if unknown:
        parser.error(f"no variant {unknown[0]!r}; there are {', '.join(variants)}")
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            print(json.dumps(cell(recipe, name, variants[name], seed)), flush=True)


if __name__ == "__main__":
    main()

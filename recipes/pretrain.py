# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml [--key value ...] [--resume]

Trains a small Llama from nothing. One process needs no launcher: python recipes/pretrain.py --config ...
"""

import argparse
import dataclasses

from hf_share.train.pretrain import PretrainConfig, parse_overrides, pretrain


def main() -> None:
    keys = "\n".join(f"  --{field.name} {field.default}" for field in dataclasses.fields(PretrainConfig))
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"keys and defaults:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="a YAML file of the keys below")
    options, rest = parser.parse_known_args()
    print(pretrain(PretrainConfig.load(options.config, parse_overrides(rest))))


if __name__ == "__main__":
    main()

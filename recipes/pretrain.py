# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml [--key value ...] [--resume]

Trains a small Llama from nothing. One process needs no launcher: python recipes/pretrain.py --config ...
"""

from hf_share.train.pretrain import PretrainConfig, pretrain


def main() -> None:
    print(pretrain(PretrainConfig.from_command_line(__doc__)))


if __name__ == "__main__":
    main()

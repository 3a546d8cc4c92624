# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/pretrain.py --config recipes/pretrain.yaml [--key value ...]

Trains a small Llama from nothing. One process needs no launcher: python recipes/pretrain.py --config ...
Run it again after an interruption and it goes on from the last complete checkpoint.
"""

from hf_share.train.main import main


if __name__ == "__main__":
    main("pretrain")

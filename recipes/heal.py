# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/heal.py --config recipes/heal.yaml --model SHARED --teacher SOURCE [--key value]

Heals a shared model by distillation, with an adapter or with all its weights, and saves it as one shared
checkpoint. With a `structure` in the settings (recipes/recursive.yaml) MODEL is dense and is shared first.
Run it again after an interruption and it goes on from the last complete checkpoint.
"""

from hf_share.train.main import main


if __name__ == "__main__":
    main("heal")

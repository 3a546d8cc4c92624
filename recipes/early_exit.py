# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/early_exit.py --config recipes/early_exit.yaml --model RECURSIVE [--key value]

Teaches an uptrained recursive model to stop after each of its loops, and reports every exit's perplexity. Run
it again after an interruption and it goes on from the last complete checkpoint.
"""

from hf_share.train.main import main


if __name__ == "__main__":
    main("early_exit")

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/finetune.py --config recipes/mos.yaml --model MODEL [--text FILE] [--key value]

Trains an adapter of any method on text, instructions or chats. Run it again after an interruption and it goes
on from the last complete checkpoint. The same as `hf-share train finetune`, on several processes.
"""

from hf_share.train.main import main


if __name__ == "__main__":
    main("finetune")

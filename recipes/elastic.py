# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""accelerate launch recipes/elastic.py --config recipes/elastic.yaml --model MODEL [--preset llm-qfa]
[--key value]

Makes a model elastic, trains all its subnets in one run, and saves one elastic checkpoint. Run it again after
an interruption and it goes on from the last complete checkpoint.
"""

from hf_share.train.main import main


if __name__ == "__main__":
    main("elastic")

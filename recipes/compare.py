# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python recipes/compare.py --config recipes/compare_adapters.yaml --model MODEL --data FOLDER
       [--cells 'shakespeare/*'] [--jobs 2] [--report] [--key value ...]

Compares methods at equal budgets. Every cell is kept when it is done and skipped when the command is run
again; the tables, verdicts and plots are written beside the results. --report writes them without measuring.
"""

from hf_share.compare.main import main


if __name__ == "__main__":
    main(__doc__)

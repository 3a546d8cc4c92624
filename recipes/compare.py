# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""python recipes/compare.py --config recipes/compare_adapters.yaml --model MODEL --data FOLDER
       [--cells 'shakespeare/*'] [--jobs 2] [--report] [--adopt] [--key value ...]

Compares methods at equal budgets. Every cell is kept when it is done and skipped when the command is run
again; the tables, verdicts and plots are written beside the results. --report writes them from the results
alone. The results say of which model, data and settings they are, and a run with others needs another
--output; --adopt takes results that do not say it to be of these.
"""

from hf_share.compare.main import main


if __name__ == "__main__":
    main(__doc__)

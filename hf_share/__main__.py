# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m hf_share MODULE ...` runs a program as `python -m MODULE ...` would, after `import hf_share`.

Programs that load models by name (lm-eval, TRL's scripts) then know shared checkpoints and adapters.
"""

from __future__ import annotations

import sys

from .errors import ShareError
from .launch import launch


if __name__ == "__main__":
    try:
        sys.exit(launch(sys.argv[1:]))
    except ShareError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

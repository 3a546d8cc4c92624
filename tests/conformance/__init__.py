# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""peft's own tests, asked of our configs: what peft promises for LoRA must hold for a sharing adapter.

No line of peft is kept here. `upstream` fetches the tests of the installed peft version, `repoint` rewrites
their parametrization from LoRA to the candidates of `candidates`, `models` makes the tiny models that peft
would download, `runner` starts pytest on a `suite_*.py` in a process of its own and reads the outcomes. By
hand, from `tests/`:

    python -m conformance share_lora                     # every part: counts, and the failures
    python -m conformance lora share_lora --part custom  # with LoRA beside it
    python -m conformance share_lora --part decoder -- -k merge
"""

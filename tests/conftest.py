# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: offline, few threads, no progress bars, and the optional folder of real models
and text.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

import hf_share  # noqa: F401 - registers


pytest_plugins = ["hub_client"]

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def real_model() -> Path:
    """A small real pretrained model, where the folder of real models is there."""
    path = SHARED / "models" / "tinystories-7m"
    if not path.is_dir():
        pytest.skip("the folder of real models is not here")
    return path

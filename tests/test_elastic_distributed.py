# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes under DDP train the subnets that one trains, and what no rank used has no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import two_processes
from workers.elastic import CASES, train


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]
WORKER = Path(__file__).parent / "workers" / "elastic.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("elastic")
    two_processes(WORKER, folder, CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(name, ranks, tmp_path):
    alone = train(name, tmp_path, batch=4)
    one, two = (rank[name] for rank in ranks)
    assert one["processes"] == two["processes"] == 2 and alone["processes"] == 1
    assert one["unused"] == two["unused"] == alone["unused"]
    assert all(unused for unused in alone["unused"]), "every step leaves some adapters out"
    for key, value in alone["state"].items():
        assert torch.equal(one["state"][key], two["state"][key]), key
        torch.testing.assert_close(one["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert one["losses"] == pytest.approx(alone["losses"], rel=1e-3)

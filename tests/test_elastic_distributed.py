# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes under DDP train the subnets that one trains, and what no rank used has no gradient."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workers.elastic import CASES, train


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]
WORKER = Path(__file__).parent / "workers" / "elastic.py"


def start(rank: int, log: Path, base: dict[str, str], folder: Path) -> subprocess.Popen:
    env = {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)], env=env, stdout=out, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("elastic")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    base |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    base |= {"ACCELERATE_USE_CPU": "true"}
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    workers = [start(rank, log, base, folder) for rank, log in enumerate(logs)]
    try:
        codes = [worker.wait(timeout=540) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
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

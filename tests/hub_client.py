# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a Hub on this machine, and the real client in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, serve


TESTS = Path(__file__).parent
PRELUDE = """
import sys; sys.path.insert(0, {tests!r})
import hashlib, torch, transformers as tf, hf_share
from zoo import build, logits
from helpers import shared
def digest(model):
    return hashlib.sha256(logits(model.eval()).numpy().tobytes()).hexdigest()
def model(seed=0):
    return shared(build("llama", seed=seed))
Auto = tf.AutoModelForCausalLM
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE.format(tests=str(TESTS)) + textwrap.dedent(code)]


@pytest.fixture
def hub():
    with serve() as running:
        yield running


@pytest.fixture
def client(hub, tmp_path):
    """Run lines of Python in a process of their own that knows this Hub; its last line of output."""

    known = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip

    def call(code: str, fails: bool = False, **env: str) -> str:
        given = {**known, **env}
        run = subprocess.run(command(code), env=given, capture_output=True, text=True, cwd=tmp_path)
        assert (run.returncode != 0) == fails, run.stderr[-3000:]
        return (run.stderr if fails else run.stdout).strip().rpartition("\n")[2]

    def start(code: str) -> subprocess.Popen:
        return subprocess.Popen(command(code), env=known, cwd=tmp_path, stderr=subprocess.DEVNULL)

    call.start = start
    return call


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    """The client of this process talks to the Hub, and does not wait between its tries."""
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # which remembers its endpoint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin of the inner run: lets peft's tests be imported, opens their gates, writes outcomes.

Outcomes go to `--outcomes FILE`, one JSON line a test as it ends, and not to a JUnit file, which is written
at the end: a crash of the interpreter (native code, out of memory) must leave what was known before it.
"""

import contextlib
import copy
import importlib.machinery
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


# Where peft's tests ask "is this LoraConfig?" before they mix adapters in a batch, the candidate answers.
MIXED_BATCHES = frozenset({"test_mixed_adapter_batches", "test_generate_with_mixed_adapter_batches"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="file for one JSON line a test")


def pytest_configure(config: pytest.Config) -> None:
    pytest.register_assert_rewrite("peft_tests")
    with stub_of_diffusers():
        from peft_tests import testing_common
    # A list by class: a class from outside is not on it, and would be skipped in silence.
    testing_common._skip_if_conv1d_not_supported = lambda *args: None
    if config.option.outcomes:
        config.pluginmanager.register(Recorder(config.option.outcomes))


@contextlib.contextmanager
def stub_of_diffusers() -> Iterator[None]:
    """`testing_common` imports one class of diffusers for an isinstance check: not worth a dependency."""
    stub = types.ModuleType("diffusers")
    stub.__spec__ = importlib.machinery.ModuleSpec("diffusers", loader=None)
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    before = sys.modules.get("diffusers")
    sys.modules["diffusers"] = stub
    try:
        yield
    finally:
        del sys.modules["diffusers"]
        if before is not None:
            sys.modules["diffusers"] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test its own configs: some of peft's tests change the dict or the config they are handed."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        for name in [name for name in params if name.startswith("config") or name == "peft_config"]:
            params[name] = copy.deepcopy(params[name])


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Many of peft's tests draw without a seed; candidates are compared on the same draws, run after run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def answer_for_lora(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.originalname in MIXED_BATCHES:
        from peft_tests import testing_common

        candidate = request.node.callspec.params["config_cls"]
        monkeypatch.setattr(testing_common, "LoraConfig", candidate)
        monkeypatch.setitem(request.function.__globals__, "LoraConfig", candidate)


class Recorder:
    """Writes what became of each test, and its seconds of CPU, which a busy machine does not stretch."""

    def __init__(self, path: Path):
        self.path = path
        self.reports: list[pytest.TestReport] = []
        self.start = 0.0

    def pytest_runtest_logstart(self) -> None:
        self.start = time.process_time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)
        if report.when == "teardown":
            seconds = round(time.process_time() - self.start, 3)
            with self.path.open("a") as file:
                file.write(json.dumps(summary(self.reports) | {"seconds": seconds}) + "\n")
            self.reports = []


def summary(reports: list[pytest.TestReport]) -> dict[str, str]:
    """One outcome from the three phases of a test: a failure anywhere counts, then a skip."""
    outcomes = [report.outcome for report in reports]
    worst = next(outcome for outcome in ("failed", "skipped", "passed") if outcome in outcomes)
    telling = next(report for report in reports if report.outcome == worst)
    return {"test": telling.nodeid, "outcome": worst, "reason": reason(telling)}


def reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash else str(report.longrepr or "")

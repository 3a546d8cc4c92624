# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""peft's own tests hold for `ShareLoraConfig` wherever they hold for peft's LoRA; see `conformance/`.

LoRA's outcomes come from a record if it was made with the installed versions of peft, transformers and torch;
otherwise, or with `CONFORMANCE_LORA=1`, LoRA runs in the same process as ours.
"""

import os

import pytest
from conformance import runner, upstream, yardstick


NO_BIAS = "ShareLoraConfig trains no biases of the base model, so it has no `bias`"
LORA_ONLY = "add_weighted_adapter is a method of peft's LoRA and IA3 models, not of the tuner interface"

# part -> name of the test -> why it is skipped for ShareLoRA and not for LoRA
EXTRA_SKIPS = {
    "decoder": {
        "test_adding_multiple_adapters_with_bias_raises": NO_BIAS,
        "test_weighted_combination_of_adapters": LORA_ONLY,
    },
    "custom": {
        "test_adding_multiple_adapters_with_bias_raises": NO_BIAS,
        "test_save_load_roundtrip_fsdp_wrapped_learnable_bias": NO_BIAS,
    },
    "others": {
        "test_adding_multiple_adapters_with_bias_raises": NO_BIAS,
        "test_weighted_combination_of_adapters": LORA_ONLY,
    },
}


@pytest.fixture(scope="module")
def peft_tests():
    try:
        return upstream.directory()
    except upstream.Unavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.conformance
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("peft_tests")
@pytest.mark.parametrize("part", runner.PARTS)
def test_share_lora_keeps_the_promises_of_lora(part):
    lora, ours = lora_and_ours(part)
    print(f"peft's tests, {part}: LoRA {lora}; ShareLoRA {runner.counts(ours)}")
    assert len(ours) == lora.tests, "LoRA was recorded on other tests: see conformance/yardstick.py"
    assert not reasons(ours, "failed", apart_from=lora.failed)
    skipped = reasons(ours, "skipped", apart_from=lora.skipped)
    assert {function(test) for test in skipped} == set(EXTRA_SKIPS[part]), skipped


def lora_and_ours(part: str) -> tuple[yardstick.Yardstick, runner.Outcomes]:
    lora = None if os.environ.get("CONFORMANCE_LORA") == "1" else yardstick.recorded(part)
    if lora:
        return lora, runner.run(["share_lora"], [part])["share_lora"]
    found = runner.run(["lora", "share_lora"], [part])
    return yardstick.measured(found["lora"]), found["share_lora"]


def reasons(outcomes: runner.Outcomes, kind: str, apart_from: dict[str, str]) -> dict[str, str]:
    return {test: o.reason for test, o in outcomes.items() if o.outcome == kind and test not in apart_from}


def function(test: str) -> str:
    """`suite.py::TestClass::test_name[row]` -> `test_name`"""
    return test.rpartition("::")[2].partition("[")[0]

# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m conformance CANDIDATE... [--part PART]... [-- PYTEST OPTIONS]`: see the package's docstring."""

import argparse
import sys

from conformance import runner, yardstick


def main(arguments: list[str]) -> None:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser("python -m conformance", description="peft's tests, asked of ours")
    parser.add_argument("candidates", nargs="+", help="lora, share_lora, or module:Class")
    parser.add_argument("--part", action="append", choices=runner.PARTS, help="may be given several times")
    parser.add_argument("--record", action="store_true", help="write what became of lora as the yardstick")
    options = parser.parse_args(arguments[:split])
    for part in options.part or runner.PARTS:
        found = runner.run(options.candidates, [part], arguments[split + 1 :])
        for candidate, outcomes in found.items():
            print(f"{part} · {candidate}: {runner.counts(outcomes)}")
            for test, outcome in outcomes.items():
                if outcome.outcome == "failed":
                    print(f"  {test}\n    {outcome.reason.strip().splitlines()[0]}")
        if options.record:
            yardstick.record(part, found["lora"])


main(sys.argv[1:])

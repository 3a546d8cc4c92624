# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of this process while something runs, above what it held before."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Rise:
    """`peak` is in bytes, set when the block ends."""

    peak: int = 0


@contextlib.contextmanager
def memory_rise() -> Iterator[Rise]:
    """Measure by how much resident memory rises at most in a `with` block.

    On Linux the peak is counted anew from the start of the block; elsewhere an earlier, higher peak hides a
    lower one.

    Example:
        >>> with memory_rise() as rise:
        ...     held = b"x" * 2**24
        >>> rise.peak > 2**23
        True
    """
    rise = Rise()
    before = _resident("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    try:
        yield rise
    finally:
        rise.peak = _resident("VmHWM") - before


def _resident(what: str) -> int:
    """Resident memory in bytes: `VmRSS` now, `VmHWM` at its peak; off Linux always the peak."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, others in kB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 1024 * int(status.split(f"{what}:")[1].split()[0])

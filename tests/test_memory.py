# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""The peak of a block is its own."""

from __future__ import annotations

import mmap
import sys

import pytest

from hf_share.eval.memory import memory_rise


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
def test_a_rise_is_seen_and_an_earlier_peak_is_forgotten():
    touch(2**28)
    with memory_rise() as rise:
        touch(2**25)
    assert 2**24 < rise.peak < 2**27


def touch(size: int) -> None:
    """Use memory of the system's own, which it takes back at once, whatever the allocator keeps."""
    with mmap.mmap(-1, size) as pages:
        for page in range(0, size, mmap.PAGESIZE):
            pages[page] = 1


def test_an_error_leaves_a_number():
    with pytest.raises(KeyError), memory_rise() as rise:
        raise KeyError
    assert isinstance(rise.peak, int)

"""Free pages that lie between others in use go back to the system."""

import gc
import sys
from pathlib import Path

import pytest

from headrace.memory import trim


def held_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return sum(float(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="it is measured where /proc tells what a process holds"
)
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    blocks = [bytearray(65536) for _ in range(1600)]  # 100 MB, each below what the allocator maps by itself
    kept = blocks[::16]
    del blocks
    gc.collect()
    before_mb = held_mb()
    trim()
    assert before_mb - held_mb() > 50
    assert len(kept) == 100

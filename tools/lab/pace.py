"""How quick a CPU is: the seconds of an emulated one are others than those of the CPU that emulates it."""

from __future__ import annotations

import time


def loop() -> float:
    """Seconds of a loop that only computes: inside of the VM and outside it is the same."""
    begin = time.perf_counter()
    for _ in range(100_000):
        pass
    return time.perf_counter() - begin

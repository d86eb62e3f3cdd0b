"""Statistics, the floor and page reports on vfio-pci, in a stock kernel; the witness is QMP, from outside."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bodies import adopt, balloon_reports, balloon_stats
from tests.vm.test_drivers import cell, given_back  # noqa: F401  # fixtures, found by their names here
from uvirtio.memory.seams import InterruptMode

CELLS: list[Any] = [
    pytest.param((name, InterruptMode.INTX), id=f"{name}-intx") for name in ("balloon", "balloon-iova")
]

globals().update(adopt(balloon_stats, CELLS))
# Hints themselves are asked for by migrations, which QEMU refuses with a folder shared over 9p, as the lab's are.
globals().update(adopt(balloon_reports, CELLS))

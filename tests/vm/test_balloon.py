"""Statistics and the floor on vfio-pci, in a stock kernel; the witness is the QMP of the QEMU around the VM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bodies import adopt, balloon_stats
from tests.vm.test_drivers import cell, given_back  # noqa: F401  # fixtures, found by their names here
from uvirtio.memory.seams import InterruptMode

CELLS: list[Any] = [
    pytest.param((name, InterruptMode.INTX), id=f"{name}-intx") for name in ("balloon", "balloon-iova")
]

globals().update(adopt(balloon_stats, CELLS))

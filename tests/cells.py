"""Which ways in a test really took: every device that it brought up is noted in the report, for tools/matrix.

A property ``cell`` of a test case says: type, transport, back end, ring, interrupts, and the machine where QEMU
has no guest. It is written when DRIVER_OK was reached, so that no report claims what only a test's name says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from uvirtio.device import Device
from uvirtio.spec import features as f


def cell_of(device: Device) -> str:
    """The way in of a device that is up, in one line."""
    transport = device.transport
    words = re.split(r"[ ,]+", transport.description)
    ring = "packed" if device.has(f.RING_PACKED) else "split"
    where = f" {words[1]}" if words[0] == "qemu" else ""
    return f"{device.type} {transport.kind} {words[0]} {ring} {transport.interrupt_mode.value}{where}"


@pytest.fixture(autouse=True)
def cells_are_noted(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Note the cells of this test's devices."""
    seen: set[str] = set()
    start = Device.start

    def noted(self: Device, *args: Any, **how: Any) -> None:
        start(self, *args, **how)
        seen.add(cell_of(self))

    Device.start = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Device.start = start  # type: ignore[method-assign]
    for cell in sorted(seen):
        record_property("cell", cell)

"""A cell of the VM floor: a device of this machine, and the QEMU around the VM as the witness."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.bodies import Cell
from tests.vm.qmp_witness import Witness
from uvirtio.device import Device
from uvirtio.interfaces.values import InterruptMode

THOROUGH = "a cell of tools/test --all"

once = pytest.mark.skipif(os.uname().release.startswith("6.1."), reason="once is enough: on the newer kernel")
"""For what does not depend on the kernel's version."""

thorough = pytest.mark.skipif(os.environ.get("UVIRTIO_LAB_WHOLE") == "0", reason=THOROUGH)
"""For a cell whose neighbours have its code: tools/test --all has it, and tools/test with a PATH or --machine."""


def lab_cell(
    witness: Witness,
    name: str,
    mode: InterruptMode,
    open: Callable[[], Device],
    *,
    translated: bool,
    legacy: bool = False,
    inside: str = "/virtio-backend",
) -> Cell:
    """The device with the id ``name`` in machines.toml, which ``open`` opens.

    ``inside``: where the virtio device is in the one that has the id; behind virtio-mmio it is that itself.
    """

    def events(wanted: str, timeout: float) -> list[dict[str, Any]]:
        return [event for event in witness.events(timeout) if event["event"] == wanted]

    return Cell(
        open=open,
        qmp=witness.execute,
        events=events,
        path=f"/machine/peripheral/{name}{inside}",
        mode=mode,
        translated=translated,
        legacy=legacy,
        extra={"id": name},
    )

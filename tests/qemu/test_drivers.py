"""The driver bodies on QEMU's device models, without a guest: q35 and pc, every rung of the interrupt ladder.

The witness is QMP: query-balloon, x-query-virtio-status and x-query-virtio-queue-status.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bodies import Cell, adopt, any_device, balloon, keyboard, rng
from uvirtio.memory.seams import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode

RUNGS: dict[str, list[tuple[str, InterruptMode]]] = {
    "rng": [
        ("virtio-rng-pci,vectors=3", PER_QUEUE),
        ("virtio-rng-pci", PER_QUEUE),
        ("virtio-rng-pci", SHARED),
        ("virtio-rng-pci,vectors=1", SHARED),
        ("virtio-rng-pci", INTX),
        ("virtio-rng-pci", POLLING),
        ("virtio-rng-pci,iommu_platform=on,disable-legacy=on", PER_QUEUE),
    ],
    "keyboard": [
        ("virtio-keyboard-pci,vectors=3", PER_QUEUE),
        ("virtio-keyboard-pci", SHARED),
        ("virtio-keyboard-pci", INTX),
        ("virtio-keyboard-pci", POLLING),
    ],
    # QEMU 7.2's balloon has no MSI-X.
    "balloon": [
        ("virtio-balloon-pci", INTX),
        ("virtio-balloon-pci", POLLING),
        ("virtio-balloon-pci,iommu_platform=on,disable-legacy=on", INTX),
    ],
}


def cells(*kinds: str) -> list[Any]:
    """One parameter for each machine, device and rung."""
    return [
        pytest.param((machine, device, mode), id=f"{machine}-{device.split('-', 1)[1]}-{mode.value}")
        for machine in ("q35", "pc")
        for kind in kinds
        for device, mode in RUNGS[kind]
    ]


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    name, device, mode = request.param
    with Machine(name, [device]) as machine:
        function = machine.functions[0]

        def backing() -> int:
            return os.fstat(machine.memory.fd).st_blocks * 512

        yield Cell(
            open=lambda: identify(function.address, function, interrupts=[mode]),
            qmp=machine.qmp,
            events=machine.qmp_events,
            path=f"/machine/peripheral/{function.id}/virtio-backend",
            mode=mode,
            translated="iommu_platform=on" in device,
            backing=backing,
        )


globals().update(adopt(any_device, cells("rng", "keyboard", "balloon")))
globals().update(adopt(rng, cells("rng")))
globals().update(adopt(balloon, cells("balloon")))
globals().update(adopt(keyboard, cells("keyboard")))

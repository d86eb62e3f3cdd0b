"""The driver bodies on QEMU's device models, without a guest: q35 and pc, every rung of the interrupt ladder.

The witness is QMP: query-balloon, x-query-virtio-queue-status, and what tests/support/virtio_state.py asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bodies import Cell, adopt, any_device, balloon, blk, keyboard, net, rng, scsi
from uvirtio.interfaces.values import InterruptMode
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
        ("virtio-rng-pci,packed=on", PER_QUEUE),
    ],
    "keyboard": [
        ("virtio-keyboard-pci,vectors=3", PER_QUEUE),
        ("virtio-keyboard-pci", SHARED),
        ("virtio-keyboard-pci", INTX),
        ("virtio-keyboard-pci", POLLING),
        ("virtio-keyboard-pci,packed=on", SHARED),
    ],
    # QEMU 7.2's balloon has no MSI-X.
    "balloon": [
        ("virtio-balloon-pci", INTX),
        ("virtio-balloon-pci", POLLING),
        ("virtio-balloon-pci,iommu_platform=on,disable-legacy=on", INTX),
        ("virtio-balloon-pci,packed=on", INTX),
        ("virtio-balloon-pci,packed=on,event_idx=off,indirect_desc=off", POLLING),
    ],
    "blk": [
        ("virtio-blk-pci,num-queues=2", PER_QUEUE),
        ("virtio-blk-pci,num-queues=2,vectors=2", SHARED),
        ("virtio-blk-pci", INTX),
        ("virtio-blk-pci", POLLING),
        ("virtio-blk-pci,iothread=worker,iommu_platform=on,disable-legacy=on", PER_QUEUE),
        ("virtio-blk-pci,packed=on", PER_QUEUE),
    ],
    "scsi": [
        ("virtio-scsi-pci,num_queues=2", PER_QUEUE),
        ("virtio-scsi-pci,packed=on", INTX),
        ("virtio-scsi-pci,iommu_platform=on,disable-legacy=on", POLLING),
    ],
    "net": [
        ("virtio-net-pci", PER_QUEUE),
        ("virtio-net-pci,vectors=2", SHARED),
        ("virtio-net-pci", INTX),
        ("virtio-net-pci,packed=on,mrg_rxbuf=off", POLLING),
        ("virtio-net-pci,packed=on,iommu_platform=on,disable-legacy=on", PER_QUEUE),
    ],
}

# What a newer QEMU has: MSI-X on the balloon, and rings whose chains come back in order.
SINCE_10: list[tuple[str, str, InterruptMode, bool]] = [
    ("q35", "virtio-balloon-pci,vectors=5", PER_QUEUE, False),
    ("q35", "virtio-balloon-pci", SHARED, False),
    ("pc", "virtio-balloon-pci,vectors=5,iommu_platform=on,disable-legacy=on", PER_QUEUE, False),
    ("q35", "virtio-balloon-pci,vectors=5,packed=on", PER_QUEUE, False),
    ("q35", "virtio-balloon-pci,vectors=5", PER_QUEUE, True),
    ("q35", "virtio-balloon-pci,in_order=on", INTX, False),
    ("q35", "virtio-balloon-pci,in_order=on,packed=on", POLLING, False),
    ("q35", "virtio-rng-pci,in_order=on", PER_QUEUE, False),
    ("q35", "virtio-rng-pci,in_order=on,packed=on", PER_QUEUE, False),
    ("q35", "virtio-keyboard-pci,in_order=on", SHARED, False),
    ("q35", "virtio-keyboard-pci,in_order=on,packed=on", SHARED, False),
    ("q35", "virtio-blk-pci,in_order=on", PER_QUEUE, False),
    ("q35", "virtio-blk-pci,in_order=on,packed=on", PER_QUEUE, False),
    ("q35", "virtio-scsi-pci,in_order=on,packed=on", PER_QUEUE, False),
    ("q35", "virtio-net-pci,in_order=on", PER_QUEUE, False),
    ("q35", "virtio-net-pci,in_order=on,packed=on", PER_QUEUE, False),
]

LEGACY = [
    # machine, device, interrupts, whether the legacy interface has to be asked for
    ("q35", "virtio-rng-pci,disable-modern=on,vectors=3", PER_QUEUE, False),
    ("q35", "virtio-rng-pci,disable-modern=on", SHARED, False),
    ("q35", "virtio-rng-pci,disable-modern=on", INTX, False),
    ("q35", "virtio-rng-pci,disable-modern=on", POLLING, False),
    ("pc", "virtio-rng-pci,vectors=1", SHARED, True),
    ("q35", "virtio-balloon-pci", INTX, True),
    ("pc", "virtio-balloon-pci,disable-modern=on", POLLING, False),
    ("q35", "virtio-blk-pci,disable-modern=on", SHARED, False),
    ("q35", "virtio-scsi-pci,disable-modern=on", SHARED, False),
    ("q35", "virtio-net-pci,disable-modern=on", PER_QUEUE, False),
    ("pc", "virtio-net-pci,mrg_rxbuf=off", INTX, True),
]

PIO_NOTIFY = [
    # Kicks through an I/O BAR, which QEMU lists first.
    ("q35", "virtio-rng-pci,modern-pio-notify=on", PER_QUEUE, False),
]


def cells(*kinds: str, machines: tuple[str, ...] = ("q35", "pc")) -> list[Any]:
    """One parameter for each machine, device and rung; packed rings on one machine, the same on all."""
    return [
        pytest.param((machine, device, mode, False), id=f"{machine}-{device.split('-', 1)[1]}-{mode.value}")
        for machine in machines
        for kind in kinds
        for device, mode in RUNGS[kind]
        if machine == machines[0] or "packed=on" not in device
    ]


def single_cells(
    kind: str, among: list[tuple[str, str, InterruptMode, bool]], *marks: pytest.MarkDecorator
) -> list[Any]:
    """The same for one machine each: where the legacy interface or I/O ports are in the game, or a newer QEMU."""
    return [
        pytest.param(
            one,
            id=f"{one[0]}-{one[1].split('-', 1)[1]}{'-force-legacy' if one[3] else ''}-{one[2].value}",
            marks=marks,
        )
        for one in among
        if one[1].startswith(f"virtio-{kind}-")
    ]


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    name, device, mode, force_legacy = request.param
    with Machine(name, [device]) as machine:
        function = machine.functions[0]

        def backing() -> int:
            return os.fstat(machine.memory.fd).st_blocks * 512

        yield Cell(
            open=lambda: identify(function.address, function, interrupts=[mode], force_legacy=force_legacy),
            qmp=machine.qmp,
            events=machine.qmp_events,
            path=f"/machine/peripheral/{function.id}/virtio-backend",
            mode=mode,
            translated="iommu_platform=on" in device,
            legacy=force_legacy or "disable-modern=on" in device,
            backing=backing,
            extra={
                "file": machine.files.get(function.id),
                "disk": f"{function.id}-disk",
                "bus": f"{function.id}.0",
                "id": function.id,
                "netdev": f"{function.id}-net",
            },
        )


SINGLE = {
    kind: [
        *single_cells(kind, LEGACY),
        *single_cells(kind, PIO_NOTIFY),
        *single_cells(kind, SINCE_10, pytest.mark.qemu_since(10, 0)),
    ]
    for kind in RUNGS
}
DISKS = cells("blk", machines=("pc",))
NEW_DISKS = single_cells("blk", SINCE_10, pytest.mark.qemu_since(10, 0))
CARDS = [*cells("net", machines=("pc",))[:1], *single_cells("net", LEGACY)[:1]]
NOT_DISKS = [cell for kind in ("rng", "keyboard", "balloon") for cell in SINGLE[kind]]

globals().update(adopt(any_device, [*cells("rng", "keyboard", "balloon"), *NOT_DISKS, *DISKS, *NEW_DISKS, *CARDS]))
globals().update(adopt(rng, [*cells("rng"), *SINGLE["rng"]]))
globals().update(adopt(balloon, [*cells("balloon"), *SINGLE["balloon"]]))
globals().update(adopt(blk, [*cells("blk", machines=("q35",)), *SINGLE["blk"]]))
globals().update(adopt(scsi, [*cells("scsi", machines=("q35",)), *SINGLE["scsi"]]))
globals().update(adopt(keyboard, [*cells("keyboard"), *SINGLE["keyboard"]]))
globals().update(adopt(net, [*cells("net", machines=("q35",)), *SINGLE["net"]]))

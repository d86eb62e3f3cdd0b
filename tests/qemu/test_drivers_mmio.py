"""The driver bodies on virtio-mmio, with and without its interrupt, and on the PCI of other CPUs than x86.

The witness is QMP, as in test_drivers.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bodies import Cell, adopt, any_device, balloon, blk, keyboard, net, rng, scsi
from tests.qemu.machines import needs
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine

PER_QUEUE, SHARED, LINE, POLLING = InterruptMode

# (machine, virtio-mmio version or None, device, rung)
CELLS: dict[str, list[tuple[str, int | None, str, InterruptMode]]] = {
    "rng": [
        ("microvm", 2, "virtio-rng-device", LINE),
        ("microvm", 2, "virtio-rng-device", POLLING),
        ("microvm", 2, "virtio-rng-device,iommu_platform=on", LINE),
        ("microvm", 2, "virtio-rng-device,packed=on", LINE),
        ("microvm", 1, "virtio-rng-device", LINE),
        ("virt", 2, "virtio-rng-device", LINE),
        ("virt", None, "virtio-rng-pci", PER_QUEUE),
        ("virt", None, "virtio-rng-pci", LINE),
        ("riscv64", 2, "virtio-rng-device,packed=on", LINE),
        ("riscv64", 1, "virtio-rng-device", LINE),
        ("riscv64", None, "virtio-rng-pci", PER_QUEUE),
        ("loongarch64", None, "virtio-rng-pci", LINE),
        ("loongarch64", None, "virtio-rng-pci,packed=on", PER_QUEUE),
    ],
    "keyboard": [
        ("microvm", 2, "virtio-keyboard-device", LINE),
        ("microvm", 2, "virtio-keyboard-device,packed=on", LINE),
        ("virt", 2, "virtio-keyboard-device", POLLING),
        ("microvm", 1, "virtio-keyboard-device", LINE),
        ("virt", None, "virtio-keyboard-pci", SHARED),
        ("riscv64", 2, "virtio-keyboard-device", LINE),
        ("loongarch64", None, "virtio-keyboard-pci,vectors=3", PER_QUEUE),
    ],
    "balloon": [
        ("microvm", 2, "virtio-balloon-device", LINE),
        ("microvm", 2, "virtio-balloon-device,packed=on", LINE),
        ("virt", 2, "virtio-balloon-device", LINE),
        ("virt", 1, "virtio-balloon-device", LINE),
        ("virt", None, "virtio-balloon-pci", LINE),
        ("riscv64", 1, "virtio-balloon-device", LINE),
        ("riscv64", None, "virtio-balloon-pci", LINE),
        ("loongarch64", None, "virtio-balloon-pci", LINE),
    ],
    "blk": [
        ("microvm", 2, "virtio-blk-device,num-queues=2", LINE),
        ("microvm", 2, "virtio-blk-device,num-queues=2,packed=on", LINE),
        ("virt", 1, "virtio-blk-device", POLLING),
        ("riscv64", 2, "virtio-blk-device,num-queues=2", LINE),
        ("loongarch64", None, "virtio-blk-pci,num-queues=2", PER_QUEUE),
    ],
    "scsi": [
        ("microvm", 2, "virtio-scsi-device", LINE),
        ("microvm", 2, "virtio-scsi-device,packed=on", LINE),
        ("virt", 1, "virtio-scsi-device", POLLING),
    ],
    "net": [
        ("microvm", 2, "virtio-net-device", LINE),
        ("microvm", 2, "virtio-net-device,packed=on", POLLING),
        ("microvm", 1, "virtio-net-device", LINE),
        ("virt", 2, "virtio-net-device", LINE),
    ],
    # What holds for any driver, once for each kind of machine and window.
    "any": [
        ("microvm", 2, "virtio-rng-device,iommu_platform=on", LINE),
        ("microvm", 2, "virtio-balloon-device", POLLING),
        ("microvm", 2, "virtio-balloon-device,packed=on", POLLING),
        ("microvm", 2, "virtio-keyboard-device,packed=on", LINE),
        ("microvm", 2, "virtio-blk-device,num-queues=2,packed=on", LINE),
        ("microvm", 1, "virtio-balloon-device", LINE),
        ("virt", 1, "virtio-rng-device", POLLING),
        ("virt", 2, "virtio-keyboard-device", LINE),
        ("virt", None, "virtio-keyboard-pci,vectors=3", PER_QUEUE),
        ("riscv64", 2, "virtio-keyboard-device", LINE),
        ("riscv64", 1, "virtio-rng-device", LINE),
        ("loongarch64", None, "virtio-balloon-pci", LINE),
    ],
}


def cells(kind: str) -> list[Any]:
    return [
        pytest.param(
            (machine, version, device, mode),
            id=f"{machine}-{f'v{version}-' if version else ''}{device.split('-', 1)[1]}-{mode.value}",
            marks=needs(machine),
        )
        for machine, version, device, mode in CELLS[kind]
    ]


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    name, version, device, mode = request.param
    with Machine(name, [device], legacy=None if version is None else version == 1) as machine:
        function = machine.functions[0]

        def backing() -> int:
            return os.fstat(machine.memory.fd).st_blocks * 512

        backend = f"/machine/peripheral/{function.id}"
        yield Cell(
            open=lambda: identify(function.address, function, interrupts=[mode]),
            qmp=machine.qmp,
            events=machine.qmp_events,
            # Behind virtio-mmio the device is what has the id; a PCI function has it inside.
            path=backend if version is not None else f"{backend}/virtio-backend",
            mode=mode,
            translated="iommu_platform=on" in device,
            legacy=version == 1,
            backing=backing,
            extra={
                "file": machine.files.get(function.id),
                "disk": f"{function.id}-disk",
                "bus": f"{function.id}.0",
                "id": function.id,
                "netdev": f"{function.id}-net",
            },
        )


globals().update(adopt(any_device, cells("any")))
globals().update(adopt(rng, cells("rng")))
globals().update(adopt(balloon, cells("balloon")))
globals().update(adopt(blk, cells("blk")))
globals().update(adopt(scsi, cells("scsi")))
globals().update(adopt(keyboard, cells("keyboard")))
globals().update(adopt(net, cells("net")))

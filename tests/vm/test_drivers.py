"""The driver bodies on vfio-pci, in a stock kernel: every rung of the interrupt ladder, both address policies.

The witness is the QMP of the QEMU around the VM. The devices are those of machines.toml.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import uvirtio
from tests.bodies import Cell, adopt, any_device, balloon, blk, keyboard, net, rng, scsi
from tests.vm.hands import driver_of, hand_over
from tests.vm.lab_cell import lab_cell, once
from tests.vm.qmp_witness import Witness
from uvirtio.interfaces.values import InterruptMode

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode

CELLS: dict[str, list[tuple[str, InterruptMode]]] = {
    "rng": [
        ("rng-iova", PER_QUEUE),
        ("rng-iova", POLLING),
        ("rng-shared", SHARED),
        ("rng-intx", INTX),
        ("rng", PER_QUEUE),
        ("rng-packed", PER_QUEUE),
        ("rng-legacy", PER_QUEUE),
        ("rng-pio", INTX),
        ("rng-in-order", PER_QUEUE),
        ("rng-in-order-packed", PER_QUEUE),
    ],
    "keyboard": [
        ("keyboard", PER_QUEUE),
        ("keyboard", INTX),
        ("keyboard", POLLING),
        ("keyboard-packed", PER_QUEUE),
    ],
    "balloon": [
        ("balloon", INTX),
        ("balloon", POLLING),
        ("balloon-iova", INTX),
        ("balloon-transitional", INTX),
        ("balloon-msix", PER_QUEUE),
        ("balloon-msix", SHARED),
        ("balloon-packed", INTX),
    ],
    "blk": [("disk", PER_QUEUE), ("disk-iova", SHARED), ("disk-packed", PER_QUEUE), ("disk-legacy", PER_QUEUE)],
    "scsi": [("hba", PER_QUEUE), ("hba-packed", SHARED), ("hba-legacy", PER_QUEUE)],
    "net": [("nic", PER_QUEUE), ("nic-packed", PER_QUEUE), ("nic-legacy", SHARED)],
    # What holds for any driver, once for each device: the emulated CPU is slow.
    "any": [
        ("rng-iova", PER_QUEUE),
        ("rng-shared", SHARED),
        ("rng", PER_QUEUE),
        ("rng-packed", PER_QUEUE),
        ("keyboard", INTX),
        ("balloon", POLLING),
        ("balloon-iova", INTX),
        ("disk", PER_QUEUE),
        ("rng-legacy", SHARED),
        ("balloon-transitional", POLLING),
        ("balloon-msix", PER_QUEUE),
        ("rng-in-order", PER_QUEUE),
        ("rng-in-order-packed", PER_QUEUE),
    ],
    # Of that which rings and which interrupts they have, where rng-packed has shown the rest.
    "packed": [("balloon-packed", INTX), ("keyboard-packed", PER_QUEUE), ("disk-packed", PER_QUEUE)],
}

# The balloon shows it on the older kernel.
ONCE = [
    *(("keyboard", "keyboard-packed"), ("blk", "disk-packed"), ("blk", "disk-legacy")),
    *(("scsi", "hba-packed"), ("scsi", "hba-legacy")),
    *(("net", "nic"), ("net", "nic-packed"), ("net", "nic-legacy")),
]
TRANSLATED = (
    "rng-iova",
    "rng-packed",
    "rng-shared",
    "rng-intx",
    "rng-in-order",
    "keyboard",
    "keyboard-packed",
    "balloon-iova",
    "disk-iova",
    "hba",
    "hba-packed",
)
FORCED = ("balloon-transitional",)
LEGACY = ("rng-legacy", "disk-legacy", "hba-legacy", "nic-legacy", *FORCED)


@pytest.fixture(scope="module")
def given_back(lab_devices: dict[str, str]) -> Iterator[None]:
    """At the end the kernel has its devices again."""
    yield
    for address in lab_devices.values():
        if driver_of(address) not in ("virtio-pci", ""):
            hand_over(address, "virtio-pci")


@pytest.fixture
def cell(request: pytest.FixtureRequest, lab_devices: dict[str, str], witness: Witness, given_back: None) -> Cell:
    name, mode = request.param
    if name not in lab_devices:
        pytest.skip(f"this machine has no {name}")
    address = lab_devices[name]
    hand_over(address, "vfio-pci")

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, interrupts=[mode], timeout=10, force_legacy=name in FORCED),
        translated=name in TRANSLATED,
        legacy=name in LEGACY,
    )


def cells(*kinds: str) -> list[Any]:
    return [
        pytest.param((name, mode), id=f"{name}-{mode.value}", marks=once if (kind, name) in ONCE else ())
        for kind in kinds
        for name, mode in CELLS[kind]
    ]


globals().update(adopt(any_device, cells("any")))
globals().update(
    {
        f"{name}_packed": body
        for name, body in adopt(any_device, cells("packed")).items()
        if name.startswith(("test_any_device_packed_rings", "test_any_device_the_interrupt_mode"))
    }
)
globals().update(adopt(rng, cells("rng")))
globals().update(adopt(balloon, cells("balloon")))
globals().update(adopt(blk, cells("blk")))
globals().update(  # what the function and its interrupts have to do with; tests/qemu has the rest
    {
        name: body
        for name, body in adopt(scsi, cells("scsi")).items()
        if name.removeprefix("test_scsi_") in ("what_is_written_is_on_the_disk", "units_come_and_go")
    }
)
globals().update(adopt(keyboard, cells("keyboard")))
globals().update(
    # What the others ask QEMU for lies outside of the VM.
    {
        name: body
        for name, body in adopt(net, cells("net")).items()
        if name in ("test_net_a_question_is_answered", "test_net_the_control_queue")
    }
)

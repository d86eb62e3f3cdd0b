"""How `collect` works on devices of QEMU, on a device that counts, and on devices that misbehave."""

from __future__ import annotations

import pytest
import uvirtio
from uvirtio import scripted

from entropy import PORTION, collect


@pytest.mark.parametrize(
    "device", ["virtio-rng-pci", "virtio-rng-pci,packed=on", "virtio-rng-device"]
)
def test_a_device_of_qemu(virtio_device, device):
    assert len(collect(virtio_device(device), 100)) == 100


def test_two_devices_of_one_machine(virtio_machine):
    machine = virtio_machine("virtio-rng-pci", "virtio-rng-pci")
    assert collect(machine.open(0), 32) != collect(machine.open(1), 32)
    assert machine.qmp("query-status")["running"]


def test_the_device_is_reset_at_the_end(virtio_machine):
    machine = virtio_machine("virtio-rng-pci")
    collect(machine.open(0), 16)
    path = f"/machine/peripheral/{machine.functions[0].id}/virtio-backend"
    assert (
        machine.qmp("x-query-virtio-queue-status", path=path, queue=0)["vring-desc"]
        == 0
    )


class Counting(scripted.Rng):
    """An entropy source that notes what it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def handle(self, queue, chain):
        self.asked.append(chain.room)
        return super().handle(queue, chain)


def test_portions(scripted_device, virtio_device):
    model = Counting()
    collect(virtio_device(scripted_device(model)), PORTION + 1)
    assert model.asked == [PORTION, 1]


@pytest.mark.parametrize("case", scripted.hostile_cases("rng"))
def test_a_hostile_device_ends_in_bytes_or_in_an_error(hostile_device, case):
    try:
        assert len(collect(hostile_device(case), 8)) == 8
    except uvirtio.UvirtioError as error:
        assert (
            error.remedy
        )  # and the driver has kept to the standard: the fixture checks that

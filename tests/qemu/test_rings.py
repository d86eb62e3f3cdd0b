"""Rings on QEMU's device models: the reset of one queue, a descriptor that is wrong on purpose, and the window.

What QEMU does not offer (kicks with data, in-order, administration queues, shared memory) is in tests/unit.
"""

from __future__ import annotations

import pytest

import uvirtio
from uvirtio.drivers.input import Input, InputEvent
from uvirtio.drivers.rng import Rng
from uvirtio.memory.seams import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.transports.pci import PciModern
from uvirtio.transports.pci_cfg import CfgWindow

both = pytest.mark.parametrize("packed", ["off", "on"])


@pytest.mark.spec("QRST-01", "QRST-02", "PCI-COM-07")
@both
@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.INTX, InterruptMode.POLLING])
def test_a_queue_is_reset_and_goes_on(packed: str, mode: InterruptMode):
    with Machine("q35", [f"virtio-rng-pci,packed={packed},vectors=3"]) as machine:
        function = machine.functions[0]
        path = f"/machine/peripheral/{function.id}/virtio-backend"
        with identify(function.address, function, interrupts=[mode]) as device, Rng(device) as rng:
            assert device.has(f.RING_RESET)
            queue = device.queues[0]
            for _ in range(3):
                assert len(rng.read(100)) == 100
                assert device.reset_queue(queue) == []
                seen = machine.qmp("x-query-virtio-queue-status", path=path, queue=0)
                assert (seen["vring-desc"], seen["vring-avail"], seen["vring-used"]) == queue.ring.addresses
                assert seen["last-avail-idx"] == 0
                before = device.interrupts_taken
                assert len(rng.read(200)) == 200
                if mode is not InterruptMode.POLLING:
                    device.wait(lambda: device.interrupts_taken > before, timeout=5, what="an interrupt")  # noqa: B023


@pytest.mark.spec("QRST-01", "QRST-02")
@both
def test_a_stocked_queue_gives_its_slots_back_and_the_other_queue_stays(packed: str):
    with Machine("q35", [f"virtio-keyboard-pci,packed={packed}"]) as machine:
        function = machine.functions[0]
        with identify(function.address, function) as device, Input(device) as keyboard:
            queue = device.queues[0]
            count = queue.ring.size
            keyboard.set_led(0, True)
            assert device.reset_queue(queue) == list(range(count))
            keyboard.relay()
            for down in (True, False):
                key = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "a"}}}
                machine.qmp("input-send-event", events=[key])
            found: list[InputEvent] = []
            while len(found) < 4:
                more = keyboard.read(timeout=10)
                assert more
                found += more
            assert found == [InputEvent(1, 30, 1), InputEvent(0, 0, 0), InputEvent(1, 30, 0), InputEvent(0, 0, 0)]
            assert keyboard.flush(timeout=10)


@pytest.mark.spec("PCI-CFA-01", "PCI-CFA-02", "PCI-CFA-03")
def test_the_window_in_configuration_space_shows_the_same_registers():
    with uvirtio.open("qemu:virtio-rng-pci") as device, Rng(device):
        transport = device.transport
        assert isinstance(transport, PciModern)
        window = CfgWindow(transport.function.config, transport.capabilities)
        common = window.registers(next(cap for cap in transport.capabilities if cap.type == "common"))
        assert common.read8(pci.COMMON_DEVICE_STATUS) == transport.status() == 0xF
        assert common.read16(pci.COMMON_NUM_QUEUES) == 1
        common.write16(pci.COMMON_QUEUE_SELECT, 0)
        assert common.read16(pci.COMMON_QUEUE_SIZE) == device.queues[0].ring.size
        low, high = common.read32(pci.COMMON_QUEUE_DESC), common.read32(pci.COMMON_QUEUE_DESC + 4)
        assert low | high << 32 == device.queues[0].ring.addresses[0]

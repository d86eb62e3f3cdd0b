"""Rings on QEMU's device models: the reset of one queue, a descriptor that is wrong on purpose, and the window.

What QEMU does not offer (kicks with data, in-order, administration queues, shared memory) is in tests/unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest

import uvirtio
from uvirtio.device import QueueSpec
from uvirtio.diag.raw import Descriptor, RawSplit, table
from uvirtio.drivers.input import Input, InputEvent
from uvirtio.drivers.rng import Rng
from uvirtio.errors import ConfigError, DeviceBroken, DeviceNeedsReset, DeviceResetByOther
from uvirtio.interfaces.memory import Block
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.qemu import Machine
from uvirtio.spec import features as f
from uvirtio.spec import pci, ring
from uvirtio.transports.pci import PciModern
from uvirtio.transports.pci_cfg import CfgWindow

both = pytest.mark.parametrize("packed", ["off", "on"])


@pytest.mark.fault(31)
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
                old = queue.ring.addresses
                assert device.reset_queue(queue) == []
                assert not set(old) & set(queue.ring.addresses), "what comes late does not meet the new ring"
                seen = machine.qmp("x-query-virtio-queue-status", path=path, queue=0)
                assert (seen["vring-desc"], seen["vring-avail"], seen["vring-used"]) == queue.ring.addresses
                assert seen["last-avail-idx"] == 0
                before = device.counters.interrupts_taken
                assert len(rng.read(200)) == 200
                if mode is not InterruptMode.POLLING:
                    device.wait(lambda: device.counters.interrupts_taken > before, timeout=5, what="an interrupt")  # noqa: B023


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


@both
def test_answers_are_polled_for_before_anybody_sleeps(packed: str):
    with uvirtio.open(f"qemu:virtio-rng-pci,packed={packed}", poll_us=20_000) as device, Rng(device) as rng:
        # How many depends on who else wants the CPU; that it happens does not.
        deadline = time.monotonic() + 30
        while device.counters.polled == 0:
            assert time.monotonic() < deadline, "an answer that is there within 20 ms was never found by looking"
            assert len(rng.read(16)) == 16
        assert device.counters.missed_interrupts == 0


@pytest.mark.spec("PCI-CFA-01", "PCI-CFA-02", "PCI-CFA-03")
def test_the_window_in_configuration_space_shows_the_same_registers():
    with uvirtio.open("qemu:virtio-rng-pci") as device, Rng(device):
        transport = device.transport
        assert isinstance(transport, PciModern)
        window = CfgWindow(transport.backend.config, transport.capabilities)
        common = window.registers(next(cap for cap in transport.capabilities if cap.type == "common"))
        assert common.read8(pci.COMMON_DEVICE_STATUS) == transport.status() == 0xF
        assert common.read16(pci.COMMON_NUM_QUEUES) == 1
        common.write16(pci.COMMON_QUEUE_SELECT, 0)
        assert common.read16(pci.COMMON_QUEUE_SIZE) == device.queues[0].ring.size
        low, high = common.read32(pci.COMMON_QUEUE_DESC), common.read32(pci.COMMON_QUEUE_DESC + 4)
        assert low | high << 32 == device.queues[0].ring.addresses[0]


# --- wrong on purpose (uvirtio.diag.raw) ---------------------------------------------------------------

NEXT, WRITE, INDIRECT = ring.DESC_F_NEXT, ring.DESC_F_WRITE, ring.DESC_F_INDIRECT


def _head_beyond(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 4))
    raw.show(200)


def _next_beyond(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 4, NEXT, 999))
    raw.show(0)


def _loop(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 4, NEXT, 1))
    raw.descriptor(1, Descriptor(at, 4, NEXT, 0))
    raw.show(0)


def _readable_behind_writable(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 4, NEXT | WRITE, 1))
    raw.descriptor(1, Descriptor(at, 4))
    raw.show(0)


def _index_jumps(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 4))
    raw.idx = raw.idx + 10_000


def _table_of_odd_length(raw: RawSplit, at: int, block: Block) -> None:
    where, length = table(block, [Descriptor(at, 4)])
    raw.descriptor(0, Descriptor(where, length + 1, INDIRECT))
    raw.show(0)


def _no_bytes(raw: RawSplit, at: int, block: Block) -> None:
    raw.descriptor(0, Descriptor(at, 0))
    raw.show(0)


FAULTS = (
    _head_beyond,
    _next_beyond,
    _loop,
    _readable_behind_writable,
    _index_jumps,
    _table_of_odd_length,
    _no_bytes,
)


@pytest.mark.fault(26)
@pytest.mark.spec("STAT-04")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_bad_descriptor_makes_the_device_ask_for_a_reset_and_a_reset_mends_it(fault: Callable[..., None]):
    # The balloon takes what the index says, one by one; the rng counts first.
    kind = "rng" if fault is _index_jumps else "balloon"
    with uvirtio.open(f"qemu:virtio-{kind}-pci") as device:
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=128)])
        queue = device.queues[0]
        block = device.dma.alloc(4096)
        with RawSplit(queue.ring) as raw:
            fault(raw, block.segments(2048, 4)[0][0], block)
            device.check()
            queue.notify()
            with pytest.raises(DeviceNeedsReset):
                device.wait(queue.ring.pending, timeout=5, what="an answer")
        assert isinstance(device.broken, DeviceNeedsReset)
        with pytest.raises(DeviceBroken):
            device.check()
        device.reset()
        assert device.transport.status() == 0


def test_a_register_written_on_purpose():
    with uvirtio.open("qemu:virtio-balloon-pci") as device:
        device.start(wanted=0, queues=[QueueSpec(0, "inflateq", size=128)])
        transport = device.transport
        assert isinstance(transport, PciModern)
        with closing(transport.raw_registers("common")) as common:
            common.write8(pci.COMMON_DEVICE_STATUS, 0)
        with pytest.raises(DeviceResetByOther):
            device.check()
        with pytest.raises(ConfigError):
            transport.raw_registers("nonsense")

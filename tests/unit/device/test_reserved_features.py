"""The reserved feature bits (6) that no device model here offers, on a scripted device.

Kicks with data, a device's own names for its queues, barriers for devices on a bus, the reset of one queue; and
the bits that are never taken.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.device import Device, QueueSpec
from uvirtio.device import core as devices
from uvirtio.device.evidence import of_queue
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import DeviceBroken, DeviceTimeout, NotSupported, QueueError
from uvirtio.host import cpu
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory import fence
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.memory import StrayAccess
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import NOTIFY_AT, ScriptedDevice, virtio_capability
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.status import Status

BASE = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX)
PACKED = f.mask(f.RING_PACKED)
FULL = pci.COMMON_CFG_SIZE


def offering(*bits: int, packed: bool = False, model: Model | None = None, **how: Any) -> ScriptedDevice:
    model = model or Rng()
    how = {"common_length": FULL, **how}
    return ScriptedDevice(model, features=BASE | f.mask(*bits) | (PACKED if packed else 0) | model.features, **how)


def identify(scripted: ScriptedDevice, **how: Any) -> Device:
    return opening.identify(scripted.address, scripted, **{"timeout": 2, **how})


both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


# --- kicks (2.9, 4.1.5.2.1) ---------------------------------------------------------------------------------

IDENTS = {0: 0x1234, 1: 0xFFFE}


@pytest.mark.spec(
    "NOTE-01",
    "NOTE-02",
    "NOTE-03",
    "PCI-NTF-01",
    "PCI-NTF-02",
    "PCI-NTF-03",
    "PCI-NTF-04",
    "PCI-NTF-05",
    "PCI-NTF-06",
    "PKD-04",
    "RSV-10",
)
@both
@pytest.mark.parametrize("data", [False, True], ids=["plain", "data"])
@pytest.mark.parametrize("named", [False, True], ids=["index", "own name"])
def test_the_four_kinds_of_kick(packed: bool, data: bool, named: bool):
    bits = [bit for bit, on in ((f.NOTIFICATION_DATA, data), (f.NOTIF_CONFIG_DATA, named)) if on]
    scripted = offering(*bits, packed=packed, model=Balloon(), notif_config_data=IDENTS)
    with identify(scripted) as device, BalloonDriver(device) as balloon:
        assert device.has(f.NOTIFICATION_DATA) is data and device.has(f.NOTIF_CONFIG_DATA) is named
        for _ in range(150):  # over the wrap of a packed ring of 128 slots
            balloon.inflate(1)
        balloon.deflate(150)
        kicks = [access for access in scripted.log if access.op == "write" and access.region == "notify"]
        assert {access.width for access in kicks} == {4 if data else 2}
        assert {access.value & 0xFFFF for access in kicks} == (set(IDENTS.values()) if named else {0, 1})
        if data:
            uppers = [upper for queue, upper in scripted.kick_data if queue == 0]
            size = device.queues[0].ring.size
            if packed:
                expected = [place % size | (0 if place // size % 2 else 0x8000) for place in range(1, 151)]
            else:
                expected = list(range(1, 151))
            assert uppers == expected
    scripted.assert_left()


@pytest.mark.spec("NOTE-02")
def test_the_top_bit_of_the_index_is_the_wrap():
    scripted = offering(f.NOTIFICATION_DATA)
    with identify(scripted) as device, RngDriver(device) as rng:
        ring: Any = device.queues[0].ring
        start = 0x7FFE  # as if so many chains had gone through
        ring._laid = ring.published = ring.reaped = start
        ring._avail[1] = ring._avail[ring._used_event] = start
        other = scripted.queues[0].ring
        other.last_avail = other.used_idx = other._seen_idx = other._signalled = start
        other.write_used_idx(start)
        other.ask_for_kicks()
        for _ in range(4):
            rng.read(1)
        assert [upper for _, upper in scripted.kick_data] == [0x7FFF, 0x8000, 0x8001, 0x8002]
    scripted.assert_left()


@pytest.mark.spec("PCI-NTF-07")
@pytest.mark.parametrize(("multiplier", "data"), [(4, True), (8, True), (0, True), (2, False), (6, False)])
def test_data_is_taken_only_where_kicks_can_be_aligned_to_it(multiplier: int, data: bool):
    scripted = offering(f.NOTIFICATION_DATA, multiplier=multiplier)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert device.has(f.NOTIFICATION_DATA) is data
        assert len(rng.read(10)) == 10
    scripted.assert_left()


def test_a_doorbell_that_is_too_narrow_for_data_is_refused():
    caps = offering().usual_capabilities()
    notify = virtio_capability(pci.CfgType.NOTIFY, 4, NOTIFY_AT, 0xFFE, (4).to_bytes(4, "little"))
    caps = [notify if cap[3] == pci.CfgType.NOTIFY and cap[0] == pci.CapId.VENDOR else cap for cap in caps]
    scripted = offering(f.NOTIFICATION_DATA, notify_offs={0: 0x3FF}, capabilities=caps)
    with identify(scripted) as device, pytest.raises(QueueError, match="doorbell"):
        RngDriver(device)
    scripted.assert_left()


@pytest.mark.fault(8)
@pytest.mark.spec("PCI-COM-10")
@pytest.mark.parametrize(
    ("length", "bits"),
    [
        (0x38, []),
        (0x3A, [f.NOTIF_CONFIG_DATA]),
        (0x3C, [f.NOTIF_CONFIG_DATA, f.RING_RESET]),
        (0x40, [f.NOTIF_CONFIG_DATA, f.RING_RESET]),
    ],
)
def test_what_needs_a_field_is_taken_only_if_the_field_is_there(length: int, bits: list[int]):
    scripted = offering(f.NOTIF_CONFIG_DATA, f.RING_RESET, f.ADMIN_VQ, common_length=length)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert device.features == BASE | f.mask(*bits)
        assert len(rng.read(10)) == 10
    scripted.assert_left()


# --- ORDER_PLATFORM -----------------------------------------------------------------------------------------


@pytest.mark.spec("RSV-06", "RSV-07")
@both
def test_with_order_platform_every_step_is_fenced(packed: bool, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(devices, "platform_fence", lambda: lambda: calls.append("platform"))
    scripted = offering(f.ORDER_PLATFORM, packed=packed)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert device.has(f.ORDER_PLATFORM)
        rng.read(1)
        assert calls == ["platform"] * 2, "before what shows the chain, and after what says that it is back"
    scripted.assert_left()


@pytest.mark.spec("RSV-07")
def test_where_python_has_no_such_barrier_the_bit_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "machine", lambda: "aarch64")
    assert fence.platform_fence() is None
    monkeypatch.setattr(devices, "platform_fence", lambda: None)
    scripted = offering(f.ORDER_PLATFORM)
    with identify(scripted) as device, RngDriver(device):
        assert not device.has(f.ORDER_PLATFORM)
    scripted.assert_left()


# --- what is never taken ------------------------------------------------------------------------------------


@pytest.mark.spec("SUSP-01", "RSV-08")
@pytest.mark.parametrize("model", [Rng, Balloon, Input])
def test_suspend_and_sr_iov_are_left_alone_and_suspend_is_never_written(model: type[Model]):
    drivers: dict[type[Model], Any] = {Rng: RngDriver, Balloon: BalloonDriver, Input: InputDriver}
    scripted = offering(f.SUSPEND, f.SR_IOV, model=model())
    with identify(scripted) as device:
        for _ in range(2):
            with drivers[model](device):
                assert not device.has(f.SUSPEND) and not device.has(f.SR_IOV)
    written = scripted.writes("common", pci.COMMON_DEVICE_STATUS)
    assert not [value for value in written if value & Status.SUSPEND]
    scripted.assert_left()


# --- the reset of one queue (2.6.1) -------------------------------------------------------------------------


class Holding(Balloon):
    """Keeps what comes, as a device that works on it; a reset of its queue makes it forget."""

    def queue_reset(self, queue: int) -> None:
        self.kept = [(index, chain) for index, chain in self.kept if index != queue]


def started(scripted: ScriptedDevice, mode: InterruptMode = InterruptMode.PER_QUEUE, **how: Any) -> Device:
    device = identify(scripted, interrupts=[mode], **how)
    device.start(wanted=0, queues=[QueueSpec(0, "inflateq", size=16), QueueSpec(1, "deflateq", size=16)])
    return device


@pytest.mark.spec("QRST-01", "QRST-02", "PCI-COM-07", "PCI-COM-06")
@both
@pytest.mark.parametrize("mode", list(InterruptMode))
@pytest.mark.parametrize("reads", [0, 1, 5])
def test_a_queue_is_reset_and_set_up_anew_while_the_other_goes_on(packed: bool, mode: InterruptMode, reads: int):
    model = Holding()
    scripted = offering(f.RING_RESET, packed=packed, model=model, queue_reset_reads=reads)
    with started(scripted, mode) as device:
        model.hold = True
        first, second = device.queues[0], device.queues[1]
        buffer = device.dma.alloc(4096)
        [frame] = device.dma.pin(4096).pfns()
        buffer.view[:4] = frame.to_bytes(4, "little")
        for number in range(3):
            first.add(buffer.segments(0, 4), (), number)
        first.kick()
        second.add(buffer.segments(0, 4), (), "other")
        second.kick()
        old, before = first.ring, len(scripted.log)
        assert device.reset_queue(first) == [0, 1, 2]
        assert first.ring is not old and first.ring.in_flight == 0
        assert not scripted.memory.is_mapped(old.addresses[0], 1), "its memory was given back"
        log = [access for access in scripted.log[before:] if access.region == "common"]
        writes = {access.offset for access in log if access.op == "write"}
        fields = {pci.COMMON_QUEUE_RESET, pci.COMMON_QUEUE_SIZE, pci.COMMON_QUEUE_ENABLE}
        fields |= {at + half for at in (0x20, 0x28, 0x30) for half in (0, 4)}
        if mode in (InterruptMode.PER_QUEUE, InterruptMode.SHARED):
            fields.add(pci.COMMON_QUEUE_MSIX_VECTOR)
        assert writes - {pci.COMMON_QUEUE_SELECT} == fields
        polls = [access.value for access in log if (access.op, access.offset) == ("read", pci.COMMON_QUEUE_RESET)]
        assert polls == [1] * reads + [0]
        # Both go on: the one that was reset, and the one that was not.
        model.hold = False
        first.add(buffer.segments(0, 4), (), "again")
        first.kick()
        assert [done.cookie for done in first.reap()] == ["again"]
        model.release()
        assert [done.cookie for done in second.reap()] == ["other"]
        if mode is not InterruptMode.POLLING:
            assert device.service()
    scripted.assert_left()


@pytest.mark.fault(31)
@both
def test_what_comes_late_meets_nothing_of_the_new_ring(packed: bool):
    """A device that says its queue is reset, and writes into the old ring all the same."""
    model = Holding()
    scripted = offering(f.RING_RESET, packed=packed, model=model)
    with started(scripted) as device:
        model.hold = True
        queue, buffer = device.queues[0], device.dma.alloc(4096)
        [frame] = device.dma.pin(4096).pfns()
        buffer.view[:4] = frame.to_bytes(4, "little")
        queue.add(buffer.segments(0, 4), (), "old")
        queue.kick()
        old, late, witness = queue.ring.addresses, scripted.queues[0].ring, device.dma.alloc(1 << 16)
        kept = [chain for _, chain in model.kept]
        assert device.reset_queue(queue) == ["old"]
        queue.add(buffer.segments(0, 4), (), "new")
        queue.publish()
        assert not set(old) & set(queue.ring.addresses)
        assert late is not None and scripted.queues[0].ring is not late
        assert not any(scripted.memory.is_mapped(address, 1) for address in old)
        for chain in kept:
            with pytest.raises(StrayAccess):
                late.push(chain, 4)
                late.flush()
        assert queue.reap() == [] and queue.ring.in_flight == 1
        assert len(kept) == 1 and bytes(witness.view) == bytes(1 << 16)
    scripted.assert_left()


@both
def test_kicks_before_a_reset_are_none_of_the_new_ring(packed: bool):
    model = Holding()
    with started(offering(f.RING_RESET, packed=packed, model=model)) as device:
        model.hold = True
        queue, buffer = device.queues[0], device.dma.alloc(4096)
        for number in range(3):
            queue.add(buffer.segments(0, 4), (), number)
        queue.kick()
        device.reset_queue(queue)
        queue.add(buffer.segments(0, 4), (), "not kicked")
        queue.ring.publish()
        found = of_queue(queue)
        assert found is not None and (found.published, found.unkicked, found.stall) == (1, 1, "suppressed")
        queue.notify()
        found = of_queue(queue)
        assert found is not None and found.unkicked == 0


@pytest.mark.spec("QRST-02")
def test_a_queue_may_come_back_smaller():
    scripted = offering(f.RING_RESET)
    with started(ScriptedDevice(Balloon(), features=BASE | f.mask(f.RING_RESET), common_length=FULL)) as device:
        assert device.queues[0].ring.size == 16
    with identify(scripted) as device, RngDriver(device) as rng:
        scripted.queues[0].size_max = 4
        device.reset_queue(device.queues[0])
        assert device.queues[0].ring.size == 4
        assert len(rng.read(100)) == 100
    scripted.assert_left()


@both
def test_fixed_slots_are_named_and_laid_anew(packed: bool):
    scripted = offering(f.RING_RESET, packed=packed, model=Input())
    with identify(scripted) as device, InputDriver(device):
        queue = device.queues[0]
        count = queue.ring.size
        scripted.model.buffers.clear()
        assert device.reset_queue(queue) == list(range(count))
        assert queue.slots is None
        buffer = device.dma.alloc(8 * count)
        queue.set_fixed([((), buffer.segments(8 * slot, 8)) for slot in range(count)])
        queue.submit(range(count))
        assert scripted.model.inject((1, 30, 1), (0, 0, 0)) == 2
        assert list(queue.reap_slots()) == [0, 1]
    scripted.assert_left()


@pytest.mark.fault(49)
@pytest.mark.spec("QRST-01", "PCI-COM-07")
def test_a_reset_that_never_ends_breaks_the_device_and_frees_nothing():
    scripted = offering(f.RING_RESET, queue_reset_reads=-1)
    with identify(scripted) as device, RngDriver(device) as rng:
        addresses = device.queues[0].ring.addresses
        with pytest.raises(DeviceTimeout, match="requestq"):
            device.reset_queue(device.queues[0], timeout=0.05)
        assert all(scripted.memory.is_mapped(address, 1) for address in addresses)
        with pytest.raises(DeviceBroken):
            rng.read(1)
    scripted.assert_left()


def test_without_the_feature_there_is_no_such_thing():
    scripted = offering()
    with identify(scripted) as device, RngDriver(device) as rng:
        with pytest.raises(NotSupported, match="by itself"):
            device.reset_queue(device.queues[0])
        assert len(rng.read(3)) == 3
    scripted.assert_left()


@pytest.mark.fault(91)
@pytest.mark.spec("PCI-COM-11")
def test_queues_are_reset_by_one_thread_at_a_time():
    """Selector and field belong together, whichever thread asks (the device's lock)."""
    scripted = offering(f.RING_RESET, model=Holding())
    with started(scripted, InterruptMode.POLLING) as device:
        threads = [
            threading.Thread(target=lambda queue=queue: [device.reset_queue(queue) for _ in range(20)])
            for queue in device.queues.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        selected = None
        for access in scripted.log:
            if access.region == "common" and access.offset == pci.COMMON_QUEUE_SELECT and access.op == "write":
                selected = access.value
            elif access.region == "common" and access.offset == pci.COMMON_QUEUE_ENABLE and access.op == "write":
                assert selected in (0, 1)
        resets = scripted.writes("common", pci.COMMON_QUEUE_RESET)
        assert resets == [1] * 40
        assert all(queue.enable for queue in scripted.queues[:2])
    scripted.assert_left()


@pytest.mark.fault(22)
def test_the_combinations_are_negotiated_in_one_word():
    """Every subset of the new bits, on both formats: what is offered is taken, and data flows."""
    bits = (f.NOTIFICATION_DATA, f.NOTIF_CONFIG_DATA, f.RING_RESET, f.IN_ORDER)
    for count in range(len(bits) + 1):
        for chosen in itertools.combinations(bits, count):
            for packed in (False, True):
                scripted = offering(*chosen, packed=packed, notif_config_data={0: 0x77})
                with identify(scripted) as device, RngDriver(device) as rng:
                    assert device.features == scripted.offered
                    assert rng.read(30) == bytes(range(30))
                scripted.assert_left()

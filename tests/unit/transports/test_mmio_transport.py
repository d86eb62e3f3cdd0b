"""Virtio over MMIO (4.2) against the scripted window: every access, the interrupt, and what can be wrong."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvirtio import opening
from uvirtio.device import Device, QueueSpec
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import (
    ConfigError,
    ConfigUnstable,
    DeviceAbsent,
    DeviceGone,
    DeviceTimeout,
    FeatureMissing,
    MemoryScattered,
    NoSuchDevice,
    NotSupported,
    NotVirtio,
    QueueError,
    UvirtioError,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.core import QueueState
from uvirtio.scripted.input import Input
from uvirtio.scripted.mmio import ADDRESS, ScriptedMmio
from uvirtio.scripted.model import Model
from uvirtio.scripted.rng import Rng
from uvirtio.spec import balloon, mmio
from uvirtio.spec import features as f
from uvirtio.transports.mmio import Mmio, MmioLegacy, transport

LINE, POLLING = InterruptMode.INTX, InterruptMode.POLLING


def identify(scripted: ScriptedMmio, **how: object) -> Device:
    return opening.identify(ADDRESS, scripted, timeout=1.0, **how)  # type: ignore[arg-type]


def start(scripted: ScriptedMmio, *, mode: InterruptMode = LINE, size: int = 8) -> Device:
    """A device at DRIVER_OK with all of its queues."""
    device = identify(scripted, interrupts=[mode])
    count = len(scripted.model.queue_sizes)
    device.start(wanted=0, queues=[QueueSpec(index, f"queue {index}", size=size) for index in range(count)])
    return device


# --- a whole life -------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "MMIO-01", "MMIO-02", "MMIO-03", "MMIO-04", "MMIO-05", "MMIO-10", "MMIO-11", "MMIO-12", "MMIO-13", "MMIO-18"
)
@pytest.mark.spec("MMIO-L01", "MMIO-L06", "INIT-L01", "FEAT-L02")
@pytest.mark.parametrize("mode", [LINE, POLLING])
@pytest.mark.parametrize("kind", ["rng", "balloon", "input"])
@pytest.mark.parametrize("version", [2, 1])
def test_drivers_work_and_break_no_rule_of_the_registers(kind: str, mode: InterruptMode, version: int):
    model: Model
    if kind == "rng":
        scripted = ScriptedMmio(Rng(), version=version)
        with identify(scripted, interrupts=[mode]) as device, RngDriver(device) as rng:
            assert rng.read(100) == bytes(range(100))
            assert device.transport.interrupt_mode is mode
    elif kind == "balloon":
        model = Balloon(features=f.mask(f.Balloon.STATS_VQ))
        scripted = ScriptedMmio(model, version=version)
        with identify(scripted, interrupts=[mode]) as device, BalloonDriver(device) as driver:
            assert driver.inflate(300) == 300 == model.actual
            model.set_target(10)
            driver.follow(timeout=0.2)
            assert driver.held == model.actual == 10
        assert not model.frames
    else:
        model = Input()
        scripted = ScriptedMmio(model, version=version)
        with identify(scripted, interrupts=[mode]) as device, InputDriver(device) as keyboard:
            assert keyboard.name == "scripted keyboard"
            assert keyboard.ids is not None
            model.inject((1, 30, 1), (0, 0, 0))
            assert len(keyboard.read(timeout=1)) == 2
    # Each access was checked: registers of the table alone, 32 bits, and none the wrong way.
    scripted.assert_left()


@pytest.mark.spec("MMIO-20", "MMIO-21", "MMIO-24", "MMIO-23")
def test_it_begins_with_magic_version_and_device_id():
    scripted = ScriptedMmio(Rng())
    with start(scripted):
        order = scripted.order()
    assert order[:3] == ["R MagicValue", "R Version", "R DeviceID"]
    assert order[3] == "W Status"  # the reset of 3.1.1, and then all the rest of it
    assert [value for value in scripted.writes("mmio", mmio.STATUS) if value][:4] == [1, 3, 11, 15]
    assert not any("SHM" in name for name in order)


@pytest.mark.spec("MMIO-28", "MMIO-12", "MMIO-13", "MMIO-04")
def test_a_queue_is_set_up_in_order_and_in_halves():
    scripted = ScriptedMmio(Rng())
    with start(scripted) as device:
        addresses = device.queues[0].ring.addresses
        assert scripted.queues[0].addresses == dict(
            zip(("queue_desc", "queue_driver", "queue_device"), addresses, strict=True)
        )
        order = scripted.order()
        first = order.index("R QueueReady")
        assert order[first - 1 : first + 11] == [
            "W QueueSel",
            "R QueueReady",
            "R QueueSizeMax",
            "W QueueSize",
            "W QueueDescLow",
            "W QueueDescHigh",
            "W QueueDriverLow",
            "W QueueDriverHigh",
            "W QueueDeviceLow",
            "W QueueDeviceHigh",
            "W QueueReady",
            "R QueueReady",
        ]


@pytest.mark.spec("MMIO-04")
def test_addresses_above_4_gib_keep_their_upper_half():
    scripted = ScriptedMmio(Rng())
    places = [0x12_3456_7000, 0xFFFF_FFFF_0000_0000, 0x1_0000_0000]
    scripted.faults.never_enables = True  # there is no memory there
    with pytest.raises(QueueError, match="does not become ready"):
        transport(scripted).enable_queue(0, 8, *places)  # type: ignore[arg-type]
    assert list(scripted.queues[0].addresses.values()) == places


@pytest.mark.spec("MMIO-29")
def test_a_kick_is_the_index_in_32_bits():
    scripted = ScriptedMmio(Input())
    with start(scripted) as device:
        device.queues[1].notify()
        device.queues[0].notify()
    kicks = [access for access in scripted.log if access.offset == mmio.QUEUE_NOTIFY and access.op == "write"]
    assert [(access.width, access.value) for access in kicks] == [(4, 1), (4, 0)]
    scripted.assert_left()


@pytest.mark.spec("MMIO-29", "NOTE-01", "NOTE-02", "NOTE-03")
@pytest.mark.parametrize("packed", [False, True])
def test_with_notification_data_a_kick_says_what_is_new(packed: bool):
    """4.2.3.3, 2.9: the same register, with the upper half in use."""
    word = f.mask(f.VERSION_1, f.NOTIFICATION_DATA) | (f.mask(f.RING_PACKED) if packed else 0)
    scripted = ScriptedMmio(Rng(), features=word)
    with start(scripted) as device:
        assert device.features == word
        queue, buffer = device.queues[0], device.dma.alloc(4096)
        for number in range(10):  # over the wrap of a packed ring of 8
            queue.add((), buffer.segments(0, 4), number)
            queue.kick()
            assert [done.cookie for done in queue.reap()] == [number]
    kicks = [access for access in scripted.log if access.offset == mmio.QUEUE_NOTIFY and access.op == "write"]
    uppers = [place % 8 | (0 if place // 8 % 2 else 0x8000) for place in range(1, 11)] if packed else range(1, 11)
    assert [(access.width, access.value) for access in kicks] == [(4, upper << 16) for upper in uppers]
    scripted.assert_left()


@pytest.mark.spec("MMIO-14", "MMIO-15")
def test_a_queue_that_is_left_is_stopped_and_read_back():
    scripted = ScriptedMmio(Input())
    device = start(scripted)
    before = len(scripted.log)
    device.close()
    stops = [
        (access.op, access.value)
        for access in scripted.log[before:]
        if access.offset in (mmio.QUEUE_SEL, mmio.QUEUE_READY) and access.region == "mmio"
    ]
    each = [("write", 0), ("read", 0)]
    assert stops == [("write", 1), *each, ("write", 0), *each]
    scripted.assert_left()


@pytest.mark.spec("MMIO-15")
def test_a_queue_that_does_not_stop_is_an_error():
    scripted = ScriptedMmio(Rng(), ready_stuck=True)
    with start(scripted) as device:
        assert isinstance(device.transport, Mmio)
        with pytest.raises(QueueError, match="does not stop"):
            device.transport.stop_queue(0)


@pytest.mark.spec("MMIO-05")
def test_configuration_is_read_with_the_widths_of_its_fields():
    model = Input()
    scripted = ScriptedMmio(model)
    with identify(scripted, interrupts=[POLLING]) as device, InputDriver(device) as keyboard:
        assert keyboard.ids is not None
        assert keyboard.name
    accesses = set(scripted.config_accesses())
    assert ("write", 0, 1) in accesses
    assert ("write", 1, 1) in accesses
    assert ("read", 2, 1) in accesses
    assert {width for op, at, width in accesses if op == "read" and at >= 8} == {1, 2}
    bare = transport(ScriptedMmio(Balloon()))  # type: ignore[arg-type]
    assert bare.read_config(0, 8) == 0
    assert bare.backend.config_accesses() == [("read", 0, 4), ("read", 4, 4)]  # type: ignore[attr-defined]


def test_configuration_is_written_with_the_widths_of_its_fields():
    class Wide(Model):
        device_id = 4

        def __init__(self) -> None:
            super().__init__()
            self.config = bytearray(16)

    scripted = ScriptedMmio(Wide())
    with start(scripted) as device:
        for width in (1, 2, 4, 8):
            device.transport.write_config(8, width, 0x0102030405060708 & (1 << 8 * width) - 1)
    writes = [(at, width) for op, at, width in scripted.config_accesses() if op == "write"]
    assert writes == [(8, 1), (8, 2), (8, 4), (8, 4), (12, 4)]
    assert scripted.model.config[8:] == struct.pack("<Q", 0x0102030405060708)


@pytest.mark.parametrize(("offset", "width"), [(0x100, 1), (0xFF, 2), (0xFD, 4), (0xF9, 8), (-1, 1)])
def test_configuration_beyond_the_window_is_refused(offset: int, width: int):
    bare = transport(ScriptedMmio(Rng()))  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        bare.read_config(offset, width)


# --- what is in the window ----------------------------------------------------------------------------------


@pytest.mark.fault(11)
@pytest.mark.spec("MMIO-06", "MMIO-20")
@pytest.mark.parametrize("magic", [0, 0xFFFFFFFF, 0x76697274, mmio.MAGIC + 1])
def test_a_wrong_magic_is_no_device(magic: int):
    scripted = ScriptedMmio(Rng(), magic=magic)
    with pytest.raises(NotVirtio) as caught:
        identify(scripted)
    assert f"{magic:#010x}" in str(caught.value.seen)
    assert scripted.order() == ["R MagicValue"]
    scripted.assert_left()


@pytest.mark.fault(11)
@pytest.mark.spec("MMIO-07")
@pytest.mark.parametrize("version", [0, 3, 0x10002, 0xFFFFFFFF])
def test_an_unknown_version_is_left_alone(version: int):
    scripted = ScriptedMmio(Rng(), version=version)
    with pytest.raises(NotSupported, match="unknown version") as caught:
        identify(scripted)
    assert f"{version:#x}" in str(caught.value.seen)
    assert scripted.order() == ["R MagicValue", "R Version"]
    scripted.assert_left()


@pytest.mark.fault(11)
@pytest.mark.spec("MMIO-08", "MMIO-21", "MMIO-22")
def test_an_empty_window_is_left_at_once():
    scripted = ScriptedMmio(Rng(), device_id=0)
    with pytest.raises(NoSuchDevice, match="empty") as caught:
        identify(scripted)
    assert caught.value.exit_code == 5
    assert scripted.order() == ["R MagicValue", "R Version", "R DeviceID"]
    scripted.assert_left()


def test_a_window_that_is_too_small_is_refused_before_any_access():
    scripted = ScriptedMmio(Rng(), window=0x80)
    with pytest.raises(NotVirtio, match="too small"):
        identify(scripted)
    assert not scripted.order()
    scripted.assert_left()


@pytest.mark.spec("MMIO-30", "RSV-08")
def test_features_without_a_form_on_mmio_are_not_taken():
    odd = f.mask(f.ADMIN_VQ, f.NOTIF_CONFIG_DATA, f.SR_IOV)
    scripted = ScriptedMmio(Rng(), features=f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX) | odd)
    with start(scripted) as device:
        assert device.offered & odd == odd
        assert not device.features & odd
        assert not scripted.driver_features & odd


def test_a_device_with_two_feature_words_is_not_taken_to_have_four():
    scripted = ScriptedMmio(Rng(), two_words=True)
    with start(scripted) as device:
        assert device.offered == scripted.offered
        assert scripted.driver_features == device.features
        assert device.has(f.VERSION_1)


@pytest.mark.spec("FEAT-03")
def test_a_device_with_four_feature_words_is_asked_for_all():
    scripted = ScriptedMmio(Rng(), features=f.mask(f.VERSION_1) | 1 << 70 | 1 << 120)
    bare = transport(scripted)  # type: ignore[arg-type]
    assert bare.device_features() == scripted.offered
    bare.set_driver_features(1 << 70)
    assert scripted.driver_features == 1 << 70
    bare.set_driver_features(1 << 70 | 1 << 33 | 1)
    bare.set_driver_features(1 << 70)
    assert scripted.driver_features == 1 << 70, "the first two words are written when they are empty, too"


def test_a_device_without_version_1_behind_version_2_registers_fails():
    scripted = ScriptedMmio(Rng(), features=f.mask(f.INDIRECT_DESC))
    with identify(scripted) as device, pytest.raises(FeatureMissing):
        RngDriver(device)
    scripted.assert_left()


@pytest.mark.spec("MMIO-31", "MMIO-23")
def test_shared_memory_regions():
    scripted = ScriptedMmio(Rng(), shared={3: (0x1_2345_6000, 0x2_0000_0000)})
    bare = transport(scripted)  # type: ignore[arg-type]
    assert bare.shared_memory_region(3) == (0x1_2345_6000, 0x2_0000_0000)
    assert bare.shared_memory_region(0) is None
    assert not scripted.violations


# --- queues -------------------------------------------------------------------------------------------------


@pytest.mark.spec("MMIO-28")
def test_a_queue_of_size_0_is_absent():
    scripted = ScriptedMmio(Input(), queue_size={1: 0})
    device = identify(scripted)
    assert device.transport.queue_layout(1).size_max == 0
    with pytest.raises(QueueError, match="has no queue 1"):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0"), QueueSpec(1, "queue 1")])
    device.close()
    scripted.assert_left()


@pytest.mark.spec("MMIO-28")
def test_a_queue_that_is_ready_before_its_time_is_an_error():
    scripted = ScriptedMmio(Rng(), enabled_before=True)
    device = identify(scripted)
    with pytest.raises(QueueError, match="already in use"):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    assert not scripted.writes("mmio", mmio.QUEUE_SIZE)
    device.close()


def test_a_queue_that_never_becomes_ready_is_an_error():
    scripted = ScriptedMmio(Rng(), never_enables=True)
    device = identify(scripted)
    with pytest.raises(QueueError, match="does not become ready"):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    device.close()
    scripted.assert_left()


@pytest.mark.fault(13)
@pytest.mark.spec("MMIO-12")
def test_a_maximum_that_shrinks_is_not_exceeded():
    scripted = ScriptedMmio(Rng())
    bare = transport(scripted)  # type: ignore[arg-type]
    scripted.queues[0].size_max = 4
    with pytest.raises(QueueError, match="cannot have 8 entries"):
        bare.enable_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert not scripted.writes("mmio", mmio.QUEUE_SIZE)


def test_a_device_that_has_any_queue_that_it_is_asked_for_is_not_counted_for_ever():
    class Boundless(ScriptedMmio):
        def _queue(self) -> QueueState:
            return QueueState(8)

    bare = transport(Boundless(Rng()))  # type: ignore[arg-type]
    assert bare.num_queues == 1024


@pytest.mark.parametrize(("sizes", "count"), [((64,), 1), ((8, 8, 0, 0, 8), 5), ((0, 0), 0), ((4,) * 9, 9)])
def test_the_number_of_queues_is_found_out(sizes: tuple[int, ...], count: int):
    model = Rng()
    model.queue_sizes = sizes
    bare = transport(ScriptedMmio(model))  # type: ignore[arg-type]
    assert bare.num_queues == count == bare.num_queues


@pytest.mark.spec("MMIO-19", "QRST-01", "QRST-02")
def test_the_reset_of_a_queue_is_over_when_its_register_says_so():
    features = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX, f.RING_RESET)
    scripted = ScriptedMmio(Rng(), features=features, queue_reset_reads=3)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert rng.read(4) == bytes(range(4))
        before = len(scripted.log)
        assert device.reset_queue(device.queues[0]) == []
        done = scripted.order("QueueReset", "QueueReady", "QueueSize", "QueueDescLow")
        start = done.index("W QueueReset")
        # Asked until it reads 0, and only then set up again.
        assert done[start : start + 5] == ["W QueueReset", *["R QueueReset"] * 4]
        assert done[start + 5 : start + 9] == ["R QueueReady", "R QueueReady", "W QueueSize", "W QueueDescLow"]
        assert len(scripted.log) > before
        assert len(rng.read(100)) == 100
    scripted.assert_left()


@pytest.mark.spec("MMIO-19")
def test_a_reset_of_a_queue_that_never_ends_is_no_reset():
    features = f.mask(f.VERSION_1, f.RING_RESET)
    scripted = ScriptedMmio(Rng(), features=features, queue_reset_reads=-1)
    with identify(scripted) as device, RngDriver(device):
        addresses = device.queues[0].ring.addresses
        with pytest.raises(DeviceTimeout, match="did not finish the reset"):
            device.reset_queue(device.queues[0], timeout=0.05)
        assert all(scripted.memory.is_mapped(address, 1) for address in addresses)
    scripted.assert_left()


@pytest.mark.spec("MMIO-19")
def test_a_register_that_does_nothing_is_not_believed():
    features = f.mask(f.VERSION_1, f.RING_RESET)
    scripted = ScriptedMmio(Rng(), features=features, resets_queues=False)
    with identify(scripted) as device, RngDriver(device):
        addresses = device.queues[0].ring.addresses
        with pytest.raises(QueueError, match="is reported as reset"):
            device.reset_queue(device.queues[0])
        assert all(scripted.memory.is_mapped(address, 1) for address in addresses)
    scripted.assert_left()


# --- version 1, the legacy interface (4.2.4) ----------------------------------------------------------------


@pytest.mark.spec("MMIO-L01", "MMIO-L06", "FEAT-L01", "MMIO-20", "MMIO-21")
def test_version_1_is_the_legacy_interface():
    scripted = ScriptedMmio(Rng(), version=1)
    with start(scripted) as device:
        assert isinstance(device.transport, MmioLegacy)
        assert device.transport.legacy
        assert device.transport.generation() is None
        assert device.features == f.mask(f.ANY_LAYOUT, f.INDIRECT_DESC, f.EVENT_IDX)
        assert device.transport.shared_memory_region(0) is None
    assert [value for value in scripted.writes("mmio", mmio.STATUS) if value] == [1, 3, 7]
    assert scripted.order()[:3] == ["R MagicValue", "R Version", "R DeviceID"]
    scripted.assert_left()


@pytest.mark.spec("MMIO-L02", "MMIO-L03", "MMIO-L04", "MMIO-L06")
def test_a_legacy_queue_is_set_up_in_order():
    scripted = ScriptedMmio(Input(), version=1)
    with start(scripted) as device:
        order = scripted.order("GuestPageSize", "QueueSel", "QueuePFN", "QueueSizeMax", "QueueSize", "QueueAlign")
        look = ["W QueueSel", "R QueuePFN", "R QueueSizeMax"]
        give = [*look, "W QueueSize", "W QueueAlign", "W QueuePFN", "R QueuePFN"]
        assert order == ["W GuestPageSize", *look, *look, *give, *give]
        for index, queue in device.queues.items():
            desc, avail, used = queue.ring.addresses
            assert scripted.queues[index].addresses["queue_desc"] == desc == scripted_frame(scripted, index) << 12
            assert avail == desc + 16 * queue.ring.size
            assert used == (avail + 2 * (3 + queue.ring.size) + 4095) & ~4095
    assert not scripted.violations


def scripted_frame(scripted: ScriptedMmio, index: int) -> int:
    return [value for value in scripted.writes("mmio", mmio.QUEUE_PFN) if value][index]


@pytest.mark.spec("MMIO-L02")
def test_each_life_tells_the_page_size_once():
    scripted = ScriptedMmio(Rng(), version=1)
    with identify(scripted) as device:
        for _ in range(2):
            with RngDriver(device) as rng:
                assert rng.read(4)
    assert scripted.writes("mmio", mmio.GUEST_PAGE_SIZE) == [4096, 4096]
    scripted.assert_left()


@pytest.mark.spec("MMIO-L05")
def test_a_legacy_queue_that_is_left_gets_frame_0():
    scripted = ScriptedMmio(Rng(), version=1)
    device = start(scripted)
    device.close()
    assert scripted.writes("mmio", mmio.QUEUE_PFN)[-1] == 0
    assert scripted.reads("mmio", mmio.QUEUE_PFN)[-1] == 0
    scripted.assert_left()


@pytest.mark.spec("MMIO-L05")
@pytest.mark.parametrize("address", [0, 0xFFF, 0x1800, 1 << 44])
def test_a_legacy_queue_is_never_put_at_frame_0_or_where_no_frame_is(address: int):
    scripted = ScriptedMmio(Rng(), version=1)
    bare = transport(scripted)  # type: ignore[arg-type]
    with pytest.raises(QueueError, match="out of the legacy interface"):
        bare.enable_queue(0, 8, address, address + 128, address + 4096)
    assert not scripted.writes("mmio", mmio.QUEUE_PFN)


@pytest.mark.spec("MMIO-L03")
def test_a_legacy_queue_that_is_live_is_not_touched():
    scripted = ScriptedMmio(Rng(), version=1, enabled_before=True)
    bare = transport(scripted)  # type: ignore[arg-type]
    assert bare.queue_layout(0).size_max == 0
    with pytest.raises(QueueError, match="already in use"):
        bare.enable_queue(0, 8, 0x1000, 0x1080, 0x2000)
    assert not scripted.writes("mmio", mmio.QUEUE_PFN)
    assert not scripted.reads("mmio", mmio.QUEUE_SIZE_MAX)


def test_a_legacy_queue_that_does_not_take_its_frame_is_an_error():
    scripted = ScriptedMmio(Rng(), version=1, never_enables=True)
    with identify(scripted) as device, pytest.raises(QueueError, match="does not take its address"):
        RngDriver(device)
    scripted.assert_left()


def test_scattered_memory_is_refused_with_the_way_to_get_better_one():
    scripted = ScriptedMmio(Rng(), version=1, contiguous_limit=4096)
    with identify(scripted) as device, pytest.raises(MemoryScattered) as caught:
        RngDriver(device)
    assert "nr_hugepages" in (caught.value.remedy or "")
    scripted.assert_left()


@pytest.mark.spec("MMIO-L01", "FEAT-L01")
def test_what_needs_version_1_the_feature_is_refused_on_version_1_the_interface():
    scripted = ScriptedMmio(Rng(), version=1)
    with identify(scripted) as device, pytest.raises(FeatureMissing, match="VERSION_1") as caught:
        device.start(wanted=0, required=f.mask(f.VERSION_1), queues=[QueueSpec(0, "queue 0")])
    assert "legacy interface" in (caught.value.remedy or "")
    scripted.assert_left()


# --- interrupts ---------------------------------------------------------------------------------------------


@pytest.mark.spec("MMIO-25", "MMIO-17", "MMIO-27")
@pytest.mark.parametrize("mode", [LINE, POLLING])
def test_what_was_read_is_acknowledged_and_nothing_else(mode: InterruptMode):
    model = Balloon()
    scripted = ScriptedMmio(model)
    with start(scripted, mode=mode) as device:
        model.set_target(5)
        scripted.interrupt_queue(0, force=True)
        assert device.service()
        assert scripted.reads("mmio", mmio.INTERRUPT_STATUS)[-1] == 3
        assert scripted.writes("mmio", mmio.INTERRUPT_ACK) == [3]
        assert scripted.isr == 0
        assert device.counters.config_changes == 1
        assert not device.service()
        scripted.interrupt_queue(0, force=True)
        assert device.service()
        assert scripted.writes("mmio", mmio.INTERRUPT_ACK) == [3, 1]
    scripted.assert_left()


@pytest.mark.spec("MMIO-16", "MMIO-18")
@pytest.mark.parametrize("mode", [LINE, POLLING])
def test_undefined_causes_are_masked_off(mode: InterruptMode):
    model = Balloon()
    scripted = ScriptedMmio(model, stray_causes=0xFC)
    with start(scripted, mode=mode) as device:
        assert not device.service()
        assert scripted.writes("mmio", mmio.INTERRUPT_ACK) == []
        model.set_target(5)
        assert device.service()
        assert scripted.writes("mmio", mmio.INTERRUPT_ACK) == [2]
    scripted.assert_left()


@pytest.mark.spec("MMIO-17", "MMIO-27")
def test_what_the_device_does_between_reading_and_acknowledging_is_not_lost():
    # The second completion comes right after InterruptStatus was read: the acknowledgement clears its bit,
    # and the ring, which is read after that, has it.
    scripted = ScriptedMmio(Rng(), auto=False)
    with identify(scripted, interrupts=[LINE]) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "requestq", size=8)])
        queue = device.queues[0]
        block = device.dma.alloc(64)
        for at in (0, 32):
            queue.add((), block.segments(at, 32), at)
        queue.kick()
        scripted.step(0)
        scripted.interrupt_queue(0, force=True)
        acknowledge = scripted._acknowledge

        def late(value: int) -> None:
            scripted.step(0)
            acknowledge(value)

        scripted._acknowledge = late  # type: ignore[method-assign]
        done: list[object] = []

        def ready() -> bool:
            done.extend(completion.cookie for completion in queue.reap())
            return len(done) == 2

        device.wait(ready, timeout=1, what="both")
        assert done == [0, 32]


@pytest.mark.spec("MMIO-26")
def test_one_cause_serves_all_queues():
    scripted = ScriptedMmio(Input())
    with start(scripted) as device:
        block = device.dma.alloc(16)
        device.queues[1].add(block.segments(0, 8), (), "led")
        device.queues[1].kick()
        found: list[object] = []

        def ready() -> bool:
            for queue in device.queues.values():
                found.extend(completion.cookie for completion in queue.reap())
            return bool(found)

        device.wait(ready, timeout=1, what="the LED")
        assert found == ["led"]
        assert device.counters.interrupts_taken == 1
        assert device.counters.missed_interrupts == 0


def test_there_are_no_messages_and_the_line_is_the_best():
    scripted = ScriptedMmio(Rng())
    with identify(scripted) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
        assert device.transport.interrupt_mode is LINE


def test_without_a_line_it_is_polled():
    scripted = ScriptedMmio(Rng(), line=False)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert rng.read(4) == bytes(range(4))
        assert device.transport.interrupt_mode is POLLING
        assert device.counters.interrupts_taken == 0


@pytest.mark.parametrize("modes", [[InterruptMode.PER_QUEUE], [InterruptMode.SHARED, LINE]])
def test_rungs_that_are_not_there_are_named(modes: list[InterruptMode]):
    scripted = ScriptedMmio(Rng(), line=False)
    with identify(scripted, interrupts=modes) as device, pytest.raises(NotSupported) as caught:
        RngDriver(device)
    assert all(mode.value in str(caught.value.seen) for mode in modes)
    scripted.assert_left()


# --- generation, removal, faults ----------------------------------------------------------------------------


def test_a_generation_that_changes_is_read_again():
    scripted = ScriptedMmio(Balloon(), generation_bumps=2)
    with start(scripted) as device:
        assert device.read_config(balloon.CONFIG[0]) == (0,)
    assert len(scripted.reads("mmio", mmio.CONFIG_GENERATION)) >= 4


@pytest.mark.fault(51)
def test_a_generation_that_never_stands_still_is_an_error():
    scripted = ScriptedMmio(Balloon(), generation_bumps=-1)
    with start(scripted) as device, pytest.raises(ConfigUnstable):
        device.read_config(balloon.CONFIG[0])


def test_a_window_that_answers_no_more_is_gone():
    scripted = ScriptedMmio(Rng(), auto=False)
    device = identify(scripted, interrupts=[POLLING])
    rng = RngDriver(device)
    scripted.vanish()
    with pytest.raises(DeviceGone):
        rng.read(8)
    device.close()


@pytest.mark.parametrize("mode", [LINE, POLLING])
def test_an_interrupt_status_of_ones_is_nobodys(mode: InterruptMode):
    scripted = ScriptedMmio(Rng())
    with start(scripted, mode=mode) as device:
        scripted.interrupt_queue(0, force=True)
        scripted.vanish()
        before = len(scripted.log)
        with pytest.raises(DeviceGone, match="does not respond"):
            device.transport.causes()
        assert not [access for access in scripted.log[before:] if access.op == "write"]


def test_removal_is_told():
    scripted = ScriptedMmio(Rng(), auto=False)
    device = identify(scripted)
    rng = RngDriver(device)
    scripted.ask_back()
    with pytest.raises(DeviceAbsent):
        rng.read(8)
    device.close()
    scripted.assert_left()


def test_every_access_and_kick_is_traced():
    lines: list[str] = []
    scripted = ScriptedMmio(Rng())
    with identify(scripted, trace=lines.append, interrupts=[POLLING]) as device, RngDriver(device) as rng:
        rng.read(4)
    assert lines[0] == 'mmio+0x00 MagicValue read32 -> 0x74726976 ("virt")'
    assert "kick queue 0: QueueNotify+0x50 write32 <- 0x0" in lines
    assert sum("mmio+0x50" in line for line in lines) == 0  # told as a kick, once
    accesses = [access for access in scripted.log if access.region == "mmio"]
    assert len(lines) == len(accesses)


def test_the_back_end_is_told_before_the_device_may_use_memory():
    scripted = ScriptedMmio(Rng())
    with identify(scripted) as device:
        for _ in range(2):
            RngDriver(device).close()
    assert scripted.calls("guard") == [mmio.STATUS, mmio.STATUS]
    scripted.assert_left()


class Noise:
    """A window whose registers read anything; it checks nothing but the widths."""

    def __init__(self, words: list[int]) -> None:
        self.words = itertools.cycle(words)
        self.length = mmio.WINDOW_SIZE
        self.identity = {mmio.MAGIC_VALUE_REG: mmio.MAGIC, mmio.VERSION_REG: 2, mmio.DEVICE_ID: 4}

    def read8(self, offset: int) -> int:
        assert offset >= mmio.CONFIG
        return next(self.words) & 0xFF

    def read16(self, offset: int) -> int:
        assert offset >= mmio.CONFIG
        return next(self.words) & 0xFFFF

    def read32(self, offset: int) -> int:
        return self.identity[offset] if offset in self.identity else next(self.words)

    def write32(self, offset: int, value: int) -> None:
        assert 0 <= value < 1 << 32

    write8 = write16 = write32

    def close(self) -> None: ...


words = st.sampled_from([0, 1, 2, 3, 8, 0xB, 0xF, 0x40, 256, 0xFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)


@pytest.mark.fault(11)
@given(version=st.sampled_from([1, 2]), heard=st.lists(words, min_size=1, max_size=40))
@settings(max_examples=60)
def test_whatever_the_registers_read_only_typed_errors_come_of_it(version: int, heard: list[int]):
    scripted = ScriptedMmio(Rng(), version=version)
    scripted.registers.close()
    noise = Noise(heard)
    noise.identity[mmio.VERSION_REG] = version
    scripted.registers = noise  # type: ignore[assignment]
    device = opening.identify(ADDRESS, scripted, timeout=0.005)  # type: ignore[arg-type]
    try:
        with RngDriver(device) as rng:
            rng.read(8, timeout=0.005)
    except UvirtioError:
        pass
    device.close()
    assert scripted.closed


@pytest.mark.parametrize("fault", ["refuse_features", "silent", "reset_reads", "needs_reset_at"])
def test_faults_end_in_typed_errors_and_in_order(fault: str):
    value: object = {"reset_reads": -1, "needs_reset_at": "kick"}.get(fault, True)
    scripted = ScriptedMmio(Rng(), **{fault: value})
    scripted.set_status_now(1)  # another driver was here before
    device = opening.identify(ADDRESS, scripted, timeout=0.2)  # type: ignore[arg-type]
    with pytest.raises(UvirtioError), RngDriver(device) as rng:
        rng.read(8, timeout=0.2)
    device.close()
    scripted.assert_obedient()
    assert scripted.closed

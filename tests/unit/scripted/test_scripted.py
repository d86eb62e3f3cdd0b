"""The scripted device itself: it behaves like a device, sees what a driver does wrong, and lies only when told."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.polling import readable
from uvirtio.errors import Closed
from uvirtio.interfaces.backend import PciFunction
from uvirtio.interfaces.memory import DmaSpace, Registers
from uvirtio.memory.fence import full_fence
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.memory import CANARY, PAGE, Memory, ScriptedDma, StrayAccess
from uvirtio.scripted.pci import BAR, COMMON_AT, DEVICE_AT, ISR_AT, NOTIFY_AT, ScriptedDevice
from uvirtio.scripted.ring import DeviceRing, DriverViolation, need_event
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.split import SplitQueue, make_split

VERSION_1 = f.mask(f.VERSION_1)


def common(device: ScriptedDevice) -> Registers:
    return device.registers(BAR, COMMON_AT, pci.COMMON_CFG_MIN_SIZE)


def negotiate(device: ScriptedDevice, features: int = VERSION_1) -> Registers:
    registers = common(device)
    for status in (0, 1, 3):
        registers.write8(pci.COMMON_DEVICE_STATUS, status)
    for word in range(4):
        registers.write32(pci.COMMON_DRIVER_FEATURE_SELECT, word)
        registers.write32(pci.COMMON_DRIVER_FEATURE, features >> 32 * word & 0xFFFFFFFF)
    registers.write8(pci.COMMON_DEVICE_STATUS, 0xB)
    return registers


def bring_up(device: ScriptedDevice, features: int = VERSION_1, vector: int | None = None) -> SplitQueue:
    """By hand, register by register: queue 0 with 8 entries."""
    registers = negotiate(device, features)
    queue = make_split(
        0,
        8,
        device.dma(bool(features & f.mask(f.ACCESS_PLATFORM))),
        RingOptions(
            fence=full_fence(),
            indirect=bool(features & f.mask(f.INDIRECT_DESC)),
            event_idx=bool(features & f.mask(f.EVENT_IDX)),
        ),
    )
    registers.write16(pci.COMMON_QUEUE_SELECT, 0)
    registers.write16(pci.COMMON_QUEUE_SIZE, 8)
    if vector is not None:
        registers.write16(pci.COMMON_QUEUE_MSIX_VECTOR, vector)
    for offset, address in zip(
        (pci.COMMON_QUEUE_DESC, pci.COMMON_QUEUE_DRIVER, pci.COMMON_QUEUE_DEVICE), queue.addresses, strict=True
    ):
        registers.write32(offset, address & 0xFFFFFFFF)
        registers.write32(offset + 4, address >> 32)
    registers.write16(pci.COMMON_QUEUE_ENABLE, 1)
    device.bus_master(True)
    registers.write8(pci.COMMON_DEVICE_STATUS, 0xF)
    return queue


def kick(device: ScriptedDevice, value: int = 0) -> None:
    device.registers(BAR, NOTIFY_AT, 2).write16(0, value)


def test_it_is_what_the_seams_ask_for():
    function: PciFunction = ScriptedDevice(Rng())
    space: DmaSpace = function.dma(False)
    assert space.alloc(1).size == PAGE


def test_a_request_goes_through_it():
    device = ScriptedDevice(Rng())
    queue = bring_up(device)
    buffer = device.spaces[0].alloc(100)
    queue.add((), buffer.segments(0, 100), "cookie")
    assert queue.publish()
    kick(device)
    [done] = queue.reap()
    assert (done.cookie, done.written) == ("cookie", 100)
    assert bytes(buffer.view[:100]) == bytes(range(100))
    device.assert_obedient()


def test_single_stepped_it_waits():
    device = ScriptedDevice(Rng(), auto=False)
    queue = bring_up(device)
    buffer = device.spaces[0].alloc(100)
    for _ in range(2):
        queue.add((), buffer.segments(0, 10), None)
    queue.publish()
    kick(device)
    assert device.kicked == [0] and not queue.pending()
    assert device.step(0) and len(queue.reap()) == 1
    device.run()
    assert len(queue.reap()) == 1 and not device.step(0)


def test_msix_events_are_real_file_descriptors():
    device = ScriptedDevice(Rng())
    events = device.enable_msix(2)
    queue = bring_up(device, vector=1)
    buffer = device.spaces[0].alloc(10)
    queue.add((), buffer.segments(0, 10), None)
    queue.publish()
    kick(device)
    assert [readable(event, 0) for event in events] == [event is events[1] for event in events]
    assert events[1].take() and not events[1].take()
    assert device.isr == 0


def test_the_line_stays_down_until_rearmed_and_isr_clears_on_read():
    device = ScriptedDevice(Balloon())
    line = device.enable_intx()
    bring_up(device)
    device.model.set_target(1)
    assert line.take()
    device.model.set_target(2)
    assert not line.take(), "masked"
    line.rearm()
    assert line.take(), "the level was still up"
    isr = device.registers(BAR, ISR_AT, 1)
    assert (isr.read8(0), isr.read8(0)) == (2, 0)
    line.rearm()
    assert not line.take()


def test_config_generation_moves_with_the_configuration():
    device = ScriptedDevice(Balloon())
    registers = common(device)
    before = registers.read8(pci.COMMON_CONFIG_GENERATION)
    device.model.set_target(77)
    assert registers.read8(pci.COMMON_CONFIG_GENERATION) != before
    assert device.registers(BAR, DEVICE_AT, 16).read32(0) == 77


def test_the_log_has_every_access_with_its_width():
    device = ScriptedDevice(Rng())
    common(device).write8(pci.COMMON_DEVICE_STATUS, 0)
    assert device.log[-1] == ("write", "common", pci.COMMON_DEVICE_STATUS, 1, 0)
    assert device.config.read16(0) == pci.VIRTIO_VENDOR
    assert device.log[-1] == ("read", "config", 0, 2, pci.VIRTIO_VENDOR)


@pytest.mark.parametrize("reads", [0, 1, 5])
def test_reset_takes_as_many_reads_as_told(reads: int):
    device = ScriptedDevice(Rng(), reset_reads=reads)
    registers = negotiate(ScriptedDevice(Rng()))
    registers = common(device)
    device._status = 0xF
    registers.write8(pci.COMMON_DEVICE_STATUS, 0)
    seen = [registers.read8(pci.COMMON_DEVICE_STATUS) for _ in range(reads + 1)]
    assert seen == [0xF] * reads + [0]


def test_faults_of_the_registers():
    registers = negotiate(ScriptedDevice(Rng(), refuse_features=True))
    assert registers.read8(pci.COMMON_DEVICE_STATUS) == 0x3
    registers = common(ScriptedDevice(Rng(), queue_size={0: 0}, num_queues=9, generation_bumps=-1))
    assert registers.read16(pci.COMMON_QUEUE_SIZE) == 0
    assert registers.read16(pci.COMMON_NUM_QUEUES) == 9
    assert len({registers.read8(pci.COMMON_CONFIG_GENERATION) for _ in range(9)}) == 9
    device = ScriptedDevice(Rng(), no_vectors={1})
    device.enable_msix(2)
    registers = common(device)
    for vector, back in ((0, 0), (1, pci.NO_VECTOR)):
        registers.write16(pci.COMMON_QUEUE_MSIX_VECTOR, vector)
        assert registers.read16(pci.COMMON_QUEUE_MSIX_VECTOR) == back
    device = ScriptedDevice(Rng())
    device.vanish()
    assert common(device).read32(0) == 0xFFFFFFFF and device.config.read16(0) == 0xFFFF


def _write(offset: int, width: int, value: int) -> Callable[[ScriptedDevice], None]:
    return lambda device: getattr(common(device), f"write{8 * width}")(offset, value)


def _status_back(device: ScriptedDevice) -> None:
    negotiate(device).write8(pci.COMMON_DEVICE_STATUS, 0x3)


def _feature_not_offered(device: ScriptedDevice) -> None:
    negotiate(device, VERSION_1 | 1)


def _late_feature(device: ScriptedDevice) -> None:
    negotiate(device).write32(pci.COMMON_DRIVER_FEATURE, 0)


def _isr_with_msix(device: ScriptedDevice) -> None:
    device.enable_msix(1)
    device.registers(BAR, ISR_AT, 1).read8(0)


def _early_kick(device: ScriptedDevice) -> None:
    kick(device)


def _wrong_doorbell(device: ScriptedDevice) -> None:
    bring_up(device)
    kick(device, 1)


def _free_while_running(device: ScriptedDevice) -> None:
    bring_up(device).close()


@pytest.mark.parametrize(
    ("requirement", "deed"),
    [
        ("PCI-COM-01", _write(pci.COMMON_NUM_QUEUES, 2, 1)),
        ("PCI-COM-03", _write(pci.COMMON_QUEUE_SIZE, 2, 3)),
        ("PCI-COM-06", _write(pci.COMMON_QUEUE_ENABLE, 2, 0)),
        ("PCI-ACC", _write(pci.COMMON_DEVICE_STATUS, 2, 1)),
        ("PCI-CAP-07", lambda device: device.config.write32(0x40, 0)),
        ("PCI-MSX-02", _write(pci.COMMON_CONFIG_MSIX_VECTOR, 2, 99)),
        ("PCI-COM-10", lambda device: device.registers(BAR, COMMON_AT, 0x40).read16(0x38)),
        ("STAT-02", _status_back),
        ("FEAT-01", _feature_not_offered),
        ("INIT-03", _late_feature),
        ("PCI-ISR-01", _isr_with_msix),
        ("INIT-07", _early_kick),
        ("PCI-NTF-03", _wrong_doorbell),
        ("LEAVE", _free_while_running),
        ("CFG-04", lambda device: device.registers(BAR, DEVICE_AT, 4).read32(0)),
    ],
)
def test_it_sees_what_a_driver_does_wrong(requirement: str, deed: Callable[[ScriptedDevice], None]):
    device = ScriptedDevice(Rng())
    deed(device)
    assert any(violation.startswith(requirement) for violation in device.violations), device.violations
    with pytest.raises(AssertionError):
        device.assert_obedient()


def test_closed_means_closed():
    device = ScriptedDevice(Rng())
    registers = common(device)
    registers.close()
    with pytest.raises(Closed):
        registers.read8(0)
    device.close()
    device.close()
    with pytest.raises(Closed):
        device.enable_msix(1)


def test_leaving_half_way_is_noticed():
    device = ScriptedDevice(Rng())
    bring_up(device)
    device.close()
    with pytest.raises(AssertionError, match="status"):
        device.assert_left()


# --- memory -------------------------------------------------------------------------------------------------


def test_the_device_reaches_what_is_mapped_and_nothing_else():
    memory = Memory()
    space = ScriptedDma(memory)
    block = space.alloc(PAGE + 1)
    [(address, length)] = block.segments(0, 2 * PAGE)
    memory.write(address + PAGE - 2, b"abcd")
    assert bytes(block.view[PAGE - 2 : PAGE + 2]) == b"abcd" == memory.read(address + PAGE - 2, 4)
    for stray in (address - 1, address + length):
        with pytest.raises(StrayAccess):
            memory.read(stray, 1)
    block.close()
    with pytest.raises(StrayAccess):
        memory.write(address, b"x")


def test_physical_memory_is_scattered_and_pinned_memory_is_unknown_to_the_device():
    space = ScriptedDma(translated=False)
    block = space.alloc(3 * PAGE)
    assert not block.contiguous and [length for _, length in block.segments(0, 3 * PAGE)] == [PAGE] * 3
    assert [address >> 12 for address, _ in block.segments(0, 3 * PAGE)] == block.pfns()
    two = ScriptedDma(translated=False, contiguous_limit=2 * PAGE).alloc(4 * PAGE)
    assert [length for _, length in two.segments(0, 4 * PAGE)] == [2 * PAGE] * 2
    pinned = space.pin(PAGE)
    assert not space.memory.is_mapped(pinned.pfns()[0] << 12, 1)
    before = pinned.pfns()
    pinned.move(0)
    assert pinned.pfns() != before


def test_a_touched_guard_is_noticed():
    memory = Memory()
    block = ScriptedDma(memory).alloc(PAGE)
    memory.assert_clean()
    assert block._map[0] == CANARY
    block._map[PAGE - 1] = 0
    with pytest.raises(StrayAccess):
        memory.assert_clean()
    block._map[PAGE - 1] = CANARY
    block.close()


# --- the ring -----------------------------------------------------------------------------------------------


class Bare:
    """A ring whose driver side is written by hand, so that it can be wrong."""

    def __init__(self, size: int = 4, **kwargs: bool) -> None:
        self.memory = Memory()
        self.block = ScriptedDma(self.memory).alloc(3 * PAGE)
        self.base = self.block.segments(0, 1)[0][0]
        self.buffer = self.base + 2 * PAGE
        self.device = DeviceRing(
            self.memory, size, self.base, self.base + 512, self.base + 1024, check_buffers=True, **kwargs
        )

    def desc(self, index: int, length: int = 8, flags: int = 0, following: int = 0, address: int | None = None):
        entry = struct.pack("<QIHH", self.buffer if address is None else address, length, flags, following)
        self.memory.write(self.base + 16 * index, entry)

    def avail(self, *heads: int, idx: int | None = None, flags: int = 0):
        idx = len(heads) if idx is None else idx
        self.memory.write(self.base + 512, struct.pack(f"<HH{len(heads)}H", flags, idx, *heads))


def _reversed_order(bare: Bare) -> None:
    bare.desc(0, flags=3, following=1)
    bare.desc(1)
    bare.avail(0)


def _loop(bare: Bare) -> None:
    bare.desc(0, flags=1, following=0)
    bare.avail(0)


def _out_of_table(bare: Bare) -> None:
    bare.desc(0, flags=1, following=4)
    bare.avail(0)


def _indirect(bare: Bare) -> None:
    bare.desc(0, 16, flags=4)
    bare.avail(0)


def _unmapped(bare: Bare) -> None:
    bare.desc(0, address=0x1234)
    bare.avail(0)


def _jump(bare: Bare) -> None:
    bare.avail(idx=5)


def _twice(bare: Bare) -> None:
    bare.desc(0)
    bare.avail(0, 0)


def _shared(bare: Bare) -> None:
    bare.desc(0, flags=1, following=2)
    bare.desc(1, flags=1, following=2)
    bare.desc(2)
    bare.avail(0, 1)


def _flags(bare: Bare) -> None:
    bare.avail(flags=2)


@pytest.mark.parametrize(
    ("requirement", "deed"),
    [
        ("SPL-02", _reversed_order),
        ("SPL-04", _loop),
        ("SPL-04", _out_of_table),
        ("SPL-04", _unmapped),
        ("SPL-07", _indirect),
        ("SPL-12", _jump),
        ("SPL-12", _twice),
        ("SPL-12", _shared),
        ("SPL-13", _flags),
    ],
)
def test_the_ring_sees_what_a_driver_does_wrong(requirement: str, deed: Callable[[Bare], None]):
    bare = Bare()
    deed(bare)
    with pytest.raises(DriverViolation, match=requirement):
        bare.device.pop_all()


@pytest.mark.parametrize(
    ("requirement", "flags", "table"),
    [("SPL-08", 4, [4]), ("SPL-10", 5, [0]), ("SPL-09", 4, [0] * 5), ("SPL-04", 4, [1])],
)
def test_the_ring_sees_what_is_wrong_with_a_table(requirement: str, flags: int, table: list[int]):
    bare = Bare(indirect=True)
    bare.desc(0, 16 * len(table), flags, address=bare.base + PAGE)
    for index, entry_flags in enumerate(table):
        entry = struct.pack("<QIHH", bare.buffer, 16, entry_flags, index + 1)
        bare.memory.write(bare.base + PAGE + 16 * index, entry)
    bare.avail(0)
    with pytest.raises(DriverViolation, match=requirement):
        bare.device.pop()


def test_flags_stay_zero_with_event_idx():
    bare = Bare(event_idx=True)
    bare.avail(flags=1)
    bare.device.pop()
    assert [what for what in bare.device.noted if what.startswith("SPL-14")], "noted, and of no effect (2.7.7.2)"


# --- the models ---------------------------------------------------------------------------------------------


def test_the_input_model_answers_queries_and_keeps_buffers():
    device = ScriptedDevice(Input())
    queue = bring_up(device)
    window = device.registers(BAR, DEVICE_AT, 136)
    window.write8(0, 1)
    window.write8(1, 0)
    size = window.read8(2)
    assert bytes(window.read8(8 + at) for at in range(size)) == b"scripted keyboard"
    buffer = device.spaces[0].alloc(64)
    for slot in range(2):
        queue.add((), buffer.segments(8 * slot, 8), slot)
    queue.publish()
    kick(device)
    assert not queue.pending() and len(device.model.buffers) == 2
    assert device.model.inject((1, 30, 1), (0, 0, 0), (1, 30, 0)) == 2
    assert [done.cookie for done in queue.reap()] == [0, 1]
    assert bytes(buffer.view[:8]) == struct.pack("<HHI", 1, 30, 1)


def test_the_balloon_model_knows_its_frames():
    device = ScriptedDevice(Balloon())
    queue = bring_up(device)
    space = device.spaces[0]
    pages, buffer = space.pin(2 * PAGE), space.alloc(PAGE)
    buffer.view[:12] = struct.pack("<3I", *pages.pfns(), 0xABCDE)
    queue.add(buffer.segments(0, 12), (), None)
    queue.publish()
    kick(device)
    assert device.model.frames >= set(pages.pfns())
    assert any("0xabcde" in violation for violation in device.violations)


_INDEX = st.integers(min_value=0, max_value=0xFFFF)


@given(event=_INDEX, old=_INDEX, count=st.integers(min_value=0, max_value=32768))
def test_need_event_is_whether_the_event_was_passed(event: int, old: int, count: int):
    # By the definition: one of the entries old, old + 1, ... new - 1 (modulo 65536) was put at index ``event``.
    passed = (event - old) % 65536 < count
    assert need_event(event, (old + count) % 65536, old) is passed

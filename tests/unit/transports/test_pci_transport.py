"""Virtio over PCI (4.1) against the scripted device: every register access, the ladder, and what can be wrong."""

from __future__ import annotations

import os
import struct

import pytest

from uvirtio import opening
from uvirtio.device import Device, QueueSpec
from uvirtio.errors import (
    CapabilityError,
    ConfigError,
    DeviceAbsent,
    DeviceGone,
    NotSupported,
    NotVirtio,
    QueueError,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.faults import Access
from uvirtio.scripted.input import Input
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import BAR, COMMON_AT, DEVICE_AT, ISR_AT, NOTIFY_AT, ScriptedDevice, virtio_capability
from uvirtio.scripted.rng import Rng
from uvirtio.spec import balloon, pci
from uvirtio.spec import features as f
from uvirtio.transports.pci import PciModern

ADDRESS = "0000:00:04.0"
MODES = list(InterruptMode)


def identify(scripted: ScriptedDevice, **how: object) -> Device:
    return opening.identify(ADDRESS, scripted, timeout=1.0, **how)  # type: ignore[arg-type]


def start(scripted: ScriptedDevice, *, modes: list[InterruptMode] = MODES, count: int | None = None) -> Device:
    """A device at DRIVER_OK with its first ``count`` queues (all of them by default)."""
    device = identify(scripted, interrupts=modes)
    count = len(scripted.model.queue_sizes) if count is None else count
    device.start(wanted=0, queues=[QueueSpec(index, f"queue {index}", size=8) for index in range(count)])
    return device


def kick(device: Device, index: int) -> None:
    """Publish one buffer of 8 bytes on a queue."""
    block = device.dma.alloc(8)
    queue = device.queues[index]
    if device.device_id == balloon.TYPE:
        block.view[:4] = struct.pack("<I", block.pfns()[0])
        queue.add(block.segments(0, 4), (), None)
    else:
        queue.add((), block.segments(0, 8), None)
    queue.kick()


# --- registers ----------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "PCI-ACC-01", "PCI-ACC-02", "PCI-ACC-03", "PCI-COM-01", "PCI-COM-03", "PCI-COM-04", "PCI-COM-06", "PCI-CAP-07"
)
@pytest.mark.parametrize("model", [Rng, Balloon, Input])
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_life_breaks_no_rule_of_the_registers(model: type[Model], mode: InterruptMode):
    scripted = ScriptedDevice(model())
    with start(scripted, modes=[mode]) as device:
        kick(device, 0)
        device.service()
    scripted.assert_left()  # the scripted device checked each access: width, read-only fields, order
    assert {access.value for access in scripted.log if _is(access, pci.COMMON_QUEUE_ENABLE, "write")} == {1}
    assert not scripted.writes("config")


def _is(access: Access, offset: int, op: str) -> bool:
    return access.op == op and access.region == "common" and access.offset == offset


@pytest.mark.spec("PCI-ACC-01", "PCI-ACC-02", "PCI-ACC-03")
def test_each_field_has_its_own_width():
    scripted = ScriptedDevice(Balloon())
    with start(scripted):
        pass
    widths = {field.offset: min(field.width, 4) for field in pci.COMMON_CFG}
    widths |= {field.offset + 4: 4 for field in pci.COMMON_CFG if field.width == 8}
    used = {(access.offset, access.width) for access in scripted.log if access.region == "common"}
    assert used and all(widths[offset] == width for offset, width in used)


@pytest.mark.spec("PCI-COM-04")
def test_a_queue_is_enabled_last_of_all():
    scripted = ScriptedDevice(Balloon())
    with start(scripted):
        pass
    selected, enabled = None, set()
    for access in scripted.log:
        if _is(access, pci.COMMON_QUEUE_SELECT, "write"):
            selected = access.value
        elif _is(access, pci.COMMON_QUEUE_ENABLE, "write"):
            enabled.add(selected)
        elif access.op == "write" and access.region == "common" and access.offset > pci.COMMON_QUEUE_SELECT:
            assert selected not in enabled
    assert enabled == {0, 1}


@pytest.mark.spec("PCI-COM-11")
def test_selectors_come_before_what_they_select():
    scripted = ScriptedDevice(Balloon())
    with start(scripted):
        pass
    log = [access for access in scripted.log if access.region == "common"]
    for before, field in ((0x00, 0x04), (0x08, 0x0C)):  # device and driver feature words
        pairs = [(log[at - 1], access) for at, access in enumerate(log) if access.offset == field]
        assert pairs and all(select.op == "write" and select.offset == before for select, _ in pairs)
    for words in (pci.COMMON_DEVICE_FEATURE_SELECT, pci.COMMON_DRIVER_FEATURE_SELECT):
        assert set(scripted.writes("common", words)) == {0, 1, 2, 3}
    first = next(at for at, access in enumerate(log) if access.offset > pci.COMMON_QUEUE_SELECT)
    assert any(_is(access, pci.COMMON_QUEUE_SELECT, "write") for access in log[:first])


def test_features_are_four_words_both_ways():
    offered = f.mask(f.VERSION_1) | 1 << 127 | 1 << 95 | 1 << 64 | 3
    scripted = ScriptedDevice(Rng(), features=offered)
    transport = PciModern(scripted)
    assert transport.device_features() == offered
    transport.set_driver_features(offered)
    assert scripted.driver_features == offered


@pytest.mark.spec("PCI-COM-10")
def test_nothing_is_read_behind_the_common_configuration_that_is_there():
    scripted = ScriptedDevice(Rng(), common_length=pci.COMMON_CFG_MIN_SIZE)
    with start(scripted):
        pass
    scripted.assert_left()
    assert max(access.offset + access.width for access in scripted.log if access.region == "common") <= 0x38


@pytest.mark.spec("PCI-CAP-05", "PCI-CAP-06")
def test_no_more_is_mapped_than_is_used():
    sizes: list[tuple[int, int]] = []

    class Measured(ScriptedDevice):
        def registers(self, bar: int, offset: int, length: int):
            sizes.append((offset, length))
            return super().registers(bar, offset, length)

    big = 0x00FF_0000
    caps = [
        virtio_capability(pci.CfgType.COMMON, BAR, COMMON_AT, big),
        virtio_capability(pci.CfgType.ISR, BAR, ISR_AT, big),
        virtio_capability(pci.CfgType.NOTIFY, BAR, NOTIFY_AT, big, struct.pack("<I", 4)),
    ]
    scripted = Measured(Rng(), capabilities=caps, common_length=pci.COMMON_CFG_SIZE)
    with start(scripted, count=1):
        assert dict(sizes) == {COMMON_AT: pci.COMMON_CFG_SIZE, ISR_AT: 1, NOTIFY_AT: 2}
    scripted.assert_left()


# --- queues -------------------------------------------------------------------------------------------------


@pytest.mark.spec("PCI-COM-09")
def test_a_queue_of_size_zero_is_not_there():
    scripted = ScriptedDevice(Balloon(), queue_size={1: 0})
    with identify(scripted) as device:
        assert device.transport.queue_layout(1).size_max == 0
        assert device.transport.queue_layout(0).size_max == 128
        queues = [QueueSpec(0, "first"), QueueSpec(1, "second", required=False)]
        device.start(wanted=0, queues=queues)
        assert set(device.queues) == {0}
    scripted.assert_left()


def test_a_queue_beyond_the_last_is_not_asked_for():
    scripted = ScriptedDevice(Rng())
    transport = PciModern(scripted)
    assert transport.queue_layout(1).size_max == 0
    assert not scripted.writes("common", pci.COMMON_QUEUE_SELECT)


@pytest.mark.fault(12, 14, 16)
@pytest.mark.parametrize(
    ("faults", "field"),
    [
        ({"queue_size_stuck": True}, "queue_size"),
        ({"address_mask": (1 << 32) - 1, "access_platform": True}, "queue_desc"),
        ({"address_mask": (1 << 64) - 1 - 0x1000}, "queue_"),
        ({"never_enables": True}, "queue_enable"),
        ({"enabled_before": True}, "already enabled"),
        ({"num_queues": 0}, "has no queue 0"),
        ({"queue_size": {0: 0}}, "has no queue 0"),
        ({"queue_size": {0: 48}}, "no power of two"),
        ({"queue_size": {0: 0xFFFE}}, "no power of two"),
    ],
)
def test_a_queue_that_does_not_read_back_is_refused(faults: dict[str, object], field: str):
    scripted = ScriptedDevice(Rng(), **faults)
    device = identify(scripted)
    with pytest.raises(QueueError, match=field):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])
    assert scripted.writes("common", pci.COMMON_DEVICE_STATUS)[-2:] == [0x8B, 0]  # FAILED, then the reset
    assert not scripted.memory.open_blocks()
    device.close()
    scripted.assert_left()


# --- kicks (4.1.5.2) ----------------------------------------------------------------------------------------


@pytest.mark.fault(9)
@pytest.mark.spec("PCI-NTF-01", "PCI-NTF-03", "PCI-NTF-07", "INIT-07")
@pytest.mark.parametrize("multiplier", [0, 2, 4, 2048])
@pytest.mark.parametrize("offs", [{}, {0: 1, 1: 0}, {0: 0, 1: 0}])
def test_a_kick_is_the_queue_index_in_16_bits_at_its_own_place(multiplier: int, offs: dict[int, int]):
    scripted = ScriptedDevice(Balloon(), multiplier=multiplier, notify_offs=offs)
    with start(scripted) as device:
        for index in (0, 1):
            scripted.log.clear()
            kick(device, index)
            [made] = [access for access in scripted.log if access.region == "notify"]
            assert (made.op, made.width, made.value) == ("write", 2, index)
    assert not [line for line in scripted.violations if line.startswith(("PCI", "INIT"))]


@pytest.mark.fault(9)
@pytest.mark.spec("PCI-NTF-07")
@pytest.mark.parametrize(
    ("multiplier", "off"),
    [(4096, 1), (2, 0x800), (0xFFFFFFFF, 0xFFFF), (0x80000000, 2), (1, 1), (3, 1), (4, 0xFFFF)],
)
def test_a_doorbell_outside_its_area_is_refused(multiplier: int, off: int):
    scripted = ScriptedDevice(Rng(), multiplier=multiplier, notify_offs={0: off})
    with pytest.raises(QueueError, match="doorbell of queue 0"), identify(scripted) as device:
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    scripted.assert_left()


@pytest.mark.fault(9)
@pytest.mark.spec("PCI-NTF-07")
@pytest.mark.parametrize("multiplier", [4094, 4096])
def test_the_last_doorbell_that_fits(multiplier: int):
    scripted = ScriptedDevice(Rng(), multiplier=multiplier, notify_offs={0: 1 if multiplier == 4094 else 0})
    with start(scripted) as device:
        kick(device, 0)
        assert len(device.queues[0].reap()) == 1
    scripted.assert_left()


# --- the interrupt ladder (4.1.5.1.2) -----------------------------------------------------------------------


@pytest.mark.fault(15)
@pytest.mark.spec("PCI-MSX-01", "PCI-MSX-02", "PCI-MSX-03")
@pytest.mark.parametrize(
    ("how", "mode", "config_vector", "queue_vectors"),
    [
        ({"vectors": 3}, InterruptMode.PER_QUEUE, 0, [1, 2]),
        ({"vectors": 2048}, InterruptMode.PER_QUEUE, 0, [1, 2]),
        ({"vectors": 2}, InterruptMode.SHARED, 0, [1, 1]),
        ({"vectors": 1}, InterruptMode.SHARED, 0, [0, 0]),
        ({"vectors": 3, "no_vectors": {2}}, InterruptMode.SHARED, 0, [1, 1]),
        ({"vectors": 3, "no_vectors": {1}}, InterruptMode.INTX, None, None),
        ({"vectors": 3, "no_vectors": {0}}, InterruptMode.INTX, None, None),
        ({"vectors": 3, "msix_fails": True}, InterruptMode.INTX, None, None),
        ({"vectors": 0}, InterruptMode.INTX, None, None),
        ({"vectors": 0, "intx": False}, InterruptMode.POLLING, None, None),
        ({"vectors": 3, "msix_fails": True, "intx": False}, InterruptMode.POLLING, None, None),
        ({"vectors": 3, "no_vectors": {0}, "intx": False}, InterruptMode.POLLING, None, None),
    ],
)
def test_the_ladder_ends_at_the_first_rung_that_holds(
    how: dict[str, object], mode: InterruptMode, config_vector: int | None, queue_vectors: list[int] | None
):
    scripted = ScriptedDevice(Balloon(), **how)
    with start(scripted) as device:
        assert device.transport.interrupt_mode is mode
        if config_vector is not None:
            assert scripted.config_vector == config_vector
            assert [queue.vector for queue in scripted.queues] == queue_vectors
        else:
            assert not scripted.msix, "MSI-X was left on"
        kick(device, 0)
        assert len(device.queues[0].reap()) == 1
    scripted.assert_left()


@pytest.mark.fault(15)
def test_no_rung_holds():
    scripted = ScriptedDevice(Rng(), vectors=1, msix_fails=True)
    with identify(scripted, interrupts=[InterruptMode.PER_QUEUE, InterruptMode.SHARED]) as device:
        with pytest.raises(NotSupported) as caught:
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
        assert "msix-per-queue: 1 vectors for 1 queues" in caught.value.seen
        assert "msix-shared: MSI-X cannot be turned on" in caught.value.seen
    scripted.assert_left()


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.INTX])
def test_interrupts_that_cannot_be_switched_off_keep_no_event_open(
    monkeypatch: pytest.MonkeyPatch, mode: InterruptMode
):
    scripted = ScriptedDevice(Balloon())
    with start(scripted, modes=[mode]) as device:
        events = list(device.transport.events())
        numbers = [event.fileno() for event in events]

        def fails() -> None:
            raise DeviceGone("it is gone")

        monkeypatch.setattr(scripted, "disable_interrupts", fails)
        with pytest.raises(DeviceGone):
            device.transport.release_queues()
        for number in numbers[: len(numbers) - (scripted.removal is not None)]:
            with pytest.raises(OSError):
                os.fstat(number)
        assert device.transport.interrupt_mode is InterruptMode.POLLING
        monkeypatch.undo()


@pytest.mark.spec("PCI-ISR-01")
@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.SHARED])
def test_with_msix_the_isr_rests(mode: InterruptMode):
    scripted = ScriptedDevice(Balloon())
    with start(scripted, modes=[mode]) as device:
        kick(device, 0)
        scripted.model.set_target(3)
        assert device.service() and device.counters.config_changes == 1
    assert not scripted.reads("isr")


@pytest.mark.spec("PCI-ISR-02", "PCI-CHG-01")
@pytest.mark.parametrize("mode", [InterruptMode.INTX, InterruptMode.POLLING])
@pytest.mark.parametrize(("isr", "queues", "config"), [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1), (0xFF, 1, 1)])
def test_the_isr_is_read_once_and_both_bits_are_used(mode: InterruptMode, isr: int, queues: int, config: int):
    scripted = ScriptedDevice(Balloon())
    with start(scripted, modes=[mode]) as device:
        scripted.log.clear()
        scripted.isr = isr
        if scripted.line is not None:
            scripted.line.fire()
        causes = device.transport.causes()
        assert (causes.queues, causes.config) == (queues, config)
        assert scripted.reads("isr") == [isr]


@pytest.mark.parametrize("mode", [InterruptMode.INTX, InterruptMode.POLLING])
def test_an_isr_of_ones_is_a_device_that_is_gone_where_its_status_is_too(mode: InterruptMode):
    scripted = ScriptedDevice(Balloon())
    with start(scripted, modes=[mode]) as device:
        if scripted.line is not None:
            scripted.line.fire()
        scripted.vanish()
        with pytest.raises(DeviceGone) as caught:
            device.transport.causes()
        assert "the ISR and the status" in str(caught.value.seen)


@pytest.mark.spec("PCI-CHG-01")
@pytest.mark.parametrize("which", ["config", "queue", "both"])
def test_on_the_one_vector_any_interrupt_may_mean_either(which: str):
    scripted = ScriptedDevice(Balloon(), vectors=1)
    with start(scripted) as device:
        if which != "queue":
            scripted.interrupt_config()
        if which != "config":
            scripted.interrupt_queue(0, force=True)
        causes = device.transport.causes()
        assert causes.config and causes.queues


def test_a_line_is_rearmed_after_its_cause_was_read():
    scripted = ScriptedDevice(Balloon())
    with start(scripted, modes=[InterruptMode.INTX]) as device:
        for target in range(1, 4):
            scripted.model.set_target(target)
            assert device.service()
        assert device.counters.config_changes == 3 and not device.service()
        assert scripted.line is not None and scripted.line.fired == 3, "rearmed too early, it fires again"


# --- the device configuration -------------------------------------------------------------------------------


@pytest.mark.spec("PCI-ACC-01", "PCI-ACC-02", "PCI-ACC-03", "CFG-01")
@pytest.mark.parametrize(("width", "made"), [(1, [1]), (2, [2]), (4, [4]), (8, [4, 4])])
def test_configuration_is_accessed_by_width(width: int, made: list[int]):
    model = Model()
    model.device_id, model.config = 3, bytearray(16)
    value = 0x8877665544332211 & (1 << 8 * width) - 1
    scripted = ScriptedDevice(model)
    with start(scripted) as device:
        device.transport.write_config(8, width, value)
        assert device.transport.read_config(8, width) == value
    assert int.from_bytes(model.config[8 : 8 + width], "little") == value
    for op in ("write", "read"):
        assert [access.width for access in scripted.log if access[:2] == (op, "device")] == made


@pytest.mark.spec("CFG-04")
@pytest.mark.parametrize(("offset", "width"), [(8, 4), (7, 2), (4, 8), (8, 1), (5000, 4)])
def test_nothing_is_accessed_behind_the_configuration(offset: int, width: int):
    scripted = ScriptedDevice(Balloon(config_length=8))
    transport = PciModern(scripted)
    with pytest.raises(ConfigError):
        transport.read_config(offset, width)
    with pytest.raises(ConfigError):
        transport.write_config(offset, width, 0)
    assert not [access for access in scripted.log if access.region == "device"]


@pytest.mark.spec("CFG-05")
def test_a_configuration_may_be_larger_than_what_is_known():
    model = Balloon()
    caps = ScriptedDevice(model).usual_capabilities()
    caps[3] = virtio_capability(pci.CfgType.DEVICE, BAR, DEVICE_AT, 0x0FFF_FFFF)
    transport = PciModern(ScriptedDevice(model, capabilities=caps))
    assert transport.read_config(balloon.NUM_PAGES, 4) == 0
    with pytest.raises(ConfigError):
        transport.read_config(0x1FFE, 4)  # behind what is mapped, though not behind what is announced


def test_a_device_without_configuration():
    transport = PciModern(ScriptedDevice(Rng()))
    assert transport.config_length == 0
    with pytest.raises(ConfigError):
        transport.read_config(0, 1)


# --- what is no device --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pci_device", [0x0FFF, 0x1080, 0x10D3, 0x0000])
def test_what_is_not_virtio_is_told_so(pci_device: int):
    scripted = ScriptedDevice(Rng(), pci_device=pci_device)
    with pytest.raises(NotVirtio):
        identify(scripted)
    assert scripted.closed


def test_another_vendor_is_not_virtio():
    scripted = ScriptedDevice(Rng())
    struct.pack_into("<H", scripted.config_space, pci.CFG_VENDOR_ID, 0x8086)
    with pytest.raises(NotVirtio):
        identify(scripted)


@pytest.mark.spec("PCI-LEG-04")
def test_without_capabilities_it_is_a_legacy_device_and_is_left_alone():
    scripted = ScriptedDevice(Rng(), capabilities=[])
    with pytest.raises(CapabilityError) as caught:
        identify(scripted)
    assert "legacy" in caught.value.remedy
    assert scripted.closed and not [access for access in scripted.log if access.op == "write"]


@pytest.mark.parametrize("lost", [pci.CfgType.COMMON, pci.CfgType.ISR, pci.CfgType.NOTIFY])
def test_each_of_the_three_structures_is_needed(lost: pci.CfgType):
    caps = [cap for cap in ScriptedDevice(Rng(), vectors=0).usual_capabilities() if cap[3] != lost]
    scripted = ScriptedDevice(Rng(), capabilities=caps)
    with pytest.raises(CapabilityError, match=lost.name.lower()):
        identify(scripted)
    assert scripted.closed


@pytest.mark.fault(8)
@pytest.mark.parametrize("length", [0x37, 0, 4])
def test_a_common_configuration_that_is_too_short(length: int):
    caps = ScriptedDevice(Rng(), vectors=0).usual_capabilities()
    caps[0] = virtio_capability(pci.CfgType.COMMON, BAR, COMMON_AT, length)
    scripted = ScriptedDevice(Rng(), capabilities=caps)
    with pytest.raises(CapabilityError):
        identify(scripted)
    assert scripted.closed


@pytest.mark.fault(8)
def test_a_common_configuration_of_virtio_1_0_is_long_enough():
    caps = ScriptedDevice(Rng(), vectors=0).usual_capabilities()
    caps[0] = virtio_capability(pci.CfgType.COMMON, BAR, COMMON_AT, 0x38)
    with identify(ScriptedDevice(Rng(), capabilities=caps)) as device:
        assert device.device_id == Rng.device_id


@pytest.mark.fault(10)
def test_all_ones_are_a_device_that_is_gone():
    scripted = ScriptedDevice(Rng())
    scripted.vanish()
    with pytest.raises(DeviceGone):
        identify(scripted)
    assert scripted.closed


def test_a_failure_half_way_leaves_no_window_open():
    scripted = ScriptedDevice(Rng(), num_queues=0xFFFF)
    with pytest.raises(DeviceGone):
        identify(scripted)
    scripted.assert_left()


class VanishesAfter(ScriptedDevice):
    """Surprise removal at the ``countdown``-th access from then on."""

    countdown = -1

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.log = _Counting(self)  # type: ignore[assignment]


class _Counting(list[Access]):
    def __init__(self, device: VanishesAfter) -> None:
        self._device = device

    def append(self, access: Access) -> None:
        super().append(access)
        if access.op != "call" and self._device.countdown > 0:
            self._device.countdown -= 1
            if not self._device.countdown:
                self._device.vanish()


def _accesses_of_a_start() -> int:
    scripted = ScriptedDevice(Balloon())
    device = identify(scripted)
    before = len(scripted.log)
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0"), QueueSpec(1, "queue 1")])
    count = len([access for access in scripted.log[before:] if access.op != "call"])
    device.close()
    return count


@pytest.mark.fault(10)
@pytest.mark.parametrize("at", range(1, _accesses_of_a_start()))
def test_a_device_that_vanishes_at_any_access_of_the_start_is_called_gone(at: int):
    scripted = VanishesAfter(Balloon())
    device = identify(scripted)
    scripted.countdown = at
    with pytest.raises(DeviceAbsent) as caught:
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0"), QueueSpec(1, "queue 1")])
    assert caught.type is DeviceGone
    device.close()
    scripted.assert_left()


def test_released_queues_can_be_made_again():
    scripted = ScriptedDevice(Rng())
    with identify(scripted) as device:
        for _ in range(3):
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])
            kick(device, 0)
            device.stop()
    scripted.assert_left()


@pytest.mark.spec("PCI-VND-01")
def test_vendor_data_changes_nothing_that_is_done():
    usual = ScriptedDevice(Rng()).usual_capabilities()
    vendor = struct.pack("<BBBBHH", pci.CapId.VENDOR, 0, 16, pci.CfgType.VENDOR, 0x1AF4, 0) + b"\xff" * 8

    def life(capabilities: list[bytes]) -> list[Access]:
        scripted = ScriptedDevice(Rng(), capabilities=capabilities)
        with start(scripted) as device:
            kick(device, 0)
        scripted.assert_left()
        # Addresses differ from run to run only by what was allocated before, which is the same here.
        return [access for access in scripted.log if access.region != "config"]

    assert life([*usual, vendor]) == life([vendor, *usual]) == life(usual)

"""The legacy PCI interface (4.1.4.10) against a scripted device: its registers, the choice, and its lies."""

from __future__ import annotations

import struct
import sys
from typing import Any, cast

import pytest

from uvirtio import opening
from uvirtio.device import Device, QueueSpec
from uvirtio.diag import diagnose_function
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.base import Driver
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import (
    CapabilityError,
    ConfigError,
    ConfigUnstable,
    DeviceAbsent,
    DeviceGone,
    DeviceTimeout,
    FeatureMissing,
    MemoryScattered,
    Misuse,
    NotSupported,
    NotVirtio,
    QueueError,
    ResetTimeout,
    RingCorruption,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.faults import Access
from uvirtio.scripted.legacy import LEGACY_RING_FEATURES, QEMU_EXTRAS, ScriptedLegacy
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.ring import Chain
from uvirtio.scripted.rng import Rng
from uvirtio.spec import balloon, ids, pci
from uvirtio.spec import features as f
from uvirtio.spec.layout import by_name
from uvirtio.spec.ring import legacy_layout
from uvirtio.spec.status import Status
from uvirtio.transports.pci_legacy import PciLegacy

ADDRESS = "0000:00:04.0"
MODES = list(InterruptMode)
MSIX = (InterruptMode.PER_QUEUE, InterruptMode.SHARED)
CONFIG = by_name(balloon.CONFIG)
DRIVERS: dict[type[Model], type[Driver]] = {Rng: RngDriver, Balloon: BalloonDriver, Disk: Blk}
MORE: dict[type[Model], dict[str, Any]] = {Disk: {"allow_write": True}}
STATS = f.mask(f.Balloon.STATS_VQ)
HINT = f.mask(f.Balloon.FREE_PAGE_HINT)


def identify(scripted: ScriptedDevice, *, timeout: float = 0.5, **how: object) -> Device:
    return opening.identify(ADDRESS, scripted, timeout=timeout, **how)  # type: ignore[arg-type]


def start(scripted: ScriptedDevice, *, size: int = 8, required: int = 0, **how: object) -> Device:
    """A device at DRIVER_OK with its first queue, whose driver would like ``size`` entries."""
    device = identify(scripted, **how)
    device.start(wanted=0, required=required, queues=[QueueSpec(0, "queue 0", size=size)])
    return device


def header(scripted: ScriptedDevice, op: str, offset: int) -> list[Access]:
    return [access for access in scripted.log if access[:3] == (op, "legacy", offset)]


# --- a whole life -------------------------------------------------------------------------------------------


@pytest.mark.spec("INIT-L01", "FEAT-L01", "FEAT-L02", "PCI-LEG-01", "GEN-L01")
@pytest.mark.parametrize("transitional", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", [Rng, Balloon, Disk])
@pytest.mark.parametrize(
    "how", [{"bar_is_io": True}, {"bar_is_io": False}, {"bar_is_io": False, "bar_size": 1 << 14}]
)
def test_a_whole_life_breaks_no_rule(
    model: type[Model], mode: InterruptMode, transitional: bool, how: dict[str, Any]
):
    """The header in I/O ports as the standard has it, and in memory as some clouds do: nothing else differs."""
    scripted = ScriptedLegacy(model(), transitional=transitional, **{"bar_size": 128, **how})
    with identify(scripted, interrupts=[mode], force_legacy=transitional) as device:
        assert device.transport.legacy and device.transport.kind == "pci-legacy"
        for _ in range(2):
            with DRIVERS[model](device, **MORE.get(model, {})) as driver:
                assert not device.offered & f.mask(f.VERSION_1)
                if isinstance(driver, RngDriver):
                    assert driver.read(70) == bytes(range(70))
                    scripted.model.given.clear()  # type: ignore[attr-defined]
                elif isinstance(driver, Blk):
                    driver.write(1, bytes(range(256)) * 2)
                    assert driver.read(1, 1) == bytes(range(256)) * 2 and driver.capacity == 2048
                else:
                    assert isinstance(driver, BalloonDriver)
                    assert driver.inflate(3) == 3
                    driver.deflate(3)
                assert device.transport.interrupt_mode is mode
    scripted.assert_left()
    told = [access.value for access in header(scripted, "write", pci.LEGACY_DEVICE_STATUS)]
    assert told == [0, 1, 3, 7, 0] * 2
    assert {access.region for access in scripted.log if access.op != "call"} <= {"legacy", "kick", "config"}
    assert not scripted.writes("config")


@pytest.mark.spec("PCI-LEG-06", "RSV-L01", "RSV-L02", "FEAT-06")
@pytest.mark.parametrize("any_layout", [True, False])
def test_thirty_two_features_and_not_all_of_them(any_layout: bool):
    offered = LEGACY_RING_FEATURES | QEMU_EXTRAS
    if not any_layout:
        offered &= ~f.mask(f.ANY_LAYOUT)
    scripted = ScriptedLegacy(Balloon(), legacy_features=offered)
    with start(scripted) as device:
        taken = offered & ~QEMU_EXTRAS
        assert device.features == scripted.driver_features == taken
        assert device.has(f.ANY_LAYOUT) is any_layout
        (write,) = header(scripted, "write", pci.LEGACY_DRIVER_FEATURES)
        assert (write.width, write.value) == (4, taken)


@pytest.mark.spec("SPL-L01", "SPL-L02", "PCI-LEG-05")
@pytest.mark.parametrize("wanted", [8, 256, 2048])
@pytest.mark.parametrize("size", [1, 8, 256, 1024, 2048])
def test_the_device_says_how_large_a_queue_is(size: int, wanted: int):
    scripted = ScriptedLegacy(Rng(), queue_size={0: size})
    with start(scripted, size=wanted) as device:
        ring = device.queues[0].ring
        assert ring.size == size
        layout = legacy_layout(size)
        desc, driver, used = ring.addresses
        assert (driver - desc, used - desc, desc % 4096) == (layout.avail, layout.used, 0)
        (write,) = header(scripted, "write", pci.LEGACY_QUEUE_ADDRESS)
        assert write.value == desc // 4096
        assert not header(scripted, "write", pci.LEGACY_QUEUE_SIZE)
    scripted.assert_left()


def test_a_queue_in_no_page_frame_of_32_bits_is_refused():
    scripted, layout = ScriptedLegacy(Rng()), legacy_layout(8)
    with start(scripted) as device:
        transport = cast(PciLegacy, device.transport)

        def frame(desc: int) -> int:
            return transport._frame(0, 8, desc, desc + layout.avail, desc + layout.used)

        assert [frame(4096), frame((1 << 44) - 4096)] == [1, (1 << 32) - 1]
        for beyond in (0, 1 << 44):  # frame 0 takes the queue away
            with pytest.raises(NotSupported, match="out of the legacy interface's range"):
                frame(beyond)
    scripted.assert_left()


def test_a_queue_is_placed_last_of_all():
    """The page frame is what enables: size, address and vectors are looked at before it is written."""
    scripted = ScriptedLegacy(Balloon())
    with identify(scripted) as device, BalloonDriver(device):
        pass
    select, size, place = pci.LEGACY_QUEUE_SELECT, pci.LEGACY_QUEUE_SIZE, pci.LEGACY_QUEUE_ADDRESS
    accesses = [(access.op, access.offset) for access in scripted.log if access.region == "legacy"]
    for at, access in enumerate(accesses):
        if access == ("write", place):
            assert accesses[at - 3 : at] == [("write", select), ("read", size), ("read", place)]
            assert accesses[at + 1] == ("read", place)
    vectors = [at for at, access in enumerate(accesses) if access == ("write", pci.LEGACY_QUEUE_VECTOR)]
    assert vectors and max(vectors) < accesses.index(("write", place))


@pytest.mark.spec("PCI-LEG-02", "PCI-LEG-08", "PCI-LEG-07", "BAL-L01", "CFG-L02")
@pytest.mark.parametrize("mode", MODES)
def test_the_configuration_moves_when_msix_goes_on(mode: InterruptMode):
    scripted = ScriptedLegacy(Balloon())
    scripted.model.config[balloon.NUM_PAGES : balloon.NUM_PAGES + 4] = bytes([0x44, 0x33, 0x22, 0x11])
    at = 24 if mode in MSIX else 20
    with identify(scripted, interrupts=[mode]) as device:
        assert device.read_config(CONFIG["num_pages"]) == (0x11223344,)  # little-endian, legacy or not
        assert [access.offset for access in scripted.log if access.region == "legacy"][-1] == 20
        length = device.transport.config_length
        with BalloonDriver(device):
            scripted.log.clear()
            assert device.read_config(CONFIG["num_pages"]) == (0x11223344,)
            assert {access.offset for access in scripted.log} == {at}
            assert device.transport.config_length == length - (at - 20)
        scripted.log.clear()
        assert device.read_config(CONFIG["num_pages"]) == (0x11223344,)
        assert {access.offset for access in scripted.log} == {20}, "it moved back"
    scripted.assert_left()


@pytest.mark.spec("PCI-LEG-08")
@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_written_where_there_are_any(mode: InterruptMode):
    scripted = ScriptedLegacy(Balloon())
    with identify(scripted, interrupts=[mode]) as device, BalloonDriver(device):
        if mode in MSIX:
            assert scripted.config_vector == 0
            assert [queue.vector for queue in scripted.queues] == ([1, 2] if mode is MSIX[0] else [1, 1])
        else:
            assert not scripted.msix
            assert not [access for access in scripted.log if access.offset == 22 and access.region == "legacy"]
    scripted.assert_left()


@pytest.mark.spec("PCI-LEG-08")
@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ({"no_vectors": {2}}, InterruptMode.SHARED),
        ({"no_vectors": {0}}, InterruptMode.INTX),
        ({"msix_fails": True}, InterruptMode.INTX),
        ({"vectors": 0, "intx": False}, InterruptMode.POLLING),
    ],
)
def test_the_ladder_on_a_legacy_interface(how: dict[str, object], mode: InterruptMode):
    scripted = ScriptedLegacy(Balloon(), **how)
    with identify(scripted) as device, BalloonDriver(device) as driver:
        assert device.transport.interrupt_mode is mode
        assert driver.inflate(2) == 2
        scripted.model.set_target(7)  # type: ignore[attr-defined]
        device.wait(lambda: device.counters.config_changes > 0, timeout=2.0, what="a configuration change")
    scripted.assert_left()


# --- which interface (4.1.5.1.1.1) ----------------------------------------------------------------------------


@pytest.mark.spec("PCI-LEG-03", "FEAT-L01")
def test_the_modern_interface_is_preferred():
    scripted = ScriptedLegacy(Rng(), transitional=True)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert device.transport.kind == "pci-modern" and not device.transport.legacy
        assert device.has(f.VERSION_1) and not device.has(f.ANY_LAYOUT)
        assert len(rng.read(5)) == 5
    assert not scripted.legacy_spoken
    scripted.assert_left()


@pytest.mark.spec("PCI-LEG-03")
@pytest.mark.parametrize("force", [False, True])
def test_without_virtio_capabilities_it_is_a_legacy_device(force: bool):
    vendor_data = struct.pack("<BBBBBBHII", pci.CapId.VENDOR, 0, 16, pci.CfgType.PCI_CFG, 0, 0, 0, 0, 0)
    for capabilities in ([], [struct.pack("<BBHII", pci.CapId.MSIX, 0, 2, 1, 0x801)], [vendor_data]):
        scripted = ScriptedLegacy(Rng(), capabilities=capabilities)
        with identify(scripted, force_legacy=force) as device:
            assert device.transport.legacy and device.type == "rng"


def test_a_broken_modern_interface_is_told_and_can_be_gone_round():
    """One structure is there and two are not: that is no legacy device, so it is not silently taken for one."""
    scripted = ScriptedLegacy(Rng(), transitional=True)
    good = scripted.usual_capabilities()
    with pytest.raises(CapabilityError):
        identify(ScriptedLegacy(Rng(), capabilities=good[:2]))
    with identify(ScriptedLegacy(Rng(), capabilities=good[:2]), force_legacy=True) as device:
        assert device.transport.legacy


@pytest.mark.spec("PCI-LEG-04")
def test_a_modern_device_has_no_legacy_interface():
    scripted = ScriptedDevice(Rng())
    with pytest.raises(NotSupported, match="no legacy interface") as caught:
        identify(scripted, force_legacy=True)
    assert "--force-legacy" in str(caught.value.remedy)
    assert scripted.closed and not [access for access in scripted.log if access.op == "write"]


@pytest.mark.parametrize(
    ("how", "error", "seen"),
    [
        ({"bar_size": 0}, NotSupported, "no BAR 0"),
        ({"bar_size": 16}, CapabilityError, "16 bytes"),
        ({"pci_device": 0x1080}, NotVirtio, "1af4:1080"),
        ({"pci_device": 0x1010, "subsystem": 0}, NotVirtio, "1af4:1010"),
    ],
)
def test_what_cannot_be_driven_is_left_alone(how: dict[str, object], error: type[Exception], seen: str):
    scripted = ScriptedLegacy(Rng(), **how)  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        identify(scripted, force_legacy=True)
    assert seen in str(caught.value.seen)  # type: ignore[attr-defined]
    assert scripted.closed and not [access for access in scripted.log if access.op == "write"]


@pytest.mark.parametrize("how", [{"bar_size": 0}, {"status_or": 0xFF}])
def test_a_legacy_device_on_a_machine_without_ports_says_what_to_do(how: dict[str, int]):
    """No BAR, or one that a bridge does not forward: the configuration answers, the ports read all ones."""
    with pytest.raises(NotSupported) as caught:
        identify(ScriptedLegacy(Rng(), **how))  # type: ignore[arg-type]
    assert "root bus" in str(caught.value.remedy) and "disable-modern=off" in str(caught.value.remedy)


@pytest.mark.parametrize("force", [False, True])
def test_a_memory_bar_0_is_told_as_what_it_is(force: bool):
    scripted = ScriptedLegacy(Rng(), bar_is_io=False, bar_size=4096)
    report = diagnose_function(ADDRESS, lambda: (ADDRESS, scripted), timeout=0.5, force_legacy=force)
    (found,) = [step for step in report.steps if step.name == "capabilities"]
    assert report.verdict == "warn" and found.verdict == "warn"
    assert "legacy interface: memory BAR 0, 4096 bytes" in found.detail and "BAR 0 is memory" in found.hint
    scripted.assert_left()


def test_a_memory_bar_0_that_does_not_answer_has_a_remedy_that_fits():
    with pytest.raises(NotSupported, match="it has no memory") as caught:
        identify(ScriptedLegacy(Rng(), bar_is_io=False, status_or=0xFF))
    assert "lspci -vv" in str(caught.value.remedy) and "ports" not in str(caught.value.remedy)


def test_a_memory_bar_0_of_the_modern_interface_is_no_legacy_header():
    """A status that is written to offset 18 would end up in the common configuration."""
    capability = struct.pack("<BBBBBBHII", pci.CapId.VENDOR, 0, 16, pci.CfgType.COMMON, 0, 0, 0, 0, 0x38)
    scripted = ScriptedLegacy(Rng(), capabilities=[capability], bar_is_io=False, bar_size=4096)
    with pytest.raises(NotSupported, match="BAR 0 is of the modern one") as caught:
        identify(scripted, force_legacy=True)
    assert "--force-legacy" in str(caught.value.remedy)
    assert scripted.closed and not [access for access in scripted.log if access.op == "write"]


def test_the_subsystem_id_tells_a_type_that_the_table_has_not():
    with identify(ScriptedLegacy(Rng(), pci_device=0x1010), force_legacy=True) as device:
        assert device.type == "rng" and not device.transport.quirks


@pytest.mark.parametrize("how", [{"subsystem": 5}, {"revision": 1}])
def test_what_is_odd_is_told_and_tolerated(how: dict[str, int]):
    scripted = ScriptedLegacy(Rng(), **how)  # type: ignore[arg-type]
    report = diagnose_function(ADDRESS, lambda: (ADDRESS, scripted), timeout=0.5)
    (found,) = [step for step in report.steps if step.name == "capabilities"]
    assert report.type == "rng" and found.verdict == "warn"
    assert str(next(iter(how.values()))) in found.hint


def test_diag_says_which_interface_it_took():
    for force in (False, True):
        scripted = ScriptedLegacy(Rng(), transitional=True)
        report = diagnose_function(ADDRESS, lambda s=scripted: (ADDRESS, s), timeout=0.5, force_legacy=force)
        steps = {step.name: step for step in report.steps}
        assert report.verdict == "pass"
        assert ("legacy interface" if force else "modern interface") in steps["capabilities"].detail
        assert steps["features_ok"].verdict == ("skip" if force else "pass")
        scripted.assert_left()


# --- what a legacy device may do wrong -------------------------------------------------------------------------


@pytest.mark.spec("FEAT-09")
def test_version_1_cannot_be_forced_on_a_legacy_interface():
    scripted = ScriptedLegacy(Rng())
    with pytest.raises(FeatureMissing) as caught:
        start(scripted, required=f.mask(f.VERSION_1))
    assert "VERSION_1" in caught.value.message
    assert "disable-modern" in str(caught.value.remedy)
    assert scripted.status_now == 0


@pytest.mark.fault(20)
def test_a_modern_interface_without_version_1_points_at_the_legacy_one():
    scripted = ScriptedDevice(Rng(), features=f.mask(f.EVENT_IDX), pci_device=0x1005)
    with pytest.raises(FeatureMissing) as caught:
        start(scripted)
    assert "--force-legacy" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        ({"queue_size": {0: 0}}, QueueError, "has no queue 0"),
        ({"queue_size": {0: 3}}, QueueError, "no power of two"),
        ({"queue_size": {0: 0xFFFF}}, QueueError, "no power of two"),
        ({"enabled_before": True}, QueueError, "has an address already"),
        ({"never_enables": True}, QueueError, "does not read back"),
        ({"address_mask": 0x3FFF_FFFF}, QueueError, "does not read back"),
        ({"contiguous_limit": 4096}, MemoryScattered, "in one piece"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(faults: dict[str, object], error: type[Exception], words: str):
    scripted = ScriptedLegacy(Rng(), translates=False, **faults)  # type: ignore[arg-type]
    device = identify(scripted)
    with device, pytest.raises(error, match=words):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    assert scripted.status_now == 0 and not scripted.memory.open_blocks()


def test_a_queue_that_changes_its_size_is_refused():
    scripted = ScriptedLegacy(Rng())
    device = identify(scripted)

    def grow() -> list[QueueSpec]:
        scripted.queues[0].size = 8
        return [QueueSpec(0, "queue 0")]

    connect = device.transport.connect_interrupts

    def later(*args: object) -> InterruptMode:
        scripted.queues[0].size = 16
        return connect(*args)  # type: ignore[arg-type]

    device.transport.connect_interrupts = later  # type: ignore[method-assign]
    with device, pytest.raises(QueueError, match="queue_size"):
        device.start(wanted=0, queues=grow)
    scripted.assert_left()


def test_memory_above_what_a_page_frame_can_name_is_refused():
    transport = PciLegacy(ScriptedLegacy(Rng()))
    layout = legacy_layout(64)
    for desc in (0, 1 << 44):
        with pytest.raises(NotSupported, match="out of the legacy"):
            transport.enable_queue(0, 64, desc, desc + layout.avail, desc + layout.used)
    for wrong in ((8, layout.avail, layout.used), (0, layout.avail + 2, layout.used), (0, layout.avail, 4096 * 9)):
        with pytest.raises(Misuse, match="one region"):
            transport.enable_queue(0, 64, *(0x10000 + at for at in wrong))


def test_the_number_of_queues_is_looked_for():
    assert PciLegacy(ScriptedLegacy(Balloon(features=STATS))).num_queues == 3
    assert PciLegacy(ScriptedLegacy(Rng(), queue_size={0: 0})).num_queues == 0


@pytest.mark.spec("CFG-L01")
def test_configuration_is_read_until_two_readings_agree():
    class Flips(Balloon):
        def __init__(self) -> None:
            super().__init__()
            self.values = [1, 2]

        def read_config(self, offset: int, width: int) -> int:
            return self.values.pop(0) if len(self.values) > 1 else self.values[0]

    scripted = ScriptedLegacy(Flips())
    with identify(scripted) as device:
        assert device.read_config(CONFIG["num_pages"]) == (2,)
        assert len([access for access in scripted.log if access[:3] == ("read", "legacy", 20)]) >= 3


@pytest.mark.fault(51)
@pytest.mark.spec("CFG-L01")
def test_configuration_that_never_stands_still():
    class Counts(Balloon):
        def read_config(self, offset: int, width: int) -> int:
            self.config[0] = self.config[0] + 1 & 0xFF
            return self.config[0]

    with identify(ScriptedLegacy(Counts())) as device, pytest.raises(ConfigUnstable) as caught:
        device.read_config(CONFIG["num_pages"])
    assert "2.5.4" in caught.value.expected


@pytest.mark.spec("CFG-06")
def test_configuration_ends_with_the_ports():
    transport = PciLegacy(ScriptedLegacy(Balloon(), bar_size=32))
    assert transport.config_length == 12
    for offset, width in ((12, 1), (9, 4), (8, 8), (1 << 20, 4)):
        with pytest.raises(ConfigError):
            transport.read_config(offset, width)
        with pytest.raises(ConfigError):
            transport.write_config(offset, width, 0)


@pytest.mark.spec("SPL-L05", "BAL-L02")
def test_a_used_length_means_little():
    """Old devices report the length of the whole chain, or anything."""
    for lie in (4096, 1 << 31, 0xFFFF_FFFF):
        scripted = ScriptedLegacy(Balloon())
        scripted.lies.used_len = lambda _written, lie=lie: lie  # type: ignore[misc]
        with identify(scripted) as device, BalloonDriver(device) as driver:
            assert driver.inflate(3) == 3
            driver.deflate(3)
        scripted.assert_left()
    scripted = ScriptedLegacy(Rng())
    scripted.lies.used_len = lambda written: written + 1000
    with identify(scripted) as device, RngDriver(device) as rng:
        assert rng.read(16) == bytes(range(16)), "no more than there was room for"
        assert device.queues[0].ring.findings == {"used-length-clamped": 1}


def test_used_elements_are_trusted_no_more_than_elsewhere():
    scripted = ScriptedLegacy(Rng())
    scripted.lies.used_id = lambda head: head + 1000
    with identify(scripted) as device, RngDriver(device) as rng, pytest.raises(RingCorruption):
        rng.read(4)


def test_a_device_that_gave_up_is_silent_and_does_not_say_so():
    """DEVICE_NEEDS_RESET came with VERSION_1; a legacy device just stops."""
    scripted = ScriptedLegacy(Rng(), silent=True)
    with identify(scripted, timeout=0.2) as device, RngDriver(device) as rng, pytest.raises(DeviceTimeout):
        rng.read(4)
    scripted.assert_left()


def test_a_reset_that_never_ends():
    scripted = ScriptedLegacy(Rng(), reset_reads=-1)
    scripted._status = int(Status.ACKNOWLEDGE)  # another driver had it before
    with identify(scripted, timeout=0.2) as device, pytest.raises(ResetTimeout):
        device.reset()


def test_all_ones_are_a_device_that_is_gone():
    scripted = ScriptedLegacy(Rng())
    with identify(scripted) as device, RngDriver(device):
        scripted.vanish()
        with pytest.raises(DeviceGone):
            device.check()
    scripted = ScriptedLegacy(Rng())
    scripted.vanish()
    with pytest.raises(DeviceGone):
        identify(scripted)


class _Counting(list[Access]):
    """A log that makes its device vanish at the nth access."""

    def __init__(self, owner: ScriptedDevice, at: int) -> None:
        super().__init__()
        self._owner, self._at = owner, at

    def append(self, access: Access) -> None:
        super().append(access)
        if len(self) == self._at:
            self._owner.gone = True


def _life(scripted: ScriptedDevice) -> None:
    with identify(scripted, timeout=0.1) as device, BalloonDriver(device) as driver:
        driver.inflate(1)


def test_a_device_that_vanishes_at_any_access_is_called_gone():
    whole = ScriptedLegacy(Balloon())
    _life(whole)
    before_leaving = next(
        at for at, access in enumerate(whole.log) if access.region == "legacy" and access[2:] == (18, 1, 7)
    )
    for at in range(1, before_leaving):
        scripted = ScriptedLegacy(Balloon())
        scripted.log = _Counting(scripted, at)
        with pytest.raises(DeviceAbsent):
            _life(scripted)
        assert scripted.closed


# --- byte order and framing --------------------------------------------------------------------------------------


@pytest.mark.spec("BAL-L03")
@pytest.mark.parametrize("mode", [InterruptMode.SHARED, InterruptMode.INTX])
def test_actual_is_one_store_of_four_bytes(mode: InterruptMode):
    scripted = ScriptedLegacy(Balloon())
    with identify(scripted, interrupts=[mode]) as device, BalloonDriver(device) as driver:
        scripted.log.clear()
        driver.inflate(5)
        place = (24 if mode in MSIX else 20) + balloon.ACTUAL
        assert [access.width for access in header(scripted, "write", place)] == [4]
    assert set(scripted.model.actual_writes) == {5, 0}  # type: ignore[attr-defined]


class Frames(Balloon):
    """Remembers what came, byte for byte."""

    def __init__(self, **how: int) -> None:
        super().__init__(**how)
        self.chains: list[tuple[str, list[int], bytes]] = []

    def handle(self, queue: int, chain: Chain) -> int | None:
        lengths = [element.length for element in chain.elements]
        self.chains.append((self.roles[queue], lengths, chain.data()))
        return super().handle(queue, chain)


@pytest.mark.spec("SPL-L03", "SPL-L04", "BAL-L04")
@pytest.mark.parametrize("any_layout", [True, False])
def test_requests_have_the_order_and_the_framing_of_the_guest(any_layout: bool):
    """Little-endian, as the machines that this runs on; and a request is one element, ANY_LAYOUT or not."""
    offered = LEGACY_RING_FEATURES | STATS
    if not any_layout:
        offered &= ~f.mask(f.ANY_LAYOUT)
    model = Frames(features=STATS)
    scripted = ScriptedLegacy(model, legacy_features=offered)
    with identify(scripted) as device:
        driver = BalloonDriver(device, stats=lambda: {balloon.Stat.MEMFREE: 0x1122_3344_5566_7788})
        with driver:
            driver.inflate(2)
            pfns = model.requests[-1][1]
    assert ("inflate", [8], struct.pack("<II", *pfns)) in model.chains
    assert all(len(lengths) == 1 for _role, lengths, _data in model.chains)
    (stats,) = [data for role, _lengths, data in model.chains if role == "stats"]
    assert bytes.fromhex("0400 8877665544332211") in stats


@pytest.mark.spec("BAL-L05")
def test_hint_ids_have_the_order_of_the_guest():
    model = Frames(features=HINT)
    scripted = ScriptedLegacy(model, legacy_features=LEGACY_RING_FEATURES | HINT)
    with identify(scripted) as device, BalloonDriver(device, hinting=True) as driver:
        model.set_hint_id(0x0102_0304)
        assert driver.hints is not None
        driver.hints.serve()
    assert model.hints[0] == ("command", 0x0102_0304)
    assert any(role == "hint" and data == bytes([4, 3, 2, 1]) for role, _lengths, data in model.chains)


@pytest.mark.spec("CFG-L02", "SPL-L03", "PCI-LEG-07", "BAL-L04", "BAL-L05")
def test_where_the_guests_order_would_be_another_one_nothing_is_driven(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    scripted = ScriptedLegacy(Rng())
    with pytest.raises(NotSupported, match="big-endian"):
        identify(scripted)


def test_every_transitional_type_is_known_by_both_its_ids():
    for number, kind in ids.TRANSITIONAL.items():
        assert ids.device_id_of_pci(pci.VIRTIO_VENDOR, number) == kind
        assert ids.is_transitional_pci(pci.VIRTIO_VENDOR, number)

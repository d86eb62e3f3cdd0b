"""The device above its transport: the sequence of 3.1.1, the wait loop, and every way out."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.programs import run_program
from uvirtio import opening
from uvirtio.device import Device, QueueSpec, storm
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.base import Driver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import (
    Closed,
    ConfigError,
    ConfigUnstable,
    DeviceBroken,
    DeviceFailure,
    DeviceGone,
    DeviceNeedsReset,
    DeviceResetByOther,
    DeviceTimeout,
    FeatureMissing,
    FeaturesRefused,
    Misuse,
    NotSupported,
    QueueError,
    ResetTimeout,
    UvirtioError,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.clock import HostClock
from uvirtio.memory.fence import platform_fence
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng
from uvirtio.spec import balloon, pci
from uvirtio.spec import features as f
from uvirtio.spec.layout import Field, by_name
from uvirtio.spec.status import Status

ADDRESS = "0000:00:04.0"
SHORT = 0.2
SHORTER = 0.05
"""For a device that never answers a request."""
LONG = 30.0
"""Seconds: the deadlines of waits that miss, and of waits that something else has to end."""

CONFIG = by_name(balloon.CONFIG)
STATUS = pci.COMMON_DEVICE_STATUS
MODES = list(InterruptMode)
DRIVERS: dict[type[Model], type[Driver]] = {Rng: RngDriver, Balloon: BalloonDriver, Input: InputDriver}


def identify(scripted: ScriptedDevice, *, timeout: float = SHORT, mode: InterruptMode | None = None) -> Device:
    modes = MODES if mode is None else [mode]
    return opening.identify(ADDRESS, scripted, timeout=timeout, interrupts=modes)


def start(scripted: ScriptedDevice, *, wanted: int = 0, **how: object) -> Device:
    """A device at DRIVER_OK with one queue."""
    device = identify(scripted, **how)  # type: ignore[arg-type]
    device.start(wanted=wanted, queues=[QueueSpec(0, "queue 0", size=8)])
    return device


def statuses(scripted: ScriptedDevice) -> list[int]:
    """Every value that was written to status."""
    return scripted.writes("common", STATUS)


def later(seconds: float, do: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def after_the_kick(scripted: ScriptedDevice, seconds: float, do: Callable[[], object]) -> threading.Event:
    """``do``, so many seconds after the next kick: a timer set before may be over when the request goes out."""
    done = threading.Event()

    def both() -> None:
        do()
        done.set()

    def kicked() -> None:
        scripted.on_kick = None
        later(seconds, both)

    scripted.on_kick = kicked
    return done


def never() -> bool:
    return False


# --- the sequence (3.1.1) -----------------------------------------------------------------------------------


@pytest.mark.spec("INIT-01", "STAT-01", "STAT-02", "INIT-02", "INIT-03", "INIT-07")
@pytest.mark.parametrize("model", [Rng, Balloon, Input])
def test_the_order_of_the_sequence(model: type[Model]):
    scripted = ScriptedDevice(model())
    with identify(scripted) as device, DRIVERS[model](device):
        assert statuses(scripted) == [0, 1, 3, 0xB, 0xF]
        events = [
            f"{access.op} {access.region}+{access.offset:#x}={access.value:#x}"
            if access.op == "write"
            else f"{access.op} {access.region}+{access.offset:#x}"
            for access in scripted.log
        ]

        def first(what: str) -> int:
            return next(at for at, event in enumerate(events) if event.startswith(what))

        def last(what: str) -> int:
            return max(at for at, event in enumerate(events) if event.startswith(what))

        order = [
            first("write common+0x14=0x0"),  # reset
            first("write common+0x14=0x1"),  # ACKNOWLEDGE
            first("write common+0x14=0x3"),  # DRIVER
            first("read common+0x4"),  # device_feature
            last("write common+0xc"),  # driver_feature
            first("write common+0x14=0xb"),  # FEATURES_OK
            first("write common+0x18"),  # the first queue
            last("write common+0x1c=0x1"),  # the last queue_enable
            last("call bus_master"),
            first("write common+0x14=0xf"),  # DRIVER_OK
        ]
        assert order == sorted(order)
        assert events[order[5] + 1] == "read common+0x14", "FEATURES_OK is read back at once"
        kicks = [at for at, event in enumerate(events) if event.startswith("write notify")]
        assert all(at > order[-1] for at in kicks)
    scripted.assert_left()


@pytest.mark.fault(19)
@pytest.mark.spec("INIT-04", "INIT-05", "INIT-06", "STAT-03")
def test_a_refused_choice_of_features_ends_the_bring_up():
    scripted = ScriptedDevice(Rng(), refuse_features=True)
    with identify(scripted) as device:
        with pytest.raises(FeaturesRefused) as caught:
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
        assert "FEATURES_OK" not in str(caught.value.seen).split("after")[0]
        assert statuses(scripted) == [0, 1, 3, 0xB, 0x8B, 0]
        assert not scripted.calls("dma")
    scripted.assert_left()


class Noisy(ScriptedDevice):
    """Its status has some bits on top, from the first that the driver sets on."""

    def __init__(self, model: Model, *, noise: int = 0, **how: object) -> None:
        super().__init__(model, **how)  # type: ignore[arg-type]
        self.noise = noise

    def _read_status(self) -> int:
        status = super()._read_status()
        return status | self.noise if status else 0


def _fail() -> None:
    raise DeviceFailure("scripted")


def _stop_here() -> None:
    raise KeyboardInterrupt


@pytest.mark.fault(25)
@pytest.mark.spec("INIT-05", "INIT-06", "STAT-03", "STAT-04")
@pytest.mark.parametrize(
    ("faults", "before_ok", "error"),
    [
        ({"refuse_features": True}, None, FeaturesRefused),
        ({"features": f.mask(f.INDIRECT_DESC)}, None, FeatureMissing),
        ({"queue_size": {0: 0}}, None, QueueError),
        ({"never_enables": True}, None, QueueError),
        ({"needs_reset_at": "driver_ok"}, None, DeviceNeedsReset),
        ({"noise": 0x40}, None, DeviceNeedsReset),
        ({"noise": 0x80}, None, DeviceNeedsReset),
        ({}, _fail, DeviceFailure),
        ({}, _stop_here, KeyboardInterrupt),
    ],
)
def test_each_failed_bring_up_says_failed_and_then_only_resets(
    faults: dict[str, object], before_ok: Callable[[], None] | None, error: type[BaseException]
):
    scripted = Noisy(Rng(), **faults)
    device = identify(scripted)
    with pytest.raises(error):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")], before_ok=before_ok)
    written = statuses(scripted)
    failed = next(at for at, value in enumerate(written) if value & Status.FAILED)
    assert written[failed] & ~0x80 == written[failed - 1], "no bit is taken back"
    assert written[failed + 1 :] == [0]
    assert not scripted.master and not scripted.memory.open_blocks()
    device.close()
    scripted.assert_left()


@pytest.mark.fault(25)
def test_a_device_that_drops_driver_ok_is_not_taken_for_running():
    class Dropping(ScriptedDevice):
        def _write_status(self, value: int) -> None:
            super()._write_status(value)
            if value == 0xF:
                self._status &= ~int(Status.DRIVER_OK)

    scripted = Dropping(Rng())
    with identify(scripted) as device, pytest.raises(DeviceNeedsReset, match="DRIVER_OK"):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    assert not scripted.master


@pytest.mark.fault(27)
def test_status_bits_that_nobody_knows_are_no_error():
    scripted = Noisy(Rng(), noise=0x30)
    with identify(scripted) as device, RngDriver(device) as rng:
        assert rng.read(4) == bytes(range(4))
    assert device.broken is None
    scripted.assert_left()


# --- features (2.2.1, 6) ------------------------------------------------------------------------------------

ALL = (1 << 128) - 1


@pytest.mark.fault(21)
@pytest.mark.spec(
    "FEAT-01",
    "FEAT-03",
    "FEAT-04",
    "FEAT-05",
    "FEAT-06",
    "FEAT-07",
    "FEAT-10",
    "RSV-01",
    "RSV-02",
    "RSV-L02",
    "RSV-08",
)
@pytest.mark.parametrize("model", [Rng, Balloon, Input])
def test_a_device_that_offers_all_128_bits_is_driven_with_the_few_that_are_known(model: type[Model]):
    scripted = ScriptedDevice(model(), features=ALL)
    with identify(scripted) as device, DRIVERS[model](device) as driver:
        known = f.mask(f.VERSION_1, f.ACCESS_PLATFORM, f.INDIRECT_DESC, f.EVENT_IDX, f.RING_PACKED, f.IN_ORDER)
        known |= f.mask(f.NOTIFICATION_DATA) | (f.mask(f.ORDER_PLATFORM) if platform_fence() else 0)
        assert scripted.driver_features == device.features == known | driver.features
        assert device.offered == ALL
        assert device.dma.translated
        assert scripted.status_now == 0xF
    scripted.assert_left()


@pytest.mark.fault(12)
@pytest.mark.spec("FEAT-08")
@pytest.mark.parametrize("offered", [0, f.mask(f.INDIRECT_DESC), f.mask(f.EVENT_IDX)])
def test_what_is_optional_can_be_missing(offered: int):
    scripted = ScriptedDevice(Rng(), features=offered | f.mask(f.VERSION_1))
    with identify(scripted) as device, RngDriver(device) as rng:
        assert device.features == offered | f.mask(f.VERSION_1)
        assert rng.read(100) == bytes(range(100))
    scripted.assert_left()


@pytest.mark.spec("FEAT-09", "INIT-05")
@pytest.mark.parametrize("required", [0, 1 << 3, 1 << 100])
def test_a_feature_that_cannot_be_done_without(required: int):
    offered = 0 if not required else f.mask(f.VERSION_1)
    scripted = ScriptedDevice(Rng(), features=offered)
    with identify(scripted) as device:
        with pytest.raises(FeatureMissing) as caught:
            device.start(wanted=0, required=required, queues=[QueueSpec(0, "queue 0")])
        assert statuses(scripted) == [0, 1, 3, 0x83, 0]
        if not required:
            assert "VERSION_1" in caught.value.message and "legacy" in caught.value.remedy
    scripted.assert_left()


@pytest.mark.fault(23)
def test_of_an_offer_that_changes_only_what_stays_is_taken():
    scripted = ScriptedDevice(Rng(), features_later=f.mask(f.VERSION_1, f.EVENT_IDX, 77))
    with start(scripted) as device:
        assert device.features == f.mask(f.VERSION_1, f.EVENT_IDX)
        assert device.unsteady_features == f.mask(f.INDIRECT_DESC, 77)
    scripted.assert_left()


@pytest.mark.fault(20)
def test_an_offer_that_loses_version_1_is_refused():
    scripted = ScriptedDevice(Rng(), features_later=0)
    with identify(scripted) as device, pytest.raises(FeatureMissing):
        device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])


# --- reset (2.4.2) ------------------------------------------------------------------------------------------


@pytest.mark.spec("RST-01", "PCI-COM-05")
@pytest.mark.parametrize("reads", [0, 1, 7])
def test_a_reset_is_over_when_status_reads_0(reads: int):
    scripted = ScriptedDevice(Rng(), reset_reads=reads)
    scripted._status = 0xF  # as a crashed driver left it
    with start(scripted, timeout=LONG):
        log = [access for access in scripted.log if access.region == "common" and access.offset == STATUS]
        assert [access.value for access in log[: reads + 3]] == [0, *[0xF] * reads, 0, 1]
    scripted.assert_left()


@pytest.mark.fault(18)
def test_a_slow_reset_is_waited_for():
    scripted = ScriptedDevice(Rng(), reset_seconds=0.1)
    scripted._status = 0xF
    with start(scripted, timeout=LONG):
        pass
    scripted.assert_left()


@pytest.mark.fault(17)
def test_a_reset_that_never_ends_stops_the_bring_up():
    scripted = ScriptedDevice(Rng(), reset_reads=-1)
    scripted._status = 0xF
    with identify(scripted) as device:
        with pytest.raises(ResetTimeout):
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
        with pytest.raises(DeviceBroken):
            device.start(wanted=0, queues=[QueueSpec(0, "queue 0")])
    assert statuses(scripted) == [0]  # nothing is written to a device that resets
    assert not scripted.master and scripted.closed


def test_a_reset_by_hand_frees_everything_and_stops_dma():
    scripted = ScriptedDevice(Rng())
    with start(scripted) as device:
        device.reset()
        assert scripted.status_now == 0 and not scripted.master
        assert not device.queues and not scripted.memory.open_blocks()
        with pytest.raises(Closed):
            _ = device.dma
    scripted.assert_left()


@pytest.mark.fault(17)
@pytest.mark.parametrize("can_reset", [True, False])
def test_when_leaving_a_reset_that_never_ends_keeps_the_memory(can_reset: bool):
    scripted = ScriptedDevice(Rng(), can_reset=can_reset)
    device = identify(scripted)
    with RngDriver(device):
        scripted.faults.reset_reads = -1
    assert isinstance(device.broken, ResetTimeout)
    assert scripted.calls("bus_master")[-1] == 0 and not scripted.master
    assert scripted.calls("function_reset") == [0]
    # With the function reset there is no doubt left; without it the memory is never given back.
    assert bool(scripted.memory.open_blocks()) is not can_reset
    device.close()
    assert bool(scripted.memory.open_blocks()) is not can_reset
    assert scripted.closed
    scripted.assert_obedient()


# --- configuration (2.5) ------------------------------------------------------------------------------------


class Restless(Balloon):
    """Changes both fields together after each of the first ``left`` reads; in one state they are equal."""

    left = 0

    def read_config(self, offset: int, width: int) -> int:
        value = super().read_config(offset, width)
        if self.left:
            self.left -= 1
            self.device.change_config(0, struct.pack("<II", self.left, self.left), interrupt=False)
        return value


@pytest.mark.fault(53)
@pytest.mark.spec("CFG-01", "CFG-02", "CFG-03")
@pytest.mark.parametrize("left", range(8))
def test_fields_that_are_read_together_belong_together(left: int):
    model = Restless()
    with start(ScriptedDevice(model)) as device:
        model.config[0:8] = struct.pack("<II", 99, 99)
        model.left = left
        first, second = device.read_config(CONFIG["num_pages"], CONFIG["actual"])
        assert first == second
        model.left = left
        wide = device.read_config(Field("both", 0, 8))[0]
        assert wide & 0xFFFFFFFF == wide >> 32


@pytest.mark.fault(39)
@pytest.mark.spec("CFG-03")
def test_the_generation_brackets_what_is_read():
    scripted = ScriptedDevice(Balloon())
    with start(scripted) as device:
        scripted.faults.generation_bumps = 3
        scripted.log.clear()
        device.read_config(CONFIG["num_pages"])
        reads = [access.region for access in scripted.log if access.op == "read"]
        assert reads == ["common", "device", "common"] * 2  # once more after the bump
        assert device.broken is None


@pytest.mark.fault(51)
@pytest.mark.spec("CFG-03")
def test_a_configuration_that_never_stands_still():
    scripted = ScriptedDevice(Balloon())
    with start(scripted, timeout=LONG) as device:
        scripted.faults.generation_bumps = -1
        scripted.log.clear()
        with pytest.raises(ConfigUnstable) as caught:
            device.read_config(CONFIG["num_pages"])
        tries = len(scripted.reads("device"))
        assert 16 <= tries < 2000 and f"each of {tries} reads" in caught.value.seen
        with pytest.raises(DeviceBroken):
            device.read_config(CONFIG["num_pages"])
    scripted.assert_left()


@pytest.mark.spec("CFG-05")
def test_a_host_that_moves_a_value_for_a_while_is_waited_for():
    scripted = ScriptedDevice(Balloon())
    with start(scripted, timeout=LONG) as device:
        scripted.faults.generation_bumps = 100  # far more than are read without a pause
        assert device.read_config(CONFIG["num_pages"]) == (0,)
        assert device.broken is None


@pytest.mark.fault(53)
def test_without_a_generation_two_equal_readings_are_wanted(monkeypatch: pytest.MonkeyPatch):
    scripted = ScriptedDevice(Balloon())
    with start(scripted) as device:
        monkeypatch.setattr(device.transport, "generation", lambda: None)
        values = iter([1, 2, 3, 3])
        assert device.snapshot(lambda: next(values)) == 3
        with pytest.raises(ConfigUnstable):
            device.snapshot(lambda: time.monotonic_ns())


@pytest.mark.fault(52)
@pytest.mark.spec("CFG-05", "CFG-06")
@pytest.mark.parametrize("length", [4, 7, 8, 16, 4000])
def test_the_configuration_has_a_lower_bound_and_no_upper(length: int):
    scripted = ScriptedDevice(Balloon(config_length=length))
    with start(scripted) as device:
        assert device.read_config(CONFIG["num_pages"]) == (0,)
        if length < 8:
            with pytest.raises(ConfigError, match="actual"):
                device.read_config(CONFIG["num_pages"], CONFIG["actual"])
        else:
            assert device.read_config(CONFIG["actual"]) == (0,)
        assert device.broken is None, "what is not there is no fault of the device"
    scripted.assert_left()


@pytest.mark.fault(56)
def test_all_ones_in_the_configuration_are_no_target():
    scripted = ScriptedDevice(Balloon())
    with start(scripted) as device:
        scripted.vanish()
        with pytest.raises(DeviceGone):
            device.read_config(CONFIG["num_pages"])
    scripted = ScriptedDevice(Balloon())
    with start(scripted) as device:
        scripted._generation = 0xFF  # a device that is there may have this one, too
        assert device.read_config(CONFIG["num_pages"]) == (0,)


# --- waiting ------------------------------------------------------------------------------------------------


@pytest.mark.fault(46)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_owed_and_does_not_come(mode: InterruptMode):
    with start(ScriptedDevice(Rng()), mode=mode) as device:
        assert device.wait(never, timeout=SHORT, what="nothing", owed=False) is False
        assert device.broken is None
        with pytest.raises(DeviceTimeout, match="waiting for an answer"):
            device.wait(never, timeout=SHORT, what="an answer")
        with pytest.raises(DeviceBroken) as caught:
            device.wait(lambda: True, timeout=SHORT, what="an answer")
        assert caught.value.seen == DeviceTimeout.code


def test_a_queue_without_fixed_slots_says_so_and_goes_on():
    with identify(ScriptedDevice(Rng())) as device, RngDriver(device) as rng:
        for misuse in (lambda: device.queues[0].submit([0]), device.queues[0].reap_slots):
            with pytest.raises(Misuse, match="no fixed slots"), device.session():
                misuse()
        assert rng.read(3) == bytes(range(3))


@pytest.mark.fault(47)
@pytest.mark.parametrize("mode", MODES)
def test_what_comes_late_comes(mode: InterruptMode):
    scripted = ScriptedDevice(Rng(), auto=False)
    with identify(scripted, timeout=LONG, mode=mode) as device, RngDriver(device) as rng:
        answered = after_the_kick(scripted, 0.05, scripted.run)
        assert rng.read(10) == bytes(range(10))
        assert answered.wait(LONG)
    scripted.assert_left()


@pytest.mark.fault(43)
@pytest.mark.parametrize("mode", MODES)
def test_a_lost_interrupt_costs_time_and_nothing_else(mode: InterruptMode):
    scripted = ScriptedDevice(Rng(), auto=False, lose_interrupts=True)
    with identify(scripted, timeout=LONG, mode=mode) as device, RngDriver(device) as rng:
        answered = after_the_kick(scripted, 0.02, scripted.run)
        assert rng.read(10) == bytes(range(10))
        assert answered.wait(LONG)
        assert device.counters.missed_interrupts == (0 if mode is InterruptMode.POLLING else 1)
    scripted.assert_left()


@pytest.mark.fault(43)
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_for_nothing_is_counted_and_nothing_else(mode: InterruptMode):
    scripted = ScriptedDevice(Rng())
    with start(scripted, mode=mode) as device:
        looks = 0

        def ready() -> bool:
            nonlocal looks
            looks += 1
            if looks < 4:
                scripted.interrupt_queue(0, force=True)
            return False

        assert not device.wait(ready, timeout=SHORT, what="nothing", owed=False)
        if mode is InterruptMode.POLLING:
            assert device.counters.interrupts_taken == 0
        else:
            assert device.counters.interrupts_taken == 3
            assert looks < 12, "no spinning afterwards"
        assert device.broken is None
    scripted.assert_left()


@pytest.mark.fault(44)
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_before_driver_ok_does_no_harm(mode: InterruptMode):
    scripted = ScriptedDevice(Rng())
    with identify(scripted, mode=mode) as device:
        device.start(
            wanted=0,
            queues=[QueueSpec(0, "queue 0", size=8)],
            before_ok=lambda: scripted.interrupt_queue(0, force=True),
        )
        device.service()
        assert not device.queues[0].reap()
    scripted.assert_left()


def _needs_reset(scripted: ScriptedDevice) -> None:
    scripted.needs_reset()


def _needs_reset_without_a_word(scripted: ScriptedDevice) -> None:
    scripted._status |= int(Status.DEVICE_NEEDS_RESET)


def _reset_by_other(scripted: ScriptedDevice) -> None:
    scripted.reset_by_other()


def _asked_back(scripted: ScriptedDevice) -> None:
    scripted.ask_back()


def _vanished(scripted: ScriptedDevice) -> None:
    scripted.vanish()


@pytest.mark.fault(26)
@pytest.mark.spec("STAT-04")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("accident", "error"),
    [
        (_needs_reset, DeviceNeedsReset),
        (_needs_reset_without_a_word, DeviceNeedsReset),
        (_reset_by_other, DeviceResetByOther),
        (_asked_back, DeviceGone),
        (_vanished, DeviceGone),
    ],
)
def test_an_accident_during_a_wait_ends_it_by_its_name(
    mode: InterruptMode, accident: Callable[[ScriptedDevice], None], error: type[UvirtioError]
):
    scripted = ScriptedDevice(Rng(), silent=True)
    asked = threading.Event()
    scripted.on_kick = asked.set
    with identify(scripted, timeout=LONG, mode=mode) as device:
        with RngDriver(device) as rng:
            # Once the request is out: what happens before that cannot be known.
            thread = threading.Thread(target=lambda: (asked.wait(LONG), accident(scripted)))
            thread.start()
            with pytest.raises(error):
                rng.read(10)
            thread.join()
            scripted.log.clear()
            again = DeviceGone if error is DeviceGone else DeviceBroken
            for _ in range(2):
                with pytest.raises(again, match="unusable after an earlier error") as caught:
                    rng.read(10)
                assert caught.type is again
                assert caught.value.__cause__ is device.broken
            assert not scripted.log, "a broken device is not touched again"
        assert not device.queues
    scripted.assert_left()


@pytest.mark.fault(100)
@pytest.mark.parametrize("mode", MODES)
def test_a_reset_before_the_request_is_noticed_after_it(mode: InterruptMode):
    scripted = ScriptedDevice(Rng())
    with identify(scripted, timeout=LONG, mode=mode) as device, RngDriver(device) as rng:
        scripted.reset_by_other()
        with pytest.raises(DeviceResetByOther):
            rng.read(10)
        assert scripted.violations.pop(0).startswith("INIT-07"), (
            "the kick, of which a reset device takes no notice"
        )
        assert scripted.violations.pop(0).startswith("PCI-NTF-07")
    scripted.assert_left()


def test_an_accident_at_the_kick():
    scripted = ScriptedDevice(Rng(), needs_reset_at="kick")
    with identify(scripted, timeout=LONG) as device, RngDriver(device) as rng, pytest.raises(DeviceNeedsReset):
        rng.read(1)
    scripted.assert_left()


# --- storms -------------------------------------------------------------------------------------------------

WITH_INTERRUPTS = [mode for mode in MODES if mode is not InterruptMode.POLLING]


@pytest.mark.fault(45)
@pytest.mark.parametrize("mode", WITH_INTERRUPTS)
def test_interrupts_without_end_starve_neither_work_nor_deadline_nor_the_cpu(mode: InterruptMode):
    scripted = ScriptedDevice(Rng(), auto=False)
    with identify(scripted, timeout=LONG, mode=mode) as device, RngDriver(device) as rng:
        scripted.storm()
        looks = 0

        def ready() -> bool:
            nonlocal looks
            looks += 1
            return False

        assert device.wait(ready, timeout=SHORT, what="nothing", owed=False) is False
        assert looks < 1000, "a hundred for each tenth of a second, not one for each interrupt"
        answered = after_the_kick(scripted, 0.05, scripted.run)
        assert rng.read(10) == bytes(range(10))
        assert answered.wait(LONG)
        scripted.storm(False)
        answered = after_the_kick(scripted, 0.05, scripted.run)
        assert rng.read(10) == bytes(range(10, 20))
        assert answered.wait(LONG)
        with pytest.raises(KeyboardInterrupt):
            scripted.storm()
            later(0.02, lambda: device.interrupt(KeyboardInterrupt()))
            device.wait(never, timeout=None, what="nothing", owed=False)
        assert device.broken is None
    scripted.assert_left()


@pytest.mark.fault(45)
@pytest.mark.parametrize("mode", WITH_INTERRUPTS)
def test_a_storm_is_met_with_ever_longer_sleep_and_counted_once(
    mode: InterruptMode, monkeypatch: pytest.MonkeyPatch
):
    scripted = ScriptedDevice(Rng())
    with start(scripted, mode=mode) as device:
        clock = Clock(stopped={})
        monkeypatch.setattr(device._waiting, "_clock", clock)
        monkeypatch.setattr(device._waiting, "_monotonic", clock.monotonic)
        asleep: list[float] = []

        def sleep(pause: float, longest: float, deaf: float, watch: object) -> bool:
            asleep.append(deaf)
            clock.now += deaf or 1e-5
            return False

        monkeypatch.setattr(device._waiting, "_sleep", sleep)
        scripted.storm()
        assert device.wait(never, timeout=1.0, what="nothing", owed=False) is False
        assert asleep[: storm.LIMIT] == [0.0] * (storm.LIMIT - 1) + [storm.FIRST]
        assert asleep[storm.LIMIT : storm.LIMIT + 4] == [2e-3, 4e-3, 8e-3, storm.LAST]
        assert set(asleep[storm.LIMIT + 4 :]) == {storm.LAST}
        assert device.counters.interrupt_storms == 1
        monkeypatch.undo()
        scripted.storm(False)
        while device.service():
            pass


def test_work_is_no_storm_however_much_of_it_there_is():
    watch = storm.InterruptStorm()
    for turn in range(10 * storm.LIMIT):
        assert watch.note(turn * 1e-5, told=True, useful=True) == 0.0
    for turn in range(10 * storm.LIMIT):  # rare enough
        assert watch.note(1 + turn * 2 * storm.WINDOW / storm.LIMIT, told=True, useful=False) == 0.0
    assert watch.count == 0


# --- a process that was stopped is no broken device ---------------------------------------------------------


class Clock:
    """Stands in for ``time``; every sleep takes as long as it was asked for, and sometimes longer."""

    def __init__(self, *, stopped: dict[int, float]) -> None:
        self.now = 1000.0
        self._stopped = stopped
        self.sleeps = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._stopped.get(self.sleeps, 0.0)
        self.sleeps += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Device, dict[int, float]], Clock]]:
    def install(device: Device, stopped: dict[int, float]) -> Clock:
        clock = Clock(stopped=stopped)
        monkeypatch.setattr(device._waiting, "_clock", clock)
        monkeypatch.setattr(device._waiting, "_monotonic", clock.monotonic)

        def sleep(pause: float, longest: float, deaf: float, watch: object) -> bool:
            clock.sleep(longest)
            return True

        monkeypatch.setattr(device._waiting, "_sleep", sleep)
        return clock

    yield install
    monkeypatch.undo()


@pytest.mark.fault(89)
@pytest.mark.parametrize("stopped", [{}, {0: 60.0}, {5: 3600.0}, {0: 60.0, 3: 60.0}])
def test_the_time_of_a_stopped_process_is_not_held_against_the_device(
    clock: Callable[[Device, dict[int, float]], Clock], stopped: dict[int, float]
):
    with start(ScriptedDevice(Rng())) as device:
        fake = clock(device, stopped)
        assert device.wait(lambda: fake.sleeps > 40, timeout=5.0, what="an answer")


def test_nor_is_a_silent_device_given_more_time_for_it(clock: Callable[[Device, dict[int, float]], Clock]):
    with start(ScriptedDevice(Rng())) as device:
        fake = clock(device, {3: 60.0})
        with pytest.raises(DeviceTimeout):
            device.wait(never, timeout=5.0, what="an answer")
        assert fake.now < 1000 + 60 + 6


def test_the_last_look_is_after_the_deadline(clock: Callable[[Device, dict[int, float]], Clock]):
    with start(ScriptedDevice(Rng())) as device:
        fake = clock(device, {})
        assert device.wait(lambda: fake.now >= 1000.05, timeout=0.05, what="an answer that is just in time")


# --- interruptions ------------------------------------------------------------------------------------------


class Enough(BaseException):
    """Why the wait was interrupted."""


@pytest.mark.parametrize("mode", MODES)
def test_a_signal_handler_interrupts_a_wait(mode: InterruptMode):
    reason = Enough()
    with start(ScriptedDevice(Rng()), mode=mode) as device:
        before = signal.signal(signal.SIGALRM, lambda number, frame: device.interrupt(reason))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            with pytest.raises(Enough) as caught:
                device.wait(never, timeout=None, what="nothing", owed=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert caught.value is reason
        assert device.broken is None
        assert device.wait(lambda: True, timeout=LONG, what="life goes on")


def _poll_reset(device: Device, scripted: ScriptedDevice) -> None:
    scripted._status, scripted.faults.reset_reads = int(Status.ACKNOWLEDGE), -1  # as another driver left it
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])


def _poll_queue_reset(device: Device, scripted: ScriptedDevice) -> None:
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])
    scripted.faults.queue_reset_reads = -1
    device.reset_queue(device.queues[0])


def _poll_configuration(device: Device, scripted: ScriptedDevice) -> None:
    scripted.faults.generation_bumps = -1
    device.read_config(CONFIG["num_pages"])


@pytest.mark.parametrize("poll", [_poll_reset, _poll_queue_reset, _poll_configuration])
@pytest.mark.parametrize("by", ["signal", "close"])
def test_a_poll_without_an_interrupt_ends_when_it_is_no_longer_wanted(
    poll: Callable[[Device, ScriptedDevice], None], by: str, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C during the reset of a device that hangs does not wait for --timeout."""
    sleeps = 0

    def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        assert sleeps < 20, "the poll goes on"
        if sleeps == 3 and by == "signal":
            device.interrupt(Enough())
        elif sleeps == 3:
            device.closing = True  # what close() from another thread sets before it waits for the lock

    features = f.mask(f.VERSION_1, f.RING_RESET)
    scripted = ScriptedDevice(Balloon(), features=features, common_length=pci.COMMON_CFG_SIZE)
    with identify(scripted, timeout=3600.0) as device:
        monkeypatch.setattr(HostClock, "sleep", staticmethod(sleep))
        with pytest.raises(Enough if by == "signal" else Closed):
            poll(device, scripted)
        assert sleeps == 3
        monkeypatch.undo()
        scripted.faults.reset_reads = scripted.faults.queue_reset_reads = 0
        scripted._write_status(0)  # it comes to its senses, for the checks below
    assert device.broken is None
    scripted.assert_left()


@pytest.mark.parametrize("mode", MODES)
def test_close_from_another_thread_ends_a_wait(mode: InterruptMode):
    scripted = ScriptedDevice(Rng(), silent=True)
    device = identify(scripted, timeout=LONG, mode=mode)
    rng = RngDriver(device)
    timer = later(0.03, device.close)
    with pytest.raises(Closed):
        rng.read(1)
    timer.join()
    scripted.assert_left()
    assert device.broken is None


def test_closing_twice_is_once():
    scripted = ScriptedDevice(Rng())
    device = start(scripted)
    device.close()
    count = len(scripted.log)
    device.close()
    device.stop()
    device.interrupt(Enough())
    assert len(scripted.log) == count
    with pytest.raises(Closed):
        device.wait(never, timeout=SHORT, what="nothing")
    with pytest.raises(Closed):
        device.start(wanted=0, queues=[])
    with pytest.raises(Closed):
        device.read_config(Field("nothing", 0, 0))


@pytest.mark.parametrize("error", [KeyError("x"), ConfigError("x"), DeviceFailure("x"), DeviceGone("x")])
def test_a_session_gives_the_lock_back_however_it_ends(error: Exception):
    device = identify(ScriptedDevice(Rng()), timeout=LONG)
    with pytest.raises(type(error)), device.session(), device.session():
        raise error
    broken = isinstance(error, (DeviceFailure, DeviceGone))
    assert device.broken is (error if broken else None)
    if broken:
        again = DeviceGone if isinstance(error, DeviceGone) else DeviceBroken
        with pytest.raises(again), device.session(), device.session():
            pytest.fail("a broken device has no sessions")
    closer = threading.Thread(target=device.close, daemon=True)
    closer.start()
    closer.join(LONG)
    assert not closer.is_alive()
    with pytest.raises(Closed), device.session():
        pytest.fail("nor has a closed one")


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except NotSupported:
        return True
    return False


@pytest.mark.fault(91)
def test_a_forked_child_leaves_the_device_alone():
    scripted = ScriptedDevice(Balloon())
    with identify(scripted) as device, BalloonDriver(device) as driver:
        driver.inflate(3)
        count = len(scripted.log)
        with device.session():  # a lock that is held while the child is made is held there for ever
            child = os.fork()
            if not child:
                try:
                    driver.close()
                    device.stop()
                    device.close()
                    device.interrupt(Enough())
                    refused = [
                        _refused(lambda: driver.inflate(1)),
                        _refused(lambda: driver.actual),
                        _refused(lambda: device.start(wanted=0, queues=[])),
                        _refused(device.reset),
                        _refused(device.service),
                    ]
                    os._exit(0 if all(refused) and len(scripted.log) == count else 3)
                finally:
                    os._exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert driver.deflate(3) == 0
    scripted.assert_left()


# --- the way out --------------------------------------------------------------------------------------------


class Witness:
    """What the device is like whenever memory is freed."""

    def __init__(self, scripted: ScriptedDevice) -> None:
        self.frees: list[tuple[int, bool]] = []
        before = scripted.memory.on_free

        def freed(block: object) -> None:
            self.frees.append((scripted.status_now, scripted.master))
            before(block)  # type: ignore[arg-type]

        scripted.memory.on_free = freed


def _normally(device: Device) -> None:
    device.close()


def _by_an_exception(device: Device) -> None:
    with pytest.raises(ZeroDivisionError), device:
        raise ZeroDivisionError


def _by_ctrl_c(device: Device) -> None:
    with pytest.raises(KeyboardInterrupt), device:
        raise KeyboardInterrupt


def _from_a_thread(device: Device) -> None:
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()


def _broken(device: Device) -> None:
    with pytest.raises(DeviceTimeout):
        device.wait(never, timeout=0.01, what="an answer")
    device.close()


@pytest.mark.spec("CLN-01", "CLN-02", "BAL-07")
@pytest.mark.parametrize("way", [_normally, _by_an_exception, _by_ctrl_c, _from_a_thread, _broken])
@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_leaving(way: Callable[[Device], None], mode: InterruptMode):
    model = Balloon()
    scripted = ScriptedDevice(model)
    device = identify(scripted, mode=mode)
    driver = BalloonDriver(device)
    driver.inflate(300)
    witness = Witness(scripted)
    scripted.log.clear()
    way(device)
    scripted.assert_left()
    if way is not _broken:
        assert model.requests[-1][0] == "deflate"
    assert model.actual_writes[-1] == 0
    steps = [
        (access.op, access.region, access.value)
        for access in scripted.log
        if access.op == "call"
        or (access.op == "write" and access.region == "device")
        or (access.region == "common" and access.offset == STATUS and access.value == 0)
    ]
    order = [
        max(at for at, step in enumerate(steps) if step == ("write", "device", 0)),  # actual
        steps.index(("write", "common", 0)),  # reset
        steps.index(("read", "common", 0)),  # confirmed
        steps.index(("call", "bus_master", 0)),
        len(steps) - 1,
    ]
    assert order == sorted(order) and steps[-1] == ("call", "close", 0)
    assert witness.frees
    freed_while_running = [free for free in witness.frees if free[0] or free[1]]
    # Pages that came back from the balloon are freed before the reset; rings and buffers only after it.
    assert all(free == (0xF, True) for free in freed_while_running) and len(freed_while_running) <= 1
    assert driver.held == 0


@pytest.mark.spec("CLN-02")
def test_what_is_out_when_the_device_is_left_is_freed_after_the_reset():
    scripted = ScriptedDevice(Rng(), silent=True)
    device = identify(scripted, timeout=LONG)
    rng = RngDriver(device)
    device.interrupt(Enough())
    with pytest.raises(Enough):
        rng.read(10)
    assert device.queues[0].ring.in_flight == 1
    witness = Witness(scripted)
    device.close()
    assert witness.frees and set(witness.frees) == {(0, False)}
    scripted.assert_left()


@pytest.mark.parametrize("error", [DeviceFailure("scripted"), ValueError("scripted"), KeyboardInterrupt()])
def test_whatever_goes_wrong_in_giving_back_the_device_is_reset(error: BaseException):
    def give_back(working: bool) -> None:
        raise error

    scripted = ScriptedDevice(Rng())
    device = identify(scripted)
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)], give_back=give_back)
    if isinstance(error, UvirtioError):
        device.close()
        assert device.broken is error
    else:
        with pytest.raises(type(error)):
            device.close()
    scripted.assert_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_on_the_way_out_waits_until_the_device_is_left(number: int):
    came: list[int] = []
    done: list[bool] = []

    def give_back(working: bool) -> None:
        signal.raise_signal(number)
        done.append(working)

    def handler(number: int, frame: object) -> None:
        came.append(number)
        assert scripted.closed
        raise Enough

    scripted = ScriptedDevice(Rng())
    device = identify(scripted)
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)], give_back=give_back)
    before = signal.signal(number, handler)
    try:
        with pytest.raises(Enough):
            device.close()
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert (came, done) == ([number], [True])
    scripted.assert_left()


def test_giving_back_may_wait_even_when_closed_from_another_thread():
    seen: list[object] = []
    looks = 0

    def ready() -> bool:
        nonlocal looks
        looks += 1
        return False

    def give_back(working: bool) -> None:
        seen.append(device.wait(ready, timeout=SHORT, what="nothing", owed=False))
        device.interrupt(Enough())  # too late to matter
        seen.append(device.wait(ready, timeout=0.01, what="nothing", owed=False))

    scripted = ScriptedDevice(Rng())
    device = identify(scripted)
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)], give_back=give_back)
    _from_a_thread(device)
    assert seen == [False, False]
    assert looks < 20, "it spun"
    scripted.assert_left()


def test_starting_over_leaves_in_order_first():
    model = Balloon()
    scripted = ScriptedDevice(model)
    with identify(scripted) as device:
        BalloonDriver(device).inflate(5)
        with BalloonDriver(device) as second:
            assert model.actual_writes[-1] == 0 and not model.frames
            assert second.inflate(2) == 2
    scripted.assert_left()


EXIT = """
import atexit, sys
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as Driver

scripted = ScriptedDevice(Balloon())

@atexit.register  # the last in is the first out: this runs after the device was left
def report():
    scripted.assert_left()
    print("left in order", scripted.model.actual_writes[-1], scripted.log[-1].region)

driver = Driver(opening.identify("0000:00:04.0", scripted, timeout=1.0))
driver.inflate(300)
{end}
"""


@pytest.mark.fault(92)
@pytest.mark.spec("CLN-02")
@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("sys.exit(7)", 7), ("raise KeyboardInterrupt", -signal.SIGINT), ("1 / 0", 1)]
)
def test_the_end_of_the_interpreter_leaves_in_order(end: str, code: int):
    done = run_program(EXIT.format(end=end))
    assert done.stdout == "left in order 0 close\n", done.stderr
    assert done.returncode == code


# --- every call that waits ends -----------------------------------------------------------------------------


def _deflate(device: Device) -> None:
    driver = BalloonDriver(device)
    driver.inflate(2)
    device.transport.backend.faults.silent = True  # type: ignore[attr-defined]
    driver.deflate(1)


def _leave(device: Device) -> None:
    driver = BalloonDriver(device)
    driver.inflate(2)
    device.transport.backend.faults.silent = True  # type: ignore[attr-defined]
    driver.close()
    assert isinstance(device.broken, DeviceTimeout)


def _follow(device: Device) -> None:
    device.transport.backend.model.config[:4] = struct.pack("<I", 5)  # type: ignore[attr-defined]
    BalloonDriver(device).follow(timeout=SHORTER)


def _restart(device: Device) -> None:
    RngDriver(device)
    device.transport.backend.faults.reset_reads = -1  # type: ignore[attr-defined]
    RngDriver(device)


@pytest.mark.parametrize(
    ("model", "silent", "call", "error"),
    [
        (Rng, True, lambda device: RngDriver(device).read(10), DeviceTimeout),
        (Rng, True, lambda device: RngDriver(device).read(10, timeout=0.01), DeviceTimeout),
        (Rng, False, _restart, DeviceBroken),
        (Balloon, True, lambda device: BalloonDriver(device).inflate(1), DeviceTimeout),
        (Balloon, True, lambda device: BalloonDriver(device).inflate(1, timeout=0.01), DeviceTimeout),
        (Balloon, False, _deflate, DeviceTimeout),
        (Balloon, False, _leave, None),
        (Balloon, True, _follow, DeviceTimeout),
        (Input, True, lambda device: InputDriver(device).read(timeout=SHORTER), None),
        (Input, True, lambda device: list(InputDriver(device).events(timeout=SHORTER)), None),
        (Rng, True, lambda device: device.wait(never, timeout=SHORTER, what="it"), DeviceTimeout),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_no_call_waits_for_ever_on_a_silent_device(
    model: type[Model],
    silent: bool,
    call: Callable[[Device], object],
    error: type[UvirtioError] | None,
    mode: InterruptMode,
):
    scripted = ScriptedDevice(model(), silent=silent)
    device = identify(scripted, timeout=SHORTER if silent else SHORT, mode=mode)
    begun = time.monotonic()
    if error is None:
        call(device)
    else:
        with pytest.raises(error):
            call(device)
    device.close()
    assert time.monotonic() - begun < SHORT + 10
    scripted.assert_obedient()
    assert scripted.closed


def test_the_counters_by_their_old_names_are_there_for_one_release():
    with identify(ScriptedDevice(Rng())) as device:
        for name in ("config_changes", "interrupts_taken", "missed_interrupts", "interrupt_storms", "polled"):
            with pytest.warns(DeprecationWarning, match=f"Device.counters.{name}"):
                assert getattr(device, name) == getattr(device.counters, name)
        with pytest.raises(AttributeError, match="interrupts_given"):
            device.interrupts_given  # noqa: B018

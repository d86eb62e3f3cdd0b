"""What a balloon can beside growing: statistics, hints, reports, poison; a floor, and memory that runs out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.balloon import BYTES, Arena, Collector, Use, default_floor
from uvirtio.drivers.balloon import Balloon as Driver
from uvirtio.drivers.balloon import arena as arenas
from uvirtio.drivers.balloon import follow as following
from uvirtio.drivers.balloon.free_memory import FreeMemory, Pressure
from uvirtio.drivers.balloon.hints import encode as encode_command
from uvirtio.drivers.balloon.stats import StatsQueue
from uvirtio.drivers.balloon.stats import encode as encode_stats
from uvirtio.errors import (
    BadSize,
    Closed,
    ConfigError,
    DeviceBroken,
    DeviceTimeout,
    MemlockExceeded,
    NotSupported,
    OperationFailed,
    QueueError,
    Refused,
    UsageError,
)
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon, Numbering
from uvirtio.scripted.memory import ScriptedBlock, ScriptedDma
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import balloon as spec
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.balloon import Stat
from uvirtio.spec.status import Status

MIB = 1 << 20
STATS, OOM = f.mask(f.Balloon.STATS_VQ), f.mask(f.Balloon.DEFLATE_ON_OOM)
HINT, POISON = f.mask(f.Balloon.FREE_PAGE_HINT), f.mask(f.Balloon.PAGE_POISON)
REPORT = f.mask(f.Balloon.PAGE_REPORTING)
DONE, STOP = spec.CMD_ID_DONE, spec.CMD_ID_STOP


def identify(scripted: ScriptedDevice, timeout: float = 30.0) -> Device:
    # Polling: a turn of the wait loop takes a millisecond, and no test waits for a slice to end.
    return opening.identify("0000:00:04.0", scripted, timeout=timeout, interrupts=[InterruptMode.POLLING])


class Rig:
    """A driver that is up with these options, and both ends of it."""

    def __init__(
        self, model: Balloon, *, timeout: float = 30.0, how: dict[str, object] | None = None, **options: object
    ) -> None:
        self.model = model
        self.scripted = ScriptedDevice(model, **(how or {}))  # type: ignore[arg-type]
        self.device = identify(self.scripted, timeout)
        self.driver = Driver(self.device, **options)  # type: ignore[arg-type]

    def turn(self, until: Callable[[], bool] = lambda: False, timeout: float = 0.02) -> bool:
        """The wait loop, until something is so."""

        def ready() -> bool:
            self.driver.serve()
            return until()

        return self.device.wait(ready, timeout=timeout, what="nothing", owed=False)

    def soon(self, what: Callable[[], bool]) -> None:
        assert self.turn(what, 20.0)

    def leave(self) -> None:
        self.device.close()
        self.scripted.assert_left()
        assert self.model.actual == 0


class Machine:
    """A /proc of our own, whose memory can be moved."""

    def __init__(self, root: Path) -> None:
        self.roots = Roots.under(root)
        self.roots.proc.mkdir()
        self.total = 4096 * MIB
        self.available(1024 * MIB)

    def available(self, size: int) -> None:
        fresh = self.roots.proc / "meminfo.new"
        fresh.write_text(
            f"MemTotal: {self.total >> 10} kB\nMemFree: {size >> 11} kB\nMemAvailable: {size >> 10} kB\n"
            "Buffers: 1 kB\nCached: 20 kB\nSwapCached: 3 kB\nHugePages_Total:   7\nodd line\n\n"
        )
        fresh.replace(self.roots.proc / "meminfo")

    def lose(self, patch: pytest.MonkeyPatch, left: Callable[[int], int]) -> None:
        """From now on, ``left`` says what is available once so many bytes were pinned in all."""
        pin, pinned = ScriptedDma.pin, 0

        def losing(space: ScriptedDma, size: int) -> ScriptedBlock:
            nonlocal pinned
            pinned += size
            self.available(left(pinned))
            return pin(space, size)

        patch.setattr(ScriptedDma, "pin", losing)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- queues and features (5.5.2, 5.5.3) ---------------------------------------------------------------------


ALL = STATS | HINT | REPORT
NUMBERINGS: list[Numbering] = ["standard", "offered", "negotiated"]
QUEUES = {"stats": "statsq", "hint": "free_page_vq", "report": "reporting_vq"}
"""What the scripted device calls a queue, and what the driver does."""


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("features", [0, STATS, HINT, REPORT, STATS | HINT, STATS | REPORT, HINT | REPORT, ALL])
@pytest.mark.parametrize("options", [("hinting",), ("reporting",), ("hinting", "reporting")], ids="+".join)
def test_each_optional_queue_is_found_where_the_device_has_it(
    numbering: Numbering, features: int, options: tuple[str, ...]
):
    rig = Rig(Balloon(features=features, numbering=numbering), **dict.fromkeys(options, True))
    found = {index: queue.name for index, queue in rig.device.queues.items() if index > spec.DEFLATEQ}
    assert found.items() <= {index: QUEUES.get(role) for index, role in rig.model.roles.items()}.items()
    assert ("reporting_vq" in found.values()) == ("reporting" in options and bool(features & REPORT))
    assert ("free_page_vq" in found.values()) == bool(features & HINT), "taken for the numbering's sake too"
    assert ("statsq" in found.values()) == bool(features & STATS)
    with rig.driver.arena(arenas.RANGE) as arena:
        if rig.driver.reports is not None:
            assert rig.driver.report(arena) == arena.size
        if rig.driver.stats is not None:
            rig.model.ask_for_stats()
            rig.soon(lambda: len(rig.model.stats) == 2)
        if rig.driver.hints is not None:
            rig.model.set_hint_id(2)
            rig.soon(lambda: rig.model.hints == [("command", 2), ("command", STOP)])
    rig.driver.inflate(3)
    rig.leave()


@pytest.mark.parametrize(
    ("features", "numbering", "shows", "options"),
    [
        # A queue at the standard's index, and one at the index without gaps: one of them is something else.
        *((STATS | REPORT, numbering, 5, {"reporting": True}) for numbering in NUMBERINGS),
        *((REPORT, numbering, 5, {"reporting": True}) for numbering in NUMBERINGS),
        *((HINT, numbering, 4, {"hinting": True}) for numbering in NUMBERINGS),
        *((HINT | REPORT, numbering, 5, {"reporting": True}) for numbering in NUMBERINGS),
        # Offered and not taken: those that count what is offered have it elsewhere than those that do not.
        (STATS | REPORT, "offered", 0, {"reporting": True, "stats": None}),
        (STATS | REPORT, "negotiated", 0, {"reporting": True, "stats": None}),
        *((STATS | HINT, numbering, 0, {"hinting": True, "stats": None}) for numbering in NUMBERINGS),
        *((ALL, numbering, 0, {"reporting": True, "stats": None}) for numbering in NUMBERINGS),
    ],
)
def test_where_two_numberings_fit_none_is_taken(
    features: int, numbering: Numbering, shows: int, options: dict[str, object]
):
    model = Balloon(features=features, numbering=numbering, shows=shows)
    scripted = ScriptedDevice(model)
    with identify(scripted) as device:
        with pytest.raises(NotSupported, match="cannot be known") as caught:
            Driver(device, **options)  # type: ignore[arg-type]
        assert "without gaps" in str(caught.value.seen)
        assert ("stats=" in str(caught.value.remedy)) == ("stats" in options), "the way out that there is"
        if "stats" in options:  # and it is one
            options.pop("stats")
            with Driver(device, **options) as driver, driver.arena(4096) as arena:  # type: ignore[arg-type]
                assert driver.reports is None or driver.report(arena) == 4096
    scripted.assert_left()


def test_a_hole_among_the_queues_is_the_standards():
    rig = Rig(Balloon(features=STATS | REPORT, numbering="standard"), reporting=True, stats=None)
    assert sorted(rig.device.queues) == [0, 1, 4]
    with rig.driver.arena(4096) as arena:
        assert rig.driver.report(arena) == 4096
    rig.leave()


@pytest.mark.parametrize("lacking", [spec.REPORTING_VQ, spec.STATSQ])
def test_a_feature_whose_queue_is_nowhere_is_an_error(lacking: int):
    model = Balloon(features=STATS | REPORT, numbering="standard")
    scripted = ScriptedDevice(model, queue_size={lacking: 0})
    with identify(scripted) as device:
        if lacking == spec.STATSQ:  # then statistics are left out, and 4 can be nothing but the reporting queue
            with Driver(device, reporting=True) as driver, driver.arena(4096) as arena:
                assert driver.stats is None and driver.report(arena) == arena.size
        else:
            with pytest.raises(QueueError, match="no place for statsq, reporting_vq"):
                Driver(device, reporting=True)
    scripted.assert_left()


def test_what_comes_last_need_not_be_taken():
    rig = Rig(Balloon(features=ALL, numbering="negotiated", shows=5), stats=None)
    assert sorted(rig.device.queues) == [0, 1]
    rig.leave()
    rig = Rig(Balloon(features=ALL, numbering="negotiated", shows=5), hinting=True)
    assert sorted(rig.device.queues) == [0, 1, 2, 3]
    rig.leave()


@pytest.mark.spec("BAL-F01", "BAL-F02")
def test_everything_is_taken_that_was_asked_for():
    every = f.mask(*f.Balloon)
    rig = Rig(Balloon(features=every), hinting=True, reporting=True, poison=7)
    assert rig.device.features & f.DEVICE_TYPE_MASK == every
    assert sorted(rig.device.queues) == [0, 1, 2, 3, 4]
    rig.leave()
    rig = Rig(Balloon(features=every), stats=None, deflate_on_oom=False)
    assert rig.device.features & f.DEVICE_TYPE_MASK == f.mask(f.Balloon.MUST_TELL_HOST)
    assert sorted(rig.device.queues) == [0, 1]
    rig.leave()


@pytest.mark.fault(65)
@pytest.mark.spec("BAL-F03")
@pytest.mark.parametrize(
    ("offered", "poison", "taken"),
    [(REPORT, 0, 0), (REPORT, None, REPORT), (REPORT | POISON, 0, REPORT | POISON), (POISON, None, 0)],
)
def test_reporting_needs_poison_where_free_pages_keep_a_value(offered: int, poison: int | None, taken: int):
    rig = Rig(Balloon(features=offered), reporting=True, poison=poison)
    assert rig.device.features & f.DEVICE_TYPE_MASK == taken
    rig.leave()


def test_options_that_make_no_sense():
    with identify(ScriptedDevice(Balloon())) as device:
        for wrong in ({"poison": -1}, {"poison": 1 << 32}, {"floor": -1}):
            with pytest.raises(UsageError):
                Driver(device, **wrong)  # type: ignore[arg-type]
        assert device.transport.status() == 0


def test_what_was_not_negotiated_is_refused_with_the_reason():
    rig = Rig(Balloon(features=HINT))
    with rig.driver.arena(4096) as arena:
        for call in (rig.driver.lend, rig.driver.report):
            with pytest.raises(NotSupported) as caught:
                call(arena)
            assert "offered" in caught.value.seen
    rig.leave()


# --- statistics (5.5.6.3) -----------------------------------------------------------------------------------


class Source:
    """Statistics that count how often they were asked for."""

    def __init__(self, **first: int) -> None:
        self.calls = 0
        self.more: dict[int, int] = {}
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> dict[int, int]:
        self.calls += 1
        assert self.gate.wait(30)
        return {Stat.MEMFREE: self.calls, Stat.MEMTOT: 1 << 64, **self.more}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatsQueue, "INTERVAL", 0.0)


@pytest.mark.spec("BAL-S02", "BAL-S05", "BAL-S07")
def test_the_first_buffer_is_posted_before_driver_ok_and_kicked_after():
    rig = Rig(Balloon(features=STATS), stats=Source())
    assert rig.model.stats == [{Stat.MEMFREE: 1, Stat.MEMTOT: 0}], "64 bits, modulo"
    kicks = [place for place, access in enumerate(rig.scripted.log) if access.region == "notify"]
    ok = [
        place
        for place, access in enumerate(rig.scripted.log)
        if access[:3] == ("write", "common", pci.COMMON_DEVICE_STATUS) and access.value & Status.DRIVER_OK
    ]
    assert len(kicks) == 1 and kicks[0] > ok[0]
    rig.leave()


def test_first_values_that_do_not_come_have_a_deadline():
    source = Source()
    source.gate.clear()
    with pytest.raises(OperationFailed, match="could not be collected") as caught:
        Rig(Balloon(features=STATS), timeout=0.05, stats=source)
    source.gate.set()
    assert caught.value.seen == "nothing in 0.05 s" and "stats=None" in str(caught.value.remedy)


@pytest.mark.spec("BAL-S01", "BAL-S03", "BAL-S04", "BAL-S06")
def test_each_return_of_the_buffer_is_answered_with_fresh_values(at_once: None):
    source = Source()
    rig = Rig(Balloon(features=STATS), stats=source)
    for number in range(2, 12):
        # A value that comes or goes later does not change the set.
        source.more = {Stat.SWAP_IN: 5} if number % 2 else {}
        rig.model.ask_for_stats()
        rig.soon(lambda number=number: len(rig.model.stats) == number)
        assert rig.model.stats[-1][Stat.MEMFREE] == number
    assert rig.driver.stats is not None and rig.driver.stats.requests == 10
    assert {tuple(entries) for entries in rig.model.stats} == {(Stat.MEMFREE, Stat.MEMTOT)}
    rig.leave()


@pytest.mark.spec("BAL-S06")
def test_a_value_that_goes_missing_stays_as_it_was(at_once: None):
    values = {Stat.MEMFREE: 1, Stat.MEMTOT: 2}
    rig = Rig(Balloon(features=STATS), stats=lambda: values)
    del values[Stat.MEMTOT]
    values[Stat.MEMFREE] = 9
    rig.model.ask_for_stats()
    rig.soon(lambda: len(rig.model.stats) == 2)
    assert rig.model.stats[-1] == {Stat.MEMFREE: 9, Stat.MEMTOT: 2}
    rig.leave()


def test_a_quick_collector_answers_at_once(at_once: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StatsQueue, "_PATIENCE", 30.0)
    rig = Rig(Balloon(features=STATS), stats=Source())
    rig.model.ask_for_stats()
    rig.driver.serve()
    assert len(rig.model.stats) == 2, "in the same turn of the wait loop"
    rig.leave()


def test_a_slow_collector_holds_up_nothing(at_once: None):
    source = Source()
    rig = Rig(Balloon(features=STATS), stats=source)
    source.gate.clear()
    rig.model.ask_for_stats()
    assert rig.driver.inflate(600) == 600, "while the collector hangs"
    rig.model.set_target(10)
    rig.driver.follow(timeout=0.01)
    assert rig.driver.held == 10 and len(rig.model.stats) == 1
    source.gate.set()
    rig.soon(lambda: len(rig.model.stats) == 2)
    rig.leave()


@pytest.mark.fault(63)
def test_a_collector_that_hangs_at_the_start_is_an_error_in_time():
    source = Source()
    source.gate.clear()
    scripted = ScriptedDevice(Balloon(features=STATS))
    with identify(scripted, timeout=0.05) as device, pytest.raises(OperationFailed, match="statistics"):
        Driver(device, stats=source)
    source.gate.set()
    scripted.assert_left()


@pytest.mark.parametrize("error", [OSError("gone"), OperationFailed("gone", seen="x", expected="y")])
def test_a_collector_that_fails_at_the_start_is_that_error(error: Exception):
    def broken() -> dict[int, int]:
        raise error

    scripted = ScriptedDevice(Balloon(features=STATS))
    with identify(scripted, 30) as device, pytest.raises(OperationFailed, match=r"gone|collected") as caught:
        Driver(device, stats=broken)
    assert caught.value is error or "OSError: gone" in str(caught.value.seen)
    scripted.assert_left()


def test_a_collector_that_fails_later_does_not_end_the_balloon(at_once: None):
    def broken() -> dict[int, int]:
        if rig_is_up:
            raise OSError("gone")
        return {Stat.MEMFREE: 3}

    rig_is_up = False
    rig = Rig(Balloon(features=STATS), stats=broken)
    rig_is_up = True
    rig.model.ask_for_stats()
    rig.soon(lambda: len(rig.model.stats) == 2)
    assert rig.model.stats[-1] == {Stat.MEMFREE: 3}
    assert rig.driver.stats is not None and isinstance(rig.driver.stats.failures[0], OSError)
    rig.leave()


@pytest.mark.fault(63)
def test_a_storm_of_requests_is_answered_ten_times_a_second_at_most():
    class InterruptStorm(Balloon):
        def _take_stats(self, chain) -> None:  # type: ignore[no-untyped-def]
            super()._take_stats(chain)
            self.storm.append(time.monotonic())

        storm: list[float] = []  # noqa: RUF012

    model = InterruptStorm(features=STATS)
    model.storm = []
    rig = Rig(model, stats=Source())

    def again() -> bool:
        if model.stats_chain is not None:
            model.ask_for_stats()
        return len(model.storm) == 5

    rig.soon(again)
    # Of all of them together: a single one may be seen late, on a busy machine, and the next one in time.
    assert model.storm[-1] - model.storm[0] > (len(model.storm) - 1) * StatsQueue.INTERVAL * 0.9
    rig.leave()


def test_an_answer_comes_while_the_balloon_is_held_and_while_it_follows(at_once: None):
    rig = Rig(Balloon(features=STATS), stats=Source())
    for call in (rig.driver.hold, rig.driver.follow):
        before = len(rig.model.stats)
        rig.model.ask_for_stats()
        call(timeout=0.2)
        assert len(rig.model.stats) == before + 1
    rig.leave()


EVENTS = (
    "pswpin 1\npswpout 2\npgmajfault 5\npgfault 40\nhtlb_buddy_alloc_success 6\nhtlb_buddy_alloc_fail 7\n"
    "oom_kill 8\nallocstall_dma 1\nallocstall_normal 2\nallocstall_movable 6\npgscan_kswapd 3\npgscan_direct 4\n"
    "pgscan_direct_throttle 99\npgsteal_kswapd 10\npgsteal_direct 11\n"
)


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_each_statistic_is_in_the_unit_that_linux_sends(machine: Machine, page_size: int):
    # drivers/virtio/virtio_balloon.c: pages_to_bytes() or not; /proc/meminfo is in KiB, /proc/vmstat in pages.
    (machine.roots.proc / "vmstat").write_text(EVENTS)
    found = Collector(machine.roots, page_size=page_size)()
    pages = {
        Stat.SWAP_IN: 1,
        Stat.SWAP_OUT: 2,
        Stat.ASYNC_SCAN: 3,
        Stat.DIRECT_SCAN: 4,
        Stat.ASYNC_RECLAIM: 10,
        Stat.DIRECT_RECLAIM: 11,
    }
    bytes_ = {
        Stat.MEMFREE: 512 * MIB,
        Stat.MEMTOT: 4096 * MIB,
        Stat.AVAIL: 1024 * MIB,
        Stat.CACHES: 24 << 10,
    }
    events = {
        Stat.MAJFLT: 5,
        Stat.MINFLT: 40,
        Stat.HTLB_PGALLOC: 6,
        Stat.HTLB_PGFAIL: 7,
        Stat.OOM_KILL: 8,
        Stat.ALLOC_STALL: 9,
    }
    assert found == {tag: count * page_size for tag, count in pages.items()} | bytes_ | events
    assert [*found] == sorted(found)
    assert pages.keys() | bytes_.keys() == BYTES and pages.keys() | bytes_.keys() | events.keys() == {*Stat}
    if page_size == 4096:
        assert found[Stat.ASYNC_SCAN] == 12288


def test_the_size_of_a_page_is_this_kernels(machine: Machine):
    (machine.roots.proc / "vmstat").write_text("pswpin 1\n")
    assert Collector(machine.roots)()[Stat.SWAP_IN] == os.sysconf("SC_PAGE_SIZE")


def test_without_a_proc_there_are_no_statistics(tmp_path: Path):
    with pytest.raises(NotSupported):
        Collector(Roots.under(tmp_path))()
    rig = Rig(Balloon(features=STATS), roots=Roots.under(tmp_path))
    assert rig.driver.stats is None and not rig.device.has(f.Balloon.STATS_VQ)
    rig.leave()


@pytest.mark.spec("BAL-S05", "BAL-L04", "BAL-L05")
def test_the_codecs_know_both_byte_orders():
    assert encode_stats({1: 2}) == b"\x01\0" + b"\x02" + bytes(7)
    assert encode_stats({1: 2}, "big") == b"\0\x01" + bytes(7) + b"\x02"
    assert encode_command(0x01020304) == b"\4\3\2\1"
    assert encode_command(0x01020304, "big") == b"\1\2\3\4"


# --- hints (5.5.6.5) ----------------------------------------------------------------------------------------


class HintRig(Rig):
    """With 8 MiB lent for hints."""

    def __init__(self, *, size: int = 8 * MIB, lend: bool = True, translated: bool = True) -> None:
        super().__init__(Balloon(features=HINT), hinting=True, how={"access_platform": translated})
        self.arena = self.driver.arena(size)
        if lend:
            self.driver.lend(self.arena)

    @property
    def commands(self) -> list[int]:
        return [value for kind, value in self.model.hints if kind == "command"]

    def start(self, ident: int) -> None:
        """A round, to its end."""
        self.model.set_hint_id(ident)
        self.soon(lambda: not self.out and ("command", ident) in self.model.hints and not self.supplying)

    @property
    def out(self) -> int:
        return self.arena.bytes_in(Use.OUT)

    @property
    def supplying(self) -> bool:
        assert self.driver.hints is not None
        return self.driver.hints.supplying


@pytest.mark.spec("BAL-H01", "BAL-H02", "BAL-H03", "BAL-H04", "BAL-H06")
@pytest.mark.parametrize("translated", [True, False])
def test_a_round_is_the_id_then_pages_then_stop(translated: bool):
    rig = HintRig(translated=translated)
    rig.turn()
    assert not rig.model.hints, "the host has not asked"
    rig.start(0x80000000)
    assert rig.model.hints[0] == ("command", 0x80000000) and rig.model.hints[-1] == ("command", STOP)
    pages = rig.model.hints[1:-1]
    assert {kind for kind, _ in pages} == {"pages"}
    assert sum(size for _, size in pages) == rig.arena.size == rig.arena.bytes_in(Use.HINTED) == 8 * MIB
    assert rig.driver.hints is not None and (rig.driver.hints.rounds, rig.driver.hints.hinted) == (1, 8 * MIB)
    rig.leave()


@pytest.mark.spec("BAL-H03")
def test_an_id_that_was_answered_is_stale():
    rig = HintRig()
    rig.start(7)
    for ident in (7, STOP, 7, DONE, 7):
        rig.model.set_hint_id(ident)
        rig.turn()
    rig.model.set_target(5)
    rig.turn()
    assert rig.commands == [7, STOP]
    rig.start(8)
    assert rig.commands == [7, STOP, 8, STOP]
    assert rig.driver.hints is not None and rig.driver.hints.hinted == 16 * MIB
    rig.leave()


@pytest.mark.spec("BAL-H05")
@pytest.mark.parametrize("end", [STOP, DONE])
def test_a_host_that_has_enough_gets_no_more(end: int):
    rig = HintRig(lend=False)
    rig.model.hold = True
    # A queue that is full: the device keeps what it gets, so the round cannot come to its end.
    many = rig.driver.arena(200 * MIB)
    rig.driver.lend(many)
    rig.model.set_hint_id(9)
    rig.soon(lambda: len(rig.model.hints) == 64)
    rig.model.set_hint_id(end)
    rig.turn()
    rig.model.release()
    rig.turn()
    rig.turn()
    assert len(rig.model.hints) == 64
    assert many.bytes_in(Use.OUT) == 0
    assert (many.bytes_in(Use.HINTED) > 0) == (end == STOP)
    rig.leave()


@pytest.mark.spec("BAL-H02", "BAL-H09")
def test_a_new_round_in_the_middle_of_another_starts_with_its_id():
    rig = HintRig(size=200 * MIB)
    rig.model.hold = True
    rig.model.set_hint_id(9)
    rig.soon(lambda: len(rig.model.hints) == 64)
    rig.model.set_hint_id(10)
    rig.turn()
    rig.model.hold = False
    rig.model.release()
    rig.soon(lambda: not rig.supplying and not rig.out)
    assert rig.commands == [9, 10, STOP]
    assert rig.arena.bytes_in(Use.HINTED) == rig.arena.size
    rig.model.set_hint_id(DONE)
    rig.soon(lambda: rig.arena.bytes_in(Use.FREE) == rig.arena.size)
    rig.leave()


@pytest.mark.spec("BAL-H07", "BAL-H08")
def test_a_hinted_range_is_filled_before_it_is_used():
    rig = HintRig()
    rig.model.scribble = b"JUNK"
    rig.start(2)
    with pytest.raises(Refused):
        rig.arena.view(rig.arena.ranges[0])
    one = rig.arena.take()  # before DONE
    with rig.arena.view(one) as view:
        assert bytes(view) == bytes(one.size)
    rig.model.set_hint_id(DONE)
    rig.soon(lambda: rig.arena.bytes_in(Use.HINTED) == 0)
    assert one.use is Use.TAKEN
    rig.arena.give(one)
    with pytest.raises(Refused):
        rig.arena.give(one)
    rig.leave()


@pytest.mark.spec("BAL-H02", "BAL-H06")
def test_a_round_without_anything_to_say_is_opened_and_closed():
    rig = HintRig(lend=False)
    rig.start(5)
    assert rig.commands == [5, STOP]
    rig.leave()


def test_a_round_that_was_open_before_the_start_is_answered():
    model = Balloon(features=HINT)
    model.config[8:12] = (77).to_bytes(4, "little")
    rig = Rig(model, hinting=True)
    rig.soon(lambda: model.hints == [("command", 77), ("command", STOP)])
    rig.leave()


def test_a_host_that_offers_hints_and_has_no_id_is_told_so():
    rig = Rig(Balloon(features=HINT, config_length=8), hinting=True)
    with pytest.raises(ConfigError), rig.device.session():
        rig.driver.serve()
    rig.device.close()
    rig.scripted.assert_left()


@pytest.mark.fault(64)
def test_ids_in_any_order_and_number_never_break_a_rule():
    rig = HintRig(size=4 * MIB)
    rig.model.hold = True
    for ident in [*range(2, 40), STOP, 40, DONE, 41, 41, STOP, 41, 42]:
        rig.model.set_hint_id(ident)
        rig.turn(timeout=0.001)
        if ident % 7 == 0:
            rig.model.release()
    rig.model.hold = False
    rig.model.release()
    rig.soon(lambda: not rig.out and not rig.supplying and rig.commands[-1] == STOP)
    assert rig.commands[-2] == 42
    rig.leave()


# --- reports (5.5.6.7) --------------------------------------------------------------------------------------


@pytest.mark.spec("BAL-R04", "BAL-R06")
@pytest.mark.parametrize("translated", [True, False])
def test_free_memory_is_reported_in_large_pieces(translated: bool):
    rig = Rig(Balloon(features=REPORT), reporting=True, how={"access_platform": translated})
    assert not rig.model.reports
    with rig.driver.arena(8 * MIB) as arena:
        assert rig.driver.report(arena) == 8 * MIB
        lengths = [sum(elements) for elements in rig.model.reports]
        assert sum(lengths) == 8 * MIB
        if translated:
            assert len(lengths) <= 5 and max(lengths) == 2 * MIB
        else:
            assert all(len(elements) <= 16 for elements in rig.model.reports), "scattered pages, 16 at a time"
        assert arena.bytes_in(Use.REPORTED) == 8 * MIB
        assert rig.driver.report(arena) == 0, "it knows by now"
    assert not rig.model.requests, "5.5.6.7: the device is not told when they are used again"
    rig.leave()


@pytest.mark.spec("BAL-R01", "BAL-R05")
def test_what_was_reported_is_filled_when_it_is_used_and_used_last():
    rig = Rig(Balloon(features=REPORT), reporting=True, how={"access_platform": True})
    rig.model.scribble = b"JUNK"
    with rig.driver.arena(4 * MIB) as arena:
        first = arena.take()
        assert rig.driver.report(arena) == 4 * MIB - first.size
        arena.give(first)
        assert arena.take() is first, "the one that the host does not know"
        one = arena.take()
        with arena.view(one) as view:
            assert bytes(view) == bytes(one.size)
    rig.leave()


@pytest.mark.spec("BAL-R02", "BAL-P01")
def test_with_poison_pages_hold_it_before_they_are_reported():
    class Reads(Balloon):
        seen: bytes = b""

        def _take_free(self, chain) -> int:  # type: ignore[no-untyped-def]
            self.seen += b"".join(self.device.memory.read(one.address, one.length) for one in chain.writable)
            return super()._take_free(chain)

    model = Reads(features=REPORT | POISON)
    rig = Rig(model, reporting=True, poison=0xA1B2C3D4)
    pattern = (0xA1B2C3D4).to_bytes(4, "little")
    with rig.driver.arena(MIB) as arena:
        assert rig.driver.report(arena) == MIB
        assert model.seen == pattern * (MIB // 4)
        with arena.view(one := arena.take()) as view:
            assert bytes(view) == pattern * (one.size // 4)
    rig.leave()


@pytest.mark.spec("BAL-R03")
def test_a_range_is_out_of_bounds_until_the_device_has_answered():
    rig = Rig(Balloon(features=REPORT), reporting=True, timeout=0.05)
    rig.model.hold = True
    arena = rig.driver.arena(4096)
    with pytest.raises(DeviceTimeout):
        rig.driver.report(arena)
    assert arena.bytes_in(Use.OUT) == 4096
    for call in (
        arena.take,
        lambda: arena.view(arena.ranges[0]),
        lambda: arena.give(arena.ranges[0]),
        arena.close,
    ):
        with pytest.raises((Refused, OperationFailed)):
            call()
    with pytest.raises(DeviceBroken):
        rig.driver.report(arena)
    rig.device.close()
    rig.scripted.assert_left()


def test_an_interrupted_report_comes_back_later():
    class Enough(BaseException):
        pass

    rig = Rig(Balloon(features=REPORT), reporting=True)
    rig.model.hold = True
    arena = rig.driver.arena(4096)
    rig.device.interrupt(Enough())
    with pytest.raises(Enough):
        rig.driver.report(arena)
    assert arena.bytes_in(Use.OUT) == 4096
    rig.model.release()
    rig.soon(lambda: arena.bytes_in(Use.REPORTED) == 4096)
    rig.leave()


def test_an_arena_has_an_end():
    rig = Rig(Balloon(features=REPORT), reporting=True)
    for wrong in (0, -4096, 4097):
        with pytest.raises(BadSize):
            rig.driver.arena(wrong)
    arena = rig.driver.arena(4096)
    arena.take()
    with pytest.raises(OperationFailed):
        arena.take()
    arena.close()
    arena.close()
    with pytest.raises(Closed):
        arena.take()
    given = Arena([rig.device.dma.alloc(3 * 4096)])
    assert rig.driver.report(given) == 3 * 4096
    rig.leave()


# --- poison (5.5.6.6) ---------------------------------------------------------------------------------------


@pytest.mark.spec("BAL-P01", "BAL-P02", "BAL-P03")
def test_the_poison_is_told_once_before_driver_ok_and_fills_what_comes_back():
    rig = Rig(Balloon(features=POISON), poison=0xAA55AA55)
    log = rig.scripted.log
    told = [place for place, access in enumerate(log) if access[:3] == ("write", "device", spec.POISON_VAL)]
    ok = next(
        place
        for place, access in enumerate(log)
        if access[:3] == ("write", "common", pci.COMMON_DEVICE_STATUS) and access.value & Status.DRIVER_OK
    )
    assert len(told) == 1 and told[0] < ok and log[told[0]].value == 0xAA55AA55
    assert rig.driver.poison_val == 0xAA55AA55
    with pytest.raises(AttributeError):
        rig.driver.poison_val = 1  # type: ignore[misc]
    rig.driver.inflate(300)
    block = next(block for block in rig.scripted.memory.open_blocks() if not block.mapped)
    rig.driver.deflate(100)
    assert bytes(block.view[200 * 4096 :]) == b"\x55\xaa\x55\xaa" * (100 * 1024)
    assert bytes(block.view[: 200 * 4096]) == bytes(200 * 4096)
    rig.leave()
    assert len(rig.scripted.writes("device", spec.POISON_VAL)) == 1


def test_a_device_that_offers_poison_and_has_no_place_for_it():
    scripted = ScriptedDevice(Balloon(features=POISON, config_length=12))
    with identify(scripted) as device, pytest.raises(ConfigError, match="has no poison_val"):
        Driver(device, poison=1)
    scripted.assert_left()


# --- how much may go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "floor"), [(512 * MIB, 128 * MIB), (4096 * MIB, 256 * MIB), (100 << 30, 5 << 30), (0, 0)]
)
def test_the_floor_grows_with_the_machine(total: int, floor: int):
    assert default_floor(total) == floor


def test_an_inflate_that_leaves_too_little_is_refused_whole(machine: Machine):
    rig = Rig(Balloon(), roots=machine.roots)
    machine.available(256 * MIB + 8 * MIB)
    with pytest.raises(Refused, match="free-memory") as caught:
        rig.driver.inflate(8 * 256 + 1)
    assert caught.value.exit_code == 3 and "8 MiB" in (caught.value.remedy or "")
    assert rig.driver.held == 0 and not rig.model.requests, "nothing was changed"
    assert rig.driver.inflate(8 * 256) == 8 * 256
    rig.leave()


@pytest.mark.fault(59)
def test_the_floor_is_kept_in_the_middle_of_an_inflate(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(Balloon(), roots=machine.roots)
    machine.available(1024 * MIB)
    machine.lose(monkeypatch, lambda pinned: 259 * MIB - (pinned - 16 * MIB))
    with pytest.raises(Refused, match="free-memory"):
        rig.driver.inflate(20 * 4096)
    # One chunk was under way, and 3 MiB were left above the floor for another.
    assert rig.driver.held == 4096 + 3 * 256 == rig.model.actual
    rig.leave()


def test_force_means_that_the_floor_does_not_count(machine: Machine):
    machine.available(0)
    rig = Rig(Balloon(), roots=machine.roots)
    assert rig.driver.inflate(5000, force=True) == 5000
    with pytest.raises(Refused, match="free-memory"):
        rig.driver.arena(4096)
    rig.leave()


def test_a_machine_that_does_not_tell_is_not_inflated_by_guess(tmp_path: Path):
    rig = Rig(Balloon(), roots=Roots.under(tmp_path))
    with pytest.raises(Refused, match="not known"):
        rig.driver.inflate(1)
    assert rig.driver.inflate(1, force=True) == 1
    rig.leave()


def test_a_floor_of_ones_own(machine: Machine):
    rig = Rig(Balloon(), roots=machine.roots, floor=0)
    machine.available(4096)
    assert rig.driver.inflate(1) == 1
    with pytest.raises(Refused):
        rig.driver.inflate(2)
    rig.leave()


@pytest.mark.spec("BAL-02")
@pytest.mark.parametrize("features", [0, OOM])
def test_what_the_host_asks_for_is_taken_back_only_where_it_allows_that(features: int):
    rig = Rig(Balloon(features=features))
    rig.driver.inflate(100)
    rig.model.set_target(60)
    assert rig.driver.deflate(40) == 60
    if features:
        assert rig.driver.deflate(10) == 50
    else:
        with pytest.raises(Refused, match="host-target"):
            rig.driver.deflate(10)
        assert rig.driver.held == 60
        assert rig.driver.deflate(10, force=True) == 50
    rig.leave()


# --- following with too little memory -----------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RETRY_FIRST", 0.001)
    monkeypatch.setattr(following, "CALM", 0.001)


@pytest.mark.spec("BAL-01")
@pytest.mark.parametrize("error", [MemoryError("none"), OperationFailed("none"), MemlockExceeded("none")])
def test_memory_that_runs_out_is_asked_for_again_later_each_time(
    quick: None, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    rig = Rig(Balloon())
    real, asked = ScriptedDma.pin, 0

    def pin(space: ScriptedDma, size: int) -> object:
        nonlocal asked
        asked += 1
        if asked <= 6:
            raise error
        return real(space, size)

    monkeypatch.setattr(ScriptedDma, "pin", pin)
    delays: list[float] = []
    rig.model.set_target(700)

    class Reached(BaseException):
        pass

    def progress(held: int) -> None:
        if held == 700:
            rig.device.interrupt(Reached())

    with pytest.raises(Reached):
        rig.driver.follow(progress=progress, shortage=lambda why, delay: delays.append(delay))
    assert delays == pytest.approx([0.001 * 2**power for power in range(6)])
    assert rig.driver.held == rig.model.actual == 700
    rig.leave()


def test_the_floor_is_never_crossed_by_following(machine: Machine, quick: None, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(Balloon(), roots=machine.roots)
    machine.available(256 * MIB + 21 * MIB)
    told: list[Exception] = []
    lowest = 1 << 62

    def left(pinned: int) -> int:
        nonlocal lowest
        lowest = min(lowest, 277 * MIB - pinned)
        return 277 * MIB - pinned

    rig.model.set_target(0xFFFFFFFF)
    with monkeypatch.context() as patched:
        machine.lose(patched, left)
        rig.driver.follow(timeout=0.05, shortage=lambda why, delay: told.append(why))
    assert rig.driver.held == 21 * 256 and lowest == 256 * MIB
    assert told and all("free-memory" in str(why) for why in told)
    machine.available(256 * MIB + 2 * MIB)
    rig.model.set_target(22 * 256)
    rig.driver.follow(timeout=0.05)
    assert rig.driver.held == 22 * 256, "more memory came, and was taken"
    rig.leave()


def test_with_no_memory_left_a_lower_target_is_still_followed_at_once(machine: Machine, monkeypatch):
    monkeypatch.setattr(following, "RETRY_FIRST", 1000.0)
    rig = Rig(Balloon(), roots=machine.roots)
    rig.driver.inflate(300)
    machine.available(0)
    rig.model.set_target(400)
    timer = threading.Timer(0.05, lambda: rig.model.set_target(20))
    timer.start()

    class Reached(BaseException):
        pass

    def progress(held: int) -> None:
        if held == 20:
            rig.device.interrupt(Reached())

    with pytest.raises(Reached):
        rig.driver.follow(progress=progress)
    timer.join()
    rig.leave()


class Squeeze:
    """Pressure that rises on demand."""

    def __init__(self) -> None:
        self.times = 0
        self.closed = False

    def rose(self) -> bool:
        if self.times:
            self.times -= 1
            return True
        return False

    def close(self) -> None:
        self.closed = True


@pytest.mark.fault(59)
@pytest.mark.spec("BAL-02", "BAL-03")
@pytest.mark.parametrize("call", ["follow", "hold"])
def test_under_pressure_pages_come_back_although_the_host_wants_them(machine: Machine, call: str):
    rig = Rig(Balloon(features=OOM), roots=machine.roots)
    rig.model.set_target(3 * 4096)
    rig.driver.follow(timeout=0.01)
    squeeze = Squeeze()
    rig.driver._pressure = squeeze  # type: ignore[assignment]
    squeeze.times = 1
    getattr(rig.driver, call)(timeout=0.05)
    assert rig.driver.held == 2 * 4096 == rig.model.actual, "a chunk, and it does not grow again at once"
    squeeze.times = 100
    getattr(rig.driver, call)(timeout=0.05)
    assert rig.driver.held == 0
    rig.driver.close()
    assert squeeze.closed
    rig.leave()


@pytest.mark.spec("BAL-02")
def test_without_the_feature_pressure_takes_nothing(machine: Machine):
    rig = Rig(Balloon(), roots=machine.roots)
    rig.model.set_target(4096)
    rig.driver.follow(timeout=0.01)
    machine.available(0)
    rig.driver.follow(timeout=0.05)
    assert rig.driver.held == 4096
    rig.leave()


def test_where_the_kernel_does_not_tell_of_pressure_the_floor_does(machine: Machine, quick: None):
    rig = Rig(Balloon(features=OOM), roots=machine.roots)
    rig.driver.inflate(2 * 4096)
    machine.available(256 * MIB - 20 * MIB)
    rig.driver.hold(timeout=0.05)
    assert rig.driver.held == 2 * 4096 - 20 * 256, "what is missing, at once"
    rig.leave()


@pytest.fixture
def kernel_pressure(machine: Machine) -> Iterator[Pressure]:
    if not os.access("/proc/pressure/memory", os.W_OK):
        pytest.skip("this kernel tells nothing of pressure (CONFIG_PSI)")
    made = Pressure(Roots(), FreeMemory(machine.roots))
    yield made
    made.close()
    made.close()


def test_the_kernels_trigger_is_accepted_and_quiet(kernel_pressure: Pressure, machine: Machine):
    if not kernel_pressure.has_psi:
        pytest.skip("this kernel gives no trigger to this user")
    kernel_pressure.rose()
    machine.available(0)
    kernel_pressure._next_look = 0.0
    assert kernel_pressure.rose(), "the floor counts as well"


@pytest.mark.fault(59)
def test_a_trigger_that_fires_is_pressure(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    from uvirtio.host import pressure

    made = Pressure(machine.roots, FreeMemory(machine.roots))
    assert not made.has_psi and not made.rose()
    reader, writer = os.pipe()
    made._trigger._fd = reader
    events = [pressure.select.POLLPRI, 0, pressure.select.POLLERR]

    class Poller:
        def register(self, fd: int, mask: int) -> None:
            assert (fd, mask) == (reader, pressure.select.POLLPRI)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            assert timeout == 0
            event = events.pop(0)
            return [(reader, event)] if event else []

    monkeypatch.setattr(pressure.select, "poll", Poller)
    assert made.rose() and not made.rose() and made.has_psi
    assert not made.rose() and not made.has_psi, "the trigger is gone, MemAvailable is left"
    os.close(writer)

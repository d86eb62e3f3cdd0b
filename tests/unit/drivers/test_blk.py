"""The block driver (5.2) on a scripted disk: what it sends, what it believes, and what it refuses to send."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.blk import Blk, Limits, Request
from uvirtio.drivers.blk.ranges import segments
from uvirtio.errors import (
    BadSize,
    BeyondEnd,
    BlkIoError,
    BlkUnsupported,
    Closed,
    ConfigError,
    DeviceBroken,
    DeviceTimeout,
    NotSupported,
    NotVirtio,
    ProtocolError,
    RingCorruption,
    UsageError,
    UvirtioError,
    WriteRefused,
)
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.blk import FEATURES, JUNK, Disk
from uvirtio.scripted.legacy import ScriptedLegacy
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE, Status
from uvirtio.spec.blk import Request as Kind

ALL = FEATURES | f.mask(
    f.Blk.SIZE_MAX,
    f.Blk.GEOMETRY,
    f.Blk.CONFIG_WCE,
    f.Blk.MQ,
    f.Blk.LIFETIME,
    f.Blk.SECURE_ERASE,
    f.Blk.ZONED,
)


@contextmanager
def driven(
    model: Disk,
    *,
    timeout: float = 30.0,
    interrupts: Any = tuple(InterruptMode),
    without: Any = (),
    **more: Any,
) -> Iterator[tuple[ScriptedDevice, Device, Blk]]:
    """The driver on the model; at the end everything was left in order, and no rule was broken."""
    options = {key: more.pop(key) for key in ("allow_write", "depth", "request_size", "queues") if key in more}
    scripted = ScriptedDevice(model, **more)
    opened = opening.identify("0000:00:04.0", scripted, timeout=timeout, interrupts=interrupts, without=without)
    with opened as device, Blk(device, **options) as blk:
        yield scripted, device, blk
    scripted.assert_left()


def fill(model: Disk) -> bytes:
    data = os.urandom(len(model.content))
    model.content[:] = data
    return data


def kept_back(blk: Blk) -> list[bytes]:
    """Reads that go into the ring together, when they are waited for."""
    out = [blk.submit_read(8 * number, 8, kick=False) for number in range(5)]
    blk.wait(out)
    return [request.result() for request in out]


def kinds(model: Disk) -> list[int]:
    return [seen.type for seen in model.requests]


# --- what is sent -------------------------------------------------------------------------------------------


@pytest.mark.spec("BLK-13", "BLK-L05", "BLK-L02")
@pytest.mark.parametrize("extra", [{}, {"features": FEATURES | f.mask(f.VERSION_1)}])  # with INDIRECT, and without
@pytest.mark.parametrize("sectors", [1, 3, 8, 64, 65, 700])
def test_what_is_written_is_read(sectors: int, extra: dict[str, int]):
    model = Disk()
    data = os.urandom(sectors * SECTOR_SIZE)
    with driven(model, allow_write=True, **extra) as (_, _, blk):
        blk.write(5, data)
        assert model.content[5 * SECTOR_SIZE :][: len(data)] == data
        assert blk.read(5, sectors) == data
        assert blk.read(4, 1) == bytes(SECTOR_SIZE)
        assert not blk.findings
    assert len(model.requests) == 2 * -(-len(data) // blk.request_size) + 1
    # 5.2.6: the header is type, reserved and sector, little-endian, in an element of its own.
    assert all(seen.elements[0] == (16, False) and seen.elements[-1] == (1, True) for seen in model.requests)


def test_nothing_is_nothing():
    model = Disk()
    with driven(model, allow_write=True) as (_, _, blk):
        assert blk.read(0, 0) == b""
        blk.write(0, b"")
        assert model.requests == []


@pytest.mark.spec("BLK-11", "BLK-12", "BLK-L04")
def test_a_flush_is_bare():
    model = Disk()
    with driven(model, allow_write=True) as (_, _, blk):
        blk.write(7, b"x" * SECTOR_SIZE)
        assert model.durable != model.content
        assert blk.flush() is True
        assert model.durable == model.content
    seen = model.requests[-1]
    # 5.2.6.3: FLUSH_OUT is another name of FLUSH; this one is used with old devices too.
    assert (seen.type, seen.sector, seen.elements) == (Kind.FLUSH, 0, [(16, False), (1, True)])


@pytest.mark.spec("BLK-01", "BLK-02", "BLK-03")
@pytest.mark.parametrize(
    ("features", "writeback", "cached"),
    [
        (0, 1, False),
        (f.mask(f.Blk.FLUSH), 0, True),  # no CONFIG_WCE: whatever the field holds, a cache is assumed
        (f.mask(f.Blk.FLUSH, f.Blk.CONFIG_WCE), 1, True),
        (f.mask(f.Blk.FLUSH, f.Blk.CONFIG_WCE), 0, False),
        (f.mask(f.Blk.CONFIG_WCE), 1, False),  # 5.2.5.2: this bit means nothing without FLUSH
    ],
)
def test_whether_there_is_a_cache(features: int, writeback: int, cached: bool):
    model = Disk(features=features, writeback=writeback)
    with driven(model) as (_, device, blk):
        assert blk.write_cache is cached
        assert blk.flush() is device.has(f.Blk.FLUSH)
        assert device.has(f.Blk.FLUSH) is f.has(features, f.Blk.FLUSH)
    assert kinds(model) == [Kind.FLUSH] * f.has(features, f.Blk.FLUSH)


@pytest.mark.spec("BLK-19")
def test_turning_the_cache_off_flushes_what_is_in_it():
    model = Disk(features=ALL)
    with driven(model, allow_write=True) as (_, _, blk):
        blk.write(0, b"a" * SECTOR_SIZE)
        blk.set_write_cache(False)
        assert not blk.write_cache
        assert model.durable == model.content
        assert kinds(model) == [Kind.OUT, Kind.FLUSH]
        blk.set_write_cache(True)
        assert blk.write_cache and model.get("writeback") == 1
        assert kinds(model) == [Kind.OUT, Kind.FLUSH]


def test_the_cache_of_a_device_without_a_switch():
    with driven(Disk()) as (_, _, blk), pytest.raises(NotSupported, match="switch its write cache"):
        blk.set_write_cache(False)


@pytest.mark.spec("BLK-15")
@pytest.mark.parametrize(
    ("told", "name"),
    [(b"", ""), (b"a", "a"), (b"x" * 20, "x" * 20), (b"a\0b", "a"), (b"\xff\x1b", "\\xff\x1b")],
)
def test_the_id(told: bytes, name: str):
    model = Disk(ident=told)
    with driven(model) as (_, _, blk):
        assert blk.identify() == name
    assert model.requests[0].room == 20


def test_the_lifetime():
    with driven(Disk(features=ALL)) as (_, _, blk):
        told = blk.lifetime()
        assert (told.pre_eol_info, told.device_lifetime_est_typ_a, told.device_lifetime_est_typ_b) == (1, 2, 3)
    with driven(Disk()) as (_, _, blk), pytest.raises(NotSupported, match="cannot tell its lifetime"):
        blk.lifetime()


@pytest.mark.spec("BLK-14", "BLK-16", "BLK-20", "BLK-21")
def test_discards_keep_to_the_limits():
    model = Disk(sectors=8192)
    before = fill(model)
    with driven(model, allow_write=True) as (_, _, blk):
        blk.discard(3, 3000)
        blk.discard_ranges([(4000, 1), (5000, 2), (5010, 0), (6000, 3), (7000, 4), (8000, 5)])
    first, second, third, fourth, fifth = model.requests
    ranges = [(at, count) for at, count, _ in struct.iter_unpack("<QII", first.data + second.data + third.data)]
    assert ranges[0] == (3, 253) and ranges[1] == (256, 256)  # cut at a multiple of 8
    assert sum(count for _, count in ranges) == 3000
    assert [len(seen.data) // 16 for seen in (first, second, third)] == [4, 4, 4]
    assert [len(seen.data) // 16 for seen in (fourth, fifth)] == [4, 1]
    after = bytes(model.content)
    assert after[: 3 * SECTOR_SIZE] == before[: 3 * SECTOR_SIZE]
    # What they hold now is this model's business: the driver neither reads it nor promises anything.
    assert after[3 * SECTOR_SIZE : 3003 * SECTOR_SIZE] == JUNK * 3000 * SECTOR_SIZE
    assert Kind.IN not in kinds(model)


@pytest.mark.spec("BLK-14", "BLK-18")
@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes_without_sending_zeroes(unmap: bool):
    model = Disk()
    before = fill(model)
    with driven(model, allow_write=True) as (_, _, blk):
        blk.write_zeroes(10, 1000, unmap=unmap)
        assert blk.read(9, 1002) == before[9 * 512 : 10 * 512] + bytes(1000 * 512) + before[1010 * 512 :][:512]
    told = [struct.unpack("<QII", seen.data) for seen in model.requests if seen.type == Kind.WRITE_ZEROES]
    assert told == [(10, 512, unmap), (522, 488, unmap)]


@pytest.mark.spec("BLK-14", "BLK-17")
def test_secure_erase():
    model = Disk(features=ALL)
    fill(model)
    with driven(model, allow_write=True) as (_, _, blk):
        blk.secure_erase(0, 300)
    assert [len(seen.data) // 16 for seen in model.requests] == [2, 1]
    assert model.content[: 300 * 512] == bytes(300 * 512)


@pytest.mark.parametrize("limits", [{"max_discard_seg": 0}, {"max_discard_sectors": 0}])
def test_a_device_that_offers_discards_and_takes_none(limits: dict[str, int]):
    model = Disk(**limits)
    with driven(model, allow_write=True) as (_, _, blk), pytest.raises(NotSupported, match="limits of 0"):
        blk.discard(0, 1)
    assert model.requests == []


@pytest.mark.parametrize(
    ("ranges", "limits", "expected"),
    [
        ([(0, 10)], Limits(10, 1), [(0, 10)]),
        ([(0, 11)], Limits(10, 1), [(0, 10), (10, 1)]),
        ([(5, 20)], Limits(10, 1, alignment=8), [(5, 3), (8, 8), (16, 9)]),
        ([(5, 20)], Limits(6, 1, alignment=8), [(5, 3), (8, 6), (14, 2), (16, 6), (22, 3)]),
        ([(1, 3)], Limits(1, 1, alignment=1000), [(1, 1), (2, 1), (3, 1)]),
        ([(3, 0), (9, 1)], Limits(1, 1), [(9, 1)]),
    ],
)
def test_how_ranges_are_cut(ranges: list[tuple[int, int]], limits: Limits, expected: list[tuple[int, int]]):
    assert list(segments(ranges, limits)) == expected


# --- what is not sent ---------------------------------------------------------------------------------------


@pytest.mark.spec("BLK-09", "BLK-13")
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda blk: blk.read(100, 1), BeyondEnd),
        (lambda blk: blk.read(99, 2), BeyondEnd),
        (lambda blk: blk.read(1 << 63, 1), BeyondEnd),
        (lambda blk: blk.read(-1, 1), BadSize),
        (lambda blk: blk.read(1, -1), BadSize),
        (lambda blk: blk.write(99, bytes(1024)), BeyondEnd),
        (lambda blk: blk.write(0, bytes(511)), BadSize),
        (lambda blk: blk.submit_read(0, 0), BadSize),
        (lambda blk: blk.submit_read(0, 99), BadSize),
        (lambda blk: blk.submit_read(100, 1), BeyondEnd),
        (lambda blk: blk.submit_read(0, 1, queue=1), UsageError),
        (lambda blk: blk.submit_write(0, bytes(99 * 512)), BadSize),
        (lambda blk: blk.submit_write(99, bytes(1024)), BeyondEnd),
        (lambda blk: blk.discard(99, 2), BeyondEnd),
        (lambda blk: blk.discard_ranges([(0, 1), (100, 1)]), BeyondEnd),
        (lambda blk: blk.write_zeroes(101, 0), BeyondEnd),
        (lambda blk: blk.secure_erase(0, 1), NotSupported),
    ],
)
def test_what_cannot_be_is_not_sent(call: Callable[[Blk], Any], error: type[UvirtioError]):
    model = Disk(sectors=100)
    with driven(model, allow_write=True) as (_, device, blk):
        with pytest.raises(error):
            call(blk)
        assert model.requests == [] and device.broken is None
        blk.read(99, 1)


@pytest.mark.parametrize(("sector", "sectors"), [(100, 1), (99, 2), (40, 80)])
def test_the_sector_that_is_named_is_the_last_of_those_asked_for(sector: int, sectors: int):
    with driven(Disk(sectors=100)) as (_, device, blk):
        with pytest.raises(BeyondEnd) as raised:
            blk.read(sector, sectors)
        assert raised.value.message == f"{device.address} has no sector {sector + sectors - 1}"
        assert raised.value.expected == "within 100 sectors"
        # A library's user has no command line at hand: the remedy names the attribute first.
        assert str(raised.value.remedy).startswith("capacity, ") and blk.capacity == 100


CHANGES: list[Callable[[Blk], Any]] = [
    lambda blk: blk.write(0, bytes(512)),
    lambda blk: blk.submit_write(0, bytes(512)),
    lambda blk: blk.discard(0, 1),
    lambda blk: blk.write_zeroes(0, 1),
    lambda blk: blk.secure_erase(0, 1),
]


@pytest.mark.spec("BLK-10")
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_changes_without_consent_or_on_a_read_only_disk(change: Callable[[Blk], Any]):
    model = Disk(features=ALL)
    with driven(model) as (_, _, blk):
        with pytest.raises(WriteRefused, match="was opened read-only"):
            change(blk)
        assert not blk.read_only
    model = Disk(features=ALL | f.mask(f.Blk.RO))
    with driven(model, allow_write=True) as (_, device, blk):
        assert device.has(f.Blk.RO)  # taken whenever it is offered
        with pytest.raises(WriteRefused, match="read-only"):
            change(blk)
        assert blk.read(0, 1) == bytes(512)
    assert kinds(model) == [Kind.IN]


@pytest.mark.spec("BLK-04", "BLK-07")
def test_zones_are_left_alone():
    model = Disk(features=ALL, zone_sectors=77)
    with driven(model, allow_write=True) as (scripted, device, blk):
        assert f.has(device.offered, f.Blk.ZONED) and not device.has(f.Blk.ZONED)
        blk.write(0, bytes(512))  # a host-aware disk is a plain one for a driver that does not take the bit
        zoned = range(spec.CONFIG[24].offset, spec.CONFIG_SIZE)
        assert not [one for one in scripted.log if one.region == "device" and one.offset in zoned]


# --- limits and configuration -------------------------------------------------------------------------------


@pytest.mark.spec("CFG-04", "BLK-L01")
def test_only_what_features_stand_for_is_read():
    model = Disk(features=0, config_length=8)
    with driven(model) as (_, _, blk):
        config = blk.config
        assert config.capacity == 2048 and config.num_queues == 1
        assert config.size_max is config.seg_max is config.blk_size is config.topology is config.discard is None
    with driven(Disk(features=ALL, queues=2)) as (_, _, blk):
        config = blk.config
        assert (config.size_max, config.seg_max, config.blk_size) == (1 << 20, 32, 512)
        assert config.geometry == (3, 2, 1) and config.writeback is True and config.num_queues == 2
        assert config.topology is not None and config.topology.opt_io_size == 64
        assert config.discard == Limits(256, 4, 8)
        assert config.write_zeroes == Limits(512, 1, 1, True)
        assert config.secure_erase == Limits(128, 2, 1)


@pytest.mark.fault(52)
@pytest.mark.spec("CFG-06")
def test_a_configuration_shorter_than_its_features():
    scripted = ScriptedDevice(Disk(config_length=40))
    with opening.identify("0000:00:04.0", scripted) as device, pytest.raises(ConfigError, match="discard"):
        Blk(device)
    scripted.assert_left()


@pytest.mark.spec("PKD-05", "PKD-13")
@pytest.mark.parametrize(
    ("fields", "request_size"),
    [
        ({"size_max": 512}, 32 * 512),
        ({"size_max": 100, "seg_max": 11}, 1024),  # 11 elements of up to 100 bytes
        ({"size_max": 1 << 20, "seg_max": 1}, 32768),
        ({"size_max": 4096, "seg_max": 3}, 12288),
        ({"seg_max": 0}, 32768),  # taken for 1, as Linux does
        ({"size_max": 0}, 32768),
    ],
)
def test_elements_keep_to_size_max_and_seg_max(fields: dict[str, int], request_size: int):
    model = Disk(features=ALL, **fields)
    if not fields.get("size_max", 1) or not fields.get("seg_max", 1):
        model.has = lambda bit: bit not in (f.Blk.SIZE_MAX, f.Blk.SEG_MAX)  # type: ignore[method-assign]
    data = fill(model)
    with driven(model, access_platform=True) as (_, _, blk):
        assert blk.request_size == request_size
        assert blk.read(1, 200) == data[512 : 201 * 512]


def test_scattered_memory_makes_more_elements():
    model = Disk()
    data = fill(model)
    with driven(model, contiguous_limit=4096, depth=4) as (_, _, blk):
        assert blk.read(0, 64) == data[: 64 * 512]
    assert len(model.requests[0].elements) == 8 + 2


@pytest.mark.fault(86)
def test_limits_that_not_even_a_sector_fits():
    scripted = ScriptedDevice(Disk(features=ALL, size_max=100, seg_max=5))
    with opening.identify("0000:00:04.0", scripted) as device, pytest.raises(ConfigError, match="one sector"):
        Blk(device)
    scripted.assert_left()


@pytest.mark.fault(86)
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("word", [0, f.mask(f.RING_PACKED)])
def test_a_queue_with_room_for_no_data(size: int, word: int):
    """Header and status take two descriptors (5.2.6)."""
    scripted = ScriptedDevice(Disk(queue_size=size), features=FEATURES | f.mask(f.VERSION_1) | word)
    with opening.identify("0000:00:04.0", scripted) as device, pytest.raises(ConfigError, match="one sector"):
        Blk(device)
    scripted.assert_left()


@pytest.mark.spec("BLK-08")
@pytest.mark.parametrize("interrupt", [True, False])
def test_a_disk_that_grows(interrupt: bool):
    model = Disk(sectors=100)
    with driven(model) as (_, _, blk):
        assert blk.capacity == 100
        model.grow(200, interrupt=interrupt)
        assert blk.wait_for_change(timeout=0.01) is interrupt
        assert blk.read(150, 50) == bytes(50 * 512)  # asked again before it is refused
        assert blk.capacity == 200


@pytest.mark.fault(86)
@pytest.mark.parametrize("capacity", [0, 1, 1 << 55, (1 << 63) + 1, (1 << 64) - 1])
def test_capacities_that_no_disk_has(capacity: int):
    """Up to what 64 bits hold: what is beyond is not asked for, and what is below is the device's to refuse."""
    model = Disk(sectors=8)
    model.put("capacity", capacity)
    with driven(model, allow_write=True) as (_, _, blk):
        assert blk.capacity == capacity
        for sector, count in ((capacity, 1), (max(0, capacity - 1), 2), ((1 << 64) - 1, 1), (1 << 64, 1)):
            for touch in (
                lambda: blk.read(sector, count),  # noqa: B023
                lambda: blk.write(sector, bytes(count * SECTOR_SIZE)),  # noqa: B023
                lambda: blk.discard(sector, count),  # noqa: B023
                lambda: blk.write_zeroes(sector, count),  # noqa: B023
            ):
                with pytest.raises(BeyondEnd):
                    touch()
        assert model.requests == []
        if capacity > 8:
            model.always = Status.IOERR
            with pytest.raises(BlkIoError):
                blk.read(capacity - 1, 1)
            assert model.requests[-1].sector == capacity - 1


@pytest.mark.fault(86)
@pytest.mark.spec("BLK-08", "BLK-09")
def test_a_disk_that_shrinks():
    model = Disk(sectors=100)
    with driven(model) as (_, _, blk):
        model.grow(50)
        assert blk.wait_for_change(timeout=5)
        with pytest.raises(BeyondEnd, match="has no sector 50"):
            blk.read(50, 1)
        assert model.requests == []


@pytest.mark.parametrize("options", [{"depth": 0}, {"queues": 0}, {"request_size": 0}, {"request_size": 1000}])
def test_options_that_cannot_be(options: dict[str, int]):
    scripted = ScriptedDevice(Disk())
    with opening.identify("0000:00:04.0", scripted) as device, pytest.raises(UsageError):
        Blk(device, **options)
    assert not [access for access in scripted.log if access.op == "write"]


def test_another_type_of_device():
    opened = opening.identify("0000:00:04.0", ScriptedDevice(Rng()))
    with opened as device, pytest.raises(NotVirtio, match="no blk device"):
        Blk(device)


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.spec("BLK-22")
def test_each_status_is_told_apart():
    model = Disk()
    with driven(model, allow_write=True) as (_, device, blk):
        model.script.extend([Status.IOERR, Status.UNSUPP, None])
        with pytest.raises(BlkIoError, match="IN of 8 sectors at 16") as failure:
            blk.read(16, 8)
        assert failure.value.seen == "IOERR"
        with pytest.raises(BlkUnsupported, match="does not support IN"):
            blk.read(16, 8)
        assert blk.read(16, 8) == bytes(4096)
        model.script.append(Status.IOERR)
        # The ranges of one request fail together: nothing is said of any of them.
        with pytest.raises(BlkIoError, match="DISCARD of 12 sectors"):
            blk.discard_ranges([(0, 4), (8, 8)])
        assert device.broken is None
        assert blk.counts == {Status.OK: 1, Status.IOERR: 2, Status.UNSUPP: 1}


def test_an_error_in_one_piece_waits_for_the_others():
    model = Disk()
    with driven(model, allow_write=True, request_size=4096, depth=4) as (_, _, blk):
        model.script.extend([None, Status.IOERR, None, None, Status.UNSUPP])
        with pytest.raises(BlkIoError):
            blk.write(0, bytes(10 * 4096))
        assert len(model.requests) == 10 and blk.in_flight == 0
        assert blk.read(0, 1) == bytes(512)


def test_a_hint_where_the_blocks_are_larger():
    model = Disk(blk_size=4096)
    model.script.append(Status.IOERR)
    with driven(model) as (_, _, blk), pytest.raises(BlkIoError) as failure:
        blk.read(1, 1)
    assert "4096" in str(failure.value.remedy)


@pytest.mark.fault(86)
@pytest.mark.parametrize("status", [3, 4, 0x7F, 0xFE, None])
@pytest.mark.parametrize("call", [lambda blk: blk.read(0, 1), kept_back], ids=["call", "kept back"])
def test_what_is_no_status_ends_it(status: int | None, call: Callable[[Blk], Any]):
    model = Disk()
    with driven(model) as (_, _, blk):
        assert call(blk)
        if status is None:
            model.no_status = True  # the byte holds what we put there: no status
        else:
            model.script.append(status)
        with pytest.raises(ProtocolError, match="without a status"):
            call(blk)
        with pytest.raises(DeviceBroken):
            call(blk)


@pytest.mark.parametrize("written", [0, 1, 512])
def test_the_used_length_decides_nothing(written: int):
    model = Disk()
    data = fill(model)
    with driven(model) as (_, _, blk):
        model.written = written
        assert blk.read(3, 1) == data[3 * 512 : 4 * 512]
        assert blk.findings == {"the used length is not what was to be written": 1}


def test_what_another_request_left_is_no_answer():
    class Lazy(Disk):
        lazy = False

        def answer(self, chain, status, answer, room):
            return super().answer(chain, status, b"" if self.lazy else answer, room)

    model = Lazy()
    fill(model)
    with driven(model, depth=1) as (_, _, blk):
        blk.read(0, 8)
        model.lazy = True
        assert blk.read(8, 8) == bytes(4096)


def _too_long(scripted: ScriptedDevice) -> None:
    scripted.lies.used_len = lambda written: written + 1


def _wrong_id(scripted: ScriptedDevice) -> None:
    scripted.lies.used_id = lambda head: head ^ 1


def _twice(scripted: ScriptedDevice) -> None:
    scripted.lies.duplicate = True


def _jump(scripted: ScriptedDevice) -> None:
    scripted.lies.used_idx = lambda index: index + 100


@pytest.mark.parametrize("call", [lambda blk: blk.read(0, 8), kept_back], ids=["call", "kept back"])
@pytest.mark.parametrize("lie", [_too_long, _wrong_id, _twice, _jump])
def test_a_lie_about_the_ring_ends_it(lie: Callable[[ScriptedDevice], None], call: Callable[[Blk], Any]):
    with driven(Disk()) as (scripted, _, blk):
        assert call(blk)
        lie(scripted)
        with pytest.raises(RingCorruption):
            call(blk)
        with pytest.raises(DeviceBroken):
            call(blk)


@pytest.mark.spec("BLK-L01", "BLK-L02", "BLK-L03", "BLK-L04", "BLK-L05")
@pytest.mark.parametrize("written", [0, 1, 513, 0xFFFFFFFF])
def test_over_the_legacy_interface(written: int):
    model = Disk()
    data = fill(model)
    scripted = ScriptedLegacy(model, contiguous_limit=1 << 20, bar_size=128)
    with opening.identify("0000:00:04.0", scripted) as device, Blk(device, allow_write=True) as blk:
        assert device.transport.legacy and blk.capacity == 2048
        model.written = written  # 5.2.6.3: not looked at, however wrong it is
        assert blk.read(3, 2) == data[3 * 512 : 5 * 512]
        blk.write(3, b"x" * 512)
        assert blk.flush()
        assert model.durable[3 * 512 : 4 * 512] == b"x" * 512
    scripted.assert_left()


# --- many at a time -----------------------------------------------------------------------------------------


def test_requests_come_back_in_any_order():
    model = Disk()
    data = fill(model)
    with driven(model, depth=8) as (_, _, blk):
        model.hold = True
        out = [blk.submit_read(number, 1) for number in range(8)]
        assert blk.in_flight == 8 and not any(request.done for request in out)
        assert "1 sectors at 3, out" in repr(out[3])
        model.release([5, 1, 7, 0, 3, 2, 6, 4])
        assert blk.poll() == 8 and blk.in_flight == 0
        assert [request.result() for request in out] == [data[at : at + 512] for at in range(0, 4096, 512)]
        assert "done" in repr(out[3])


@pytest.mark.fault(48)
@pytest.mark.parametrize("features", [None, FEATURES | f.mask(f.VERSION_1)])
def test_a_submission_too_many_waits_for_room(features: int | None):
    model = Disk(queue_size=16)
    data = fill(model)
    with driven(model, depth=16, features=features) as (_, _, blk):
        # Without INDIRECT a request takes 3 of the 16 descriptors: five fit, whatever the depth.
        out = [blk.submit_read(number, 1, kick=False) for number in range(100)]
        blk.wait()
        assert all(request.done for request in out) and blk.in_flight == 0
        assert [request.result() for request in out] == [data[at : at + 512] for at in range(0, 51200, 512)]
    assert len(model.requests) == 100


def test_a_kick_for_many():
    model = Disk()
    with driven(model) as (_, device, blk):
        out = [blk.submit_read(number, 1, kick=False) for number in range(7)]
        assert device.queues[0].kicks == 0
        blk.wait(out)
        assert device.queues[0].kicks == 1


def test_errors_belong_to_their_requests():
    model = Disk()
    model.script.extend([None, Status.IOERR, None])
    with driven(model) as (_, _, blk):
        out = [blk.submit_read(number, 1, kick=False) for number in range(3)]
        blk.wait(out)
        assert [type(request.error) for request in out] == [type(None), BlkIoError, type(None)]
        assert "failed" in repr(out[1])
        with pytest.raises(BlkIoError):
            out[1].result()
        assert out[2].result() == bytes(512)


@pytest.mark.parametrize("interrupts", [tuple(InterruptMode), [InterruptMode.POLLING]])
def test_several_queues(interrupts: Any):
    model = Disk(features=ALL, queues=4)
    data = fill(model)
    with driven(model, queues=3, depth=4, vectors=5, interrupts=interrupts) as (_, device, blk):
        assert blk.queue_count == 3 and sorted(device.queues) == [0, 1, 2]
        out = [blk.submit_read(number, 1) for number in range(30)]
        assert [request.result() for request in out] == [data[at : at + 512] for at in range(0, 30 * 512, 512)]
        assert {request.queue for request in out} == {0, 1, 2}
        assert blk.submit_read(0, 1, queue=2).queue == 2
        blk.wait()
    with driven(Disk(features=ALL, queues=2), queues=9) as (_, _, blk):
        assert blk.queue_count == 2
    with driven(Disk(queues=2), queues=9) as (_, _, blk):
        assert blk.queue_count == 1  # without MQ there is one


@pytest.mark.spec("BLK-12")
def test_a_flush_among_others():
    model = Disk()
    with driven(model, allow_write=True) as (_, _, blk):
        blk.submit_write(0, b"x" * 512).result()
        assert blk.submit_flush().result() == b""
        assert model.durable == model.content
    with driven(Disk(features=0)) as (_, _, blk), pytest.raises(NotSupported, match="cannot flush"):
        blk.submit_flush()


def test_the_data_of_a_write_is_copied():
    model = Disk()
    model.hold = True
    with driven(model, allow_write=True) as (scripted, _, blk):
        data = bytearray(b"a" * 512)
        scripted.auto = False
        request = blk.submit_write(0, data)
        data[:] = b"b" * 512
        scripted.auto = True
        scripted.run()
        model.release()
        request.result()
        assert model.content[:512] == b"a" * 512


# --- interrupted, late, left --------------------------------------------------------------------------------


class Enough(BaseException):
    """Why a wait was interrupted."""


@pytest.mark.spec("CLN-01")
def test_an_interrupted_wait_leaves_the_buffers_with_the_device():
    model = Disk()
    data = fill(model)
    with driven(model, depth=2) as (_, device, blk):
        model.hold = True
        device.interrupt(Enough())
        with pytest.raises(Enough):
            blk.read(0, 1)
        assert blk.in_flight == 1
        late = blk.submit_read(1, 1)  # the other slot: the first one's is still out
        model.release([1, 0])
        assert late.result() == data[512:1024]
        assert blk.read(2, 1) == data[1024:1536]
        assert blk.in_flight == 0


def test_the_late_answer_of_an_interrupted_call_is_not_that_of_the_next_one():
    model = Disk()
    data = fill(model)
    with driven(model, allow_write=True) as (_, device, blk):
        for sector, status in enumerate((Status.OK, Status.IOERR)):
            model.hold = True
            model.script.append(status)
            device.interrupt(Enough())
            with pytest.raises(Enough):
                blk.read(sector, 1)
            model.release()
            assert blk.poll() == 1  # only now nothing is in flight
            assert blk._requests.call(Kind.OUT, 0, 1, data=bytes(data[:512])) == b""
            assert blk.read(2, 1) == data[1024:1536]


def test_an_answer_that_does_not_come():
    model = Disk()
    with driven(model, timeout=0.05) as (_, device, blk):
        model.hold = True
        with pytest.raises(DeviceTimeout, match="1 request"):
            blk.read(0, 1)
        with pytest.raises(DeviceBroken):
            blk.read(0, 1)
        assert device.broken is not None


def test_leaving_waits_for_what_is_out():
    model = Disk()
    with driven(model, allow_write=True) as (_, _, blk):
        blk.submit_write(0, b"x" * 512, kick=False)
    assert model.content[:512] == b"x" * 512


def test_leaving_does_not_wait_for_ever():
    model = Disk()
    with driven(model, timeout=0.05) as (_, _, blk):
        model.hold = True
        request = blk.submit_read(0, 1)
    with pytest.raises(UvirtioError):
        request.result()
    assert not request.done


def test_after_closing():
    scripted = ScriptedDevice(Disk())
    with opening.identify("0000:00:04.0", scripted) as device:
        with Blk(device) as blk:
            pass
        for call in (lambda: blk.read(0, 1), lambda: blk.poll(), lambda: blk.wait()):
            with pytest.raises(Closed, match="driver"):
                call()
        with Blk(device) as again:
            with pytest.raises(Closed):
                blk.read(0, 1)
            assert again.read(0, 1) == bytes(512)
    assert isinstance(Request, type)
    scripted.assert_left()


def test_a_call_that_is_answered_at_once_neither_sleeps_nor_takes_an_interrupt():
    with driven(Disk()) as (_, device, blk):
        for _ in range(300):
            blk.read(0, 1)
        assert device.counters.interrupts_taken <= 2, "one look in 256 calls, in case the configuration changed"


@pytest.mark.parametrize("without", [(), ("EVENT_IDX",)])
def test_a_call_alone_suppresses_interrupts_and_nothing_else_does(without: tuple[str, ...]):
    """An event loop of the caller's has its interrupts, also while a call waits for a request of its own."""
    with driven(Disk(), without=without) as (_, device, blk):
        for _ in range(3):
            blk.read(0, 1)
            assert not device.service()
        for number in range(3):
            out = blk.submit_read(number, 1)
            blk.read(number, 1)
            assert device.service() and out.done
            blk.read(number, 1)
            assert not device.service()
        blk.wait([blk.submit_read(number, 1, kick=False) for number in range(7)])
        assert not device.service()


def test_interrupts_are_relied_on_where_they_are_looked_for():
    with driven(Disk()) as (_, device, blk):
        blk.read(0, 1)
        blk.rely_on_interrupts()
        for number in range(1, 4):
            blk.read(0, 1)
            device.service()
            assert device.counters.interrupts_taken == number
        request = blk.submit_read(0, 1)
        assert not blk._requests._look(lambda: pytest.fail("it looked"), 0)
        blk.wait([request])


def test_a_call_that_is_interrupted_before_its_request_is_added_gives_the_slot_back():
    with driven(Disk()) as (_, _, blk):
        requestq = blk._requests._free[0]
        ring, free = requestq.queue.ring, list(requestq.free)

        class Interrupted:
            def __getattr__(self, name: str) -> Any:
                return getattr(ring, name)

            def send(self, *_: object) -> None:
                raise KeyboardInterrupt

        requestq.queue.ring = cast(Any, Interrupted())
        with pytest.raises(KeyboardInterrupt):
            blk.read(0, 1)
        requestq.queue.ring = ring
        assert requestq.free == free
        assert blk.read(0, 1) == bytes(512)


def test_a_call_that_its_look_did_not_end_is_one_wait():
    """Every so many waits the configuration is looked at: none counts twice."""
    with driven(Disk()) as (_, device, blk):
        requests = blk._requests
        ring = requests._free[0].queue.ring
        assert blk.read(0, 1) and requests._waits == 1
        take = type(ring).take
        looks = iter([None])

        class Late:
            def __getattr__(self, name: str) -> Any:
                return getattr(ring, name)

            def take(self, count: int = 1) -> Any:
                return next(looks) if count > 1 else take(ring, count)

        requests._free[0].queue.ring = cast(Any, Late())
        assert blk.read(0, 1) == bytes(512) and requests._waits == 2
        requests._free[0].queue.ring = ring
        assert device.broken is None


def test_after_polls_in_vain_fewer_calls_poll():
    with driven(Disk()) as (_, device, blk):
        requests, looked, used, call = blk._requests, set(), False, 0
        queue = requests._free[0].queue
        ring = queue.ring

        class Watched:
            def pending(self) -> bool:
                looked.add(call)
                return used

        queue.ring = cast(Any, Watched())
        for call in range(90):  # noqa: B007
            assert not requests._look(lambda: used, 1e-6)
        assert looked == {0, 2, 5, 10, 19, 36, 53, 70, 87}
        used = True
        looked.clear()
        for call in range(90, 120):  # noqa: B007
            requests._look(lambda: used, 1.0)
        assert looked == set(range(104, 120))
        queue.ring = ring
        assert device.broken is None


def test_what_is_submitted_without_a_kick_is_shown_eight_at_a_time():
    """A device with nothing to do is notified of the first eight: it wakes up while others are submitted."""
    word = FEATURES | f.mask(f.VERSION_1, f.INDIRECT_DESC)
    with driven(Disk(), auto=False, features=word) as (scripted, device, blk):
        queue = device.queues[0]
        shown = []
        out = []
        for number in range(20):
            out.append(blk.submit_read(number, 1, kick=False))
            shown.append((queue.ring.published, queue.kicks))
        assert shown == [(0, 0)] * 7 + [(8, 1)] * 8 + [(16, 1)] * 5
        blk.kick()
        assert (queue.ring.published, queue.kicks) == (20, 2)
        out += [blk.submit_read(number, 1, kick=False) for number in range(4)]
        assert (queue.ring.published, queue.kicks) == (24, 2)
        blk.kick()  # nothing is added since, and the device asked for a notification
        assert queue.kicks == 3
        blk.kick()
        assert queue.kicks == 3
        scripted.run()
        blk.wait(out)
        assert all(request.result() == bytes(512) for request in out)


@pytest.mark.parametrize("word", [0, f.mask(f.EVENT_IDX), f.mask(f.RING_PACKED)])
def test_a_device_that_looks_at_the_ring_meanwhile_is_not_notified(word: int):
    """It suppresses notifications while it looks; a later avail_event does not say that it looked."""
    features = FEATURES | f.mask(f.VERSION_1, f.INDIRECT_DESC) | word
    owed = word == f.mask(f.EVENT_IDX)
    with driven(Disk(), auto=False, features=features) as (scripted, device, blk):
        queue, other = device.queues[0], scripted.queues[0].ring
        assert other is not None
        out = [blk.submit_read(number, 1, kick=False) for number in range(8)]
        scripted.fetch(0)
        out += [blk.submit_read(number, 1, kick=False) for number in range(8)]
        assert (queue.ring.published, queue.kicks, queue._owed) == (16, 1, True)
        other.ask_for_kicks(False)
        blk.kick()
        assert (queue.kicks, queue._owed) == (1 + owed, False)
        scripted.fetch(0)
        other.ask_for_kicks(False)
        assert blk.poll() == 16
        out += [blk.submit_read(number, 1, kick=False) for number in range(9)]
        blk.kick()
        assert (queue.ring.published, queue.kicks) == (25, 1 + owed)
        scripted.fetch(0)
        blk.wait(out)
        assert [request.error for request in out] == [None] * 25


def _ways_to_show() -> dict[str, tuple[int, Callable[[Blk, list[Request]], object], bool]]:
    """How many reads without a kick, what shows them to the device, and whether interrupts are on then."""
    return {
        "kick": (3, lambda blk, _: blk.kick(), True),
        "the eighth": (8, lambda _, __: None, True),
        "one of them is waited for": (3, lambda blk, out: blk.wait(out[:1]), True),
        "a request with a kick": (3, lambda blk, _: blk.submit_read(1, 1), True),
        "all are waited for": (3, lambda blk, _: blk.wait(), False),
    }


@pytest.mark.parametrize(("count", "show", "on"), _ways_to_show().values(), ids=_ways_to_show())
def test_what_the_device_sees_while_none_waits_for_it_has_an_interrupt(
    count: int, show: Callable[[Blk, list[Request]], object], on: bool
):
    """After a wait interrupts are still suppressed; an event loop of the caller's needs them again."""
    with driven(Disk()) as (scripted, device, blk):
        ring: Any = device.queues[0].ring
        blk.wait([blk.submit_read(0, 1, kick=False)])
        assert not ring._interrupts
        found: list[bool] = []
        scripted.on_kick = lambda: found.append(ring._interrupts)
        out = [blk.submit_read(number, 1, kick=False) for number in range(count)]
        show(blk, out)
        assert found[0] is on
        blk.wait()
        assert [request.error for request in out] == [None] * count


def test_a_call_of_many_requests_kicks_for_the_first_and_for_the_rest():
    """32 requests each. With more of them than slots there is a kick whenever all slots are out."""
    model = Disk(sectors=4096, features=ALL)
    data = fill(model)
    with driven(model, features=FEATURES | f.mask(f.VERSION_1, f.INDIRECT_DESC), allow_write=True) as (
        _,
        device,
        blk,
    ):
        queue = device.queues[0]
        for call in (lambda: blk.read(0, 2048), lambda: blk.write(0, data[: 1 << 20])):
            before = queue.kicks, len(model.requests)
            call()
            assert len(model.requests) - before[1] == 32
            assert queue.kicks - before[0] == 2
        assert blk.read(0, 2048) == data[: 1 << 20]
    with driven(Disk(sectors=4096, features=ALL), depth=4) as (_, device, blk):
        blk.read(0, 2048)
        assert device.queues[0].kicks <= 2 + 32 // 3

"""5.2: the block device."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from uvirtio.conform.exchange import blk_header
from uvirtio.conform.lane import Lane
from uvirtio.conform.memory import Buffer, pattern
from uvirtio.conform.row import ANY, LEGACY, MODERN, Area, Level, Need
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, rejected
from uvirtio.spec import blk
from uvirtio.spec import features as f
from uvirtio.spec.layout import by_name
from uvirtio.spec.status import Status, describe

AREA = Area("blk", 120, "5.2: block", transports=ANY, types=frozenset({"blk"}))

_FIELDS: Final = by_name(blk.CONFIG)
_UNKNOWN: Final = 0x7FFF
_ZONE_REQUESTS: Final = (15, 16, 18, 20, 22, 24, 26)
"""Append, report, open, close, finish, reset, reset all (5.2.6)."""
_WRITE: Final[frozenset[Need]] = frozenset({"write"})


class Answer(NamedTuple):
    """What became of a request."""

    status: int
    data: bytes
    room: Buffer | None
    length: int


def ask(t: Trial, lane: Lane, kind: int, sector: int, *, data: bytes = b"", room: int = 0) -> Answer:
    """Make one request, with a header, data or room for it, and a status byte that is no status before.

    Args:
        t: The trial.
        lane: The queue.
        kind: The type of the request.
        sector: Where.
        data: What the device reads.
        room: Bytes that it may write.
    """
    header, status = t.readable(blk_header(kind, sector)), t.writable(1)
    middle = [t.readable(data)] if data else []
    buffer = t.writable(room) if room else None
    posted = lane.post(header, *middle, *([buffer] if buffer is not None else []), status)
    t.await_used(lane, 1)
    t.expect(posted.length is not None, "the used ring names another chain", "the request")
    return Answer(status.data[0], b"" if buffer is None else buffer.data, buffer, posted.length or 0)


def said(answer: Answer) -> str:
    """A status in words."""
    names = {int(one): one.name for one in blk.Status}
    return f"status {names.get(answer.status, hex(answer.status))}"


def _capacity(t: Trial) -> int:
    return t.config_field(blk.CONFIG, "capacity")


def _field(t: Trial, name: str) -> int:
    t.need(_FIELDS[name].end <= t.transport.config_length, f"the configuration ends before {name}")
    return t.config_field(blk.CONFIG, name)


# --- the offer and the configuration (5.2.5) --------------------------------------------------------------------


@AREA.row("D-BLK-01", "5.2.5.2", "SHOULD", "Offer FLUSH.", level=Level.LOOK)
def offers_flush(t: Trial) -> Outcome:
    """Bit 9."""
    t.expect(f.has(t.offered, f.Blk.FLUSH), "FLUSH is not offered", "FLUSH")
    return None


@AREA.row("D-BLK-02", "5.2.5.2", "MUST", "Offer FLUSH if CONFIG_WCE is offered.", level=Level.LOOK)
def offers_flush_with_wce(t: Trial) -> Outcome:
    """Bits 9 and 11."""
    t.need_feature(f.Blk.CONFIG_WCE)
    t.expect(f.has(t.offered, f.Blk.FLUSH), "CONFIG_WCE without FLUSH", "both")
    return None


@AREA.row(
    "D-BLK-03",
    "5.2.5.2",
    "MUST",
    "CONFIG_WCE without FLUSH: writeback starts at 0.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    transports=MODERN,
)
def writeback_without_flush(t: Trial) -> Outcome:
    """CONFIG_WCE is accepted and FLUSH is not; writeback is read."""
    t.need_feature(f.Blk.CONFIG_WCE)
    status = t.negotiate(t.plain & ~f.mask(f.Blk.FLUSH) | f.mask(f.Blk.CONFIG_WCE))
    if not status & Status.FEATURES_OK:
        return rejected("FEATURES_OK is refused")
    seen = _field(t, "writeback")
    t.expect(seen == 0, f"writeback {seen}", "0")
    return None


@AREA.row("D-BLK-04", "5.2.5.2", "MUST", "The padding bytes unused0 and unused1 are 0.", level=Level.LOOK)
def padding_is_zero(t: Trial) -> Outcome:
    """Read where a field behind them is offered; else the configuration may end before them."""
    behind = f.mask(f.Blk.SECURE_ERASE, f.Blk.ZONED)
    before = behind | f.mask(f.Blk.MQ, f.Blk.DISCARD, f.Blk.WRITE_ZEROES)
    t.need(bool(t.offered & before), "no field behind them is offered")
    for name, bits in (("unused0", before), ("unused1", behind)):
        if t.offered & bits:
            seen = _field(t, name)
            t.expect(seen == 0, f"{name} {seen:#x}", "0")
    return None


@AREA.row(
    "D-BLK-05",
    "5.2.5.2",
    "SHOULD NOT",
    "A disk that is not zoned offers no ZONED.",
    level=Level.LOOK,
    transports=MODERN,
)
def not_zoned(t: Trial) -> Outcome:
    """The bit against the zoned model; 0 is none."""
    t.need_feature(f.Blk.ZONED)
    t.expect(_field(t, "model") != 0, "ZONED with model 0, none", "a zoned model, or no ZONED")
    return None


@AREA.row("D-BLK-06", "5.2.5.2", "MUST NOT", "Legacy: no ZONED bit.", level=Level.LOOK, transports=LEGACY)
def legacy_is_not_zoned(t: Trial) -> Outcome:
    """Bit 17 of the legacy word."""
    t.expect(not f.has(t.offered, f.Blk.ZONED), "ZONED is offered", "no such bit there")
    return None


@AREA.row(
    "D-BLK-10",
    "5.2.6.2",
    "SHOULD",
    "A changed capacity is notified.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
)
def capacity_is_notified(t: Trial) -> Outcome:
    """The host resizes the disk while the device runs."""
    change = t.lever()
    change(0)
    t.start(interrupts=True)
    t.arrived()
    before = _capacity(t)
    change(1)
    t.owe(lambda: _capacity(t) != before, "the new size does not show", "another capacity")
    t.owe(lambda: t.arrived().config, "no configuration-change notification came", "one (5.2.6.2)")
    return None


# --- requests (5.2.6) -------------------------------------------------------------------------------------------


@AREA.row("D-BLK-18", "5.2.6.2", "SHOULD", "LIFETIME: GET_LIFETIME answers with no reserved values.")
def lifetime(t: Trial) -> Outcome:
    """The request, once."""
    t.need_feature(f.Blk.LIFETIME)
    lane = t.start(also=f.mask(f.Blk.LIFETIME))
    answer = ask(t, lane, blk.Request.GET_LIFETIME, 0, room=blk.LIFETIME_SIZE)
    t.need(answer.status != blk.Status.UNSUPP, "the disk has no such metrics")
    pre_eol, typical_a, typical_b = struct.unpack("<HHH", answer.data)
    fits = pre_eol <= 3 and max(typical_a, typical_b) <= 0xB
    t.expect(fits, f"pre_eol_info {pre_eol}, estimates {typical_a} and {typical_b}", "at most 3, 11 and 11")
    return None


@AREA.row(
    "D-BLK-19",
    "5.2.6.2",
    "MUST",
    "ZONED not negotiated: zone requests give UNSUPP.",
    level=Level.REGISTERS,
    needs=_WRITE,
)
def zone_requests(t: Trial) -> Outcome:
    """Each type of them once, with room for 512 bytes."""
    lane = t.start()
    for kind in _ZONE_REQUESTS:
        answer = ask(t, lane, kind, 0, room=blk.SECTOR_SIZE)
        t.expect(answer.status == blk.Status.UNSUPP, f"{said(answer)} for type {kind}", "UNSUPP")
    return None


@AREA.row("D-BLK-25", "5.2.6", "DESC", "A request of unknown type gives UNSUPP.", level=Level.ODD)
def unknown_request(t: Trial) -> Outcome:
    """Type 0x7fff, with and without room."""
    lane = t.start()
    for room in (0, blk.SECTOR_SIZE):
        answer = ask(t, lane, _UNKNOWN, 0, room=room)
        t.expect(answer.status == blk.Status.UNSUPP, f"{said(answer)} with room for {room} bytes", "UNSUPP")
    return None


@AREA.row(
    "D-BLK-26",
    "5.2.6",
    "DESC",
    "A read beyond the capacity gives IOERR, and nothing is read.",
    level=Level.REGISTERS,
)
def beyond_the_end(t: Trial) -> Outcome:
    """The sector behind the last, the last two of which one is behind it, and the last number that there is."""
    lane = t.start()
    end = _capacity(t)
    for sector, count in ((end, 1), (max(end - 1, 0), 2), (0x7FFFFFFFFFFFFF, 1)):
        answer = ask(t, lane, blk.Request.IN, sector, room=count * blk.SECTOR_SIZE)
        t.expect(answer.status == blk.Status.IOERR, f"{said(answer)} for {count} at {sector}", "IOERR")
        assert answer.room is not None
        untouched = answer.data == answer.room.given or not any(answer.data)
        t.expect(untouched, f"data was read from {count} at {sector}", "none")
    return None


@AREA.row(
    "D-BLK-27",
    "5.2.6",
    "DESC",
    "used.len counts what was written, also of requests that fail.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def len_of_failed_reads(t: Trial) -> Outcome:
    """A read beyond the end, and a type that is not known: len is what was written, or less."""
    lane = t.start()
    for kind, sector in ((blk.Request.IN, _capacity(t)), (_UNKNOWN, 0)):
        answer = ask(t, lane, kind, sector, room=blk.SECTOR_SIZE)
        assert answer.room is not None
        written = answer.room.written + 1
        t.expect(
            answer.length <= written,
            f"len {answer.length}, and {written - 1} bytes of data were written",
            "no more",
        )
    return None


@AREA.row(
    "D-BLK-28",
    "5.2.6",
    "DESC",
    "A request without a status byte is survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
)
def no_status_byte(t: Trial) -> Outcome:
    """A header, and nothing that the device may write."""
    t.need(not t.packed, "a fault of split rings")
    lane = t.start()
    t.good(lane)
    posted = lane.post(t.readable(blk_header(blk.Request.IN, 0)))
    used = t.serve(lane, posted, 2 * t.pace.watch)
    status = t.status()
    if status & Status.DEVICE_NEEDS_RESET:
        return rejected("DEVICE_NEEDS_RESET")
    return rejected(f"used, len {posted.length}" if used else f"silence, status {describe(status)}")


# --- what writes to the disk: only with consent, in its range ----------------------------------------------------


def _range(t: Trial, count: int) -> int:
    """The first of ``count`` sectors that may be written."""
    allowed = t.consent.write or range(0)
    start = (allowed.start + 7) // 8 * 8
    t.need(start + count <= min(allowed.stop, _capacity(t)), f"there are no {count} sectors that may be written")
    return start


def _segments(*segments: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *one) for one in segments)


def _read(t: Trial, lane: Lane, sector: int, count: int) -> bytes:
    answer = ask(t, lane, blk.Request.IN, sector, room=count * blk.SECTOR_SIZE)
    t.expect(answer.status == blk.Status.OK, f"a read gives {said(answer)}", "OK")
    return answer.data


@AREA.row(
    "D-BLK-11",
    "5.2.6.2",
    "MUST",
    "RO offered: a write gives IOERR.",
    level=Level.REGISTERS,
    needs=_WRITE,
)
def write_to_a_read_only_disk(t: Trial) -> Outcome:
    """Zeroes to the first sector that may be written."""
    t.need_feature(f.Blk.RO)
    lane = t.start(also=f.mask(f.Blk.RO))
    answer = ask(t, lane, blk.Request.OUT, _range(t, 8), data=bytes(blk.SECTOR_SIZE))
    t.expect(answer.status == blk.Status.IOERR, said(answer), "IOERR")
    return None


@AREA.row(
    "D-BLK-12",
    "5.2.6.2",
    "MUST NOT",
    "RO offered: nothing is written.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    needs=_WRITE,
)
def nothing_on_a_read_only_disk(t: Trial) -> Outcome:
    """A sector is read, the complement of it is written, and it is read again."""
    t.need_feature(f.Blk.RO)
    lane = t.start(also=f.mask(f.Blk.RO))
    sector = _range(t, 8)
    before = _read(t, lane, sector, 1)
    ask(t, lane, blk.Request.OUT, sector, data=bytes(byte ^ 0xFF for byte in before))
    t.expect(_read(t, lane, sector, 1) == before, "the sector was written", "what it held before")
    return None


def _flagged(t: Trial, bits: Sequence[tuple[int, int]], flags: int) -> None:
    """Segments with flags, for each request whose feature is offered."""
    offered = [(kind, bit) for kind, bit in bits if f.has(t.offered, bit)]
    t.need(bool(offered), "none of these requests is offered")
    lane = t.start(also=f.mask(*(bit for _, bit in offered)))
    sector = _range(t, 8)
    for kind, _ in offered:
        answer = ask(t, lane, kind, 0, data=_segments((sector, 8, flags)))
        t.expect(answer.status == blk.Status.UNSUPP, f"{said(answer)} for type {kind}, flags {flags:#x}", "UNSUPP")


@AREA.row(
    "D-BLK-13",
    "5.2.6.2",
    "MUST",
    "Unknown flags in discard, secure erase and write zeroes give UNSUPP.",
    level=Level.REGISTERS,
    needs=_WRITE,
)
def unknown_flags(t: Trial) -> Outcome:
    """Flag bit 31."""
    requests = (
        (blk.Request.DISCARD, f.Blk.DISCARD),
        (blk.Request.WRITE_ZEROES, f.Blk.WRITE_ZEROES),
        (blk.Request.SECURE_ERASE, f.Blk.SECURE_ERASE),
    )
    _flagged(t, requests, 1 << 31)
    return None


@AREA.row(
    "D-BLK-14",
    "5.2.6.2",
    "MUST",
    "Discard with the unmap flag gives UNSUPP.",
    level=Level.REGISTERS,
    needs=_WRITE,
)
def discard_with_unmap(t: Trial) -> Outcome:
    """Flag bit 0."""
    _flagged(t, ((blk.Request.DISCARD, f.Blk.DISCARD),), blk.SEGMENT_F_UNMAP)
    return None


@AREA.row(
    "D-BLK-15",
    "5.2.6.2",
    "MUST",
    "After write zeroes the sectors read as zero.",
    severity=Severity.SILENT,
    needs=_WRITE,
    witness="image",
)
def zeroes(t: Trial) -> Outcome:
    """Sixteen sectors get a pattern, and the middle eight zeroes, with and without unmap; the others stay."""
    t.need_feature(f.Blk.WRITE_ZEROES)
    flushes = f.has(t.offered, f.Blk.FLUSH)
    lane = t.start(also=f.mask(f.Blk.WRITE_ZEROES, *([f.Blk.FLUSH] if flushes else [])))
    sector = _range(t, 16)
    may_unmap = _field(t, "write_zeroes_may_unmap")
    for flags in (0, blk.SEGMENT_F_UNMAP) if may_unmap else (0,):
        content = pattern(16 * blk.SECTOR_SIZE)
        wrote = ask(t, lane, blk.Request.OUT, sector, data=content)
        t.expect(wrote.status == blk.Status.OK, f"a write gives {said(wrote)}", "OK")
        answer = ask(t, lane, blk.Request.WRITE_ZEROES, 0, data=_segments((sector + 4, 8, flags)))
        t.expect(answer.status == blk.Status.OK, f"{said(answer)} with flags {flags}", "OK")
        seen = _read(t, lane, sector, 16)
        size = blk.SECTOR_SIZE
        t.expect(not any(seen[4 * size : 12 * size]), f"not all is zero with flags {flags}", "zeroes")
        beside = seen[: 4 * size] == content[: 4 * size] and seen[12 * size :] == content[12 * size :]
        t.expect(beside, "sectors beside them changed", "what they held")
        if flushes:
            ask(t, lane, blk.Request.FLUSH, 0)
            t.witnessed("what the disk holds", seen, t.host.image(sector * size, 16 * size))
    return None


@AREA.row(
    "D-BLK-17",
    "5.2.6.2",
    "MUST",
    "What was written and flushed is on persistent storage.",
    severity=Severity.SILENT,
    needs=_WRITE,
    witness="image",
)
def flushed(t: Trial) -> Outcome:
    """A pattern, and its complement, are written and flushed, and looked for in the file behind the disk."""
    t.need_feature(f.Blk.FLUSH)
    sector = _range(t, 8)
    place, size = sector * blk.SECTOR_SIZE, 8 * blk.SECTOR_SIZE
    t.need(t.host.image(place, size) is not None, "the file behind the disk is not this process's")
    lane = t.start(also=f.mask(f.Blk.FLUSH))
    for inverted in (False, True):
        content = pattern(size, inverted=inverted)
        for answer in (ask(t, lane, blk.Request.OUT, sector, data=content), ask(t, lane, blk.Request.FLUSH, 0)):
            t.expect(answer.status == blk.Status.OK, said(answer), "OK")
        held = t.host.image(place, size)
        t.expect(held == content, "the file behind the disk holds something else", "what was written")
    return None

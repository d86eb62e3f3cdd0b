"""5.4: the entropy device."""

from __future__ import annotations

from uvirtio.conform.lane import Lane
from uvirtio.conform.row import ANY, Area, Level
from uvirtio.conform.traffic import gave_up
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, rejected

AREA = Area("rng", 110, "5.4: entropy", transports=ANY, types=frozenset({"rng"}))

_LENGTHS = (1, 7, 4096, 65536)


def _ask(t: Trial, lane: Lane, size: int) -> tuple[bytes, int]:
    """The bytes that the device put into a buffer, and how many it says."""
    buffer = t.writable(size)
    posted = lane.post(buffer)
    t.await_used(lane, 1)
    return buffer.data, posted.length or 0


@AREA.row("D-RNG-01", "5.4.6.2", "MUST", "Put at least one random byte into a buffer.")
def at_least_one(t: Trial) -> Outcome:
    """Buffers of 1, 7, 4096 and 65536 bytes: len is above 0."""
    lane = t.start()
    for size in _LENGTHS:
        _, length = _ask(t, lane, size)
        t.expect(0 < length <= size, f"len {length} for {size} bytes", f"1 to {size}")
    return None


@AREA.row("D-RNG-02", "5.4.6", "DESC", "used.len says how many bytes; the rest stays.", severity=Severity.SILENT)
def the_rest_stays(t: Trial) -> Outcome:
    """A buffer full of a pattern: what lies behind len still holds it, and nothing long before it does."""
    lane = t.start()
    for size in (64, 4096):
        buffer = t.writable(size)
        posted = lane.post(buffer)
        t.await_used(lane, 1)
        length = posted.length or 0
        t.expect(
            buffer.data[length:] == buffer.given[length:], f"bytes behind len {length} were written", "as before"
        )
        long = [run for run in buffer.untouched() if min(run[1], length) - run[0] >= 8]
        t.expect(not long, f"bytes {long} within len {length} were not written", "random bytes")
    return None


@AREA.row("D-RNG-03", "5.4.6", "DESC", "Bytes differ between requests.", severity=Severity.SILENT)
def bytes_differ(t: Trial) -> Outcome:
    """Two requests of 64 bytes, and the bytes of one among themselves."""
    lane = t.start()
    first, _ = _ask(t, lane, 64)
    second, length = _ask(t, lane, 64)
    t.expect(length < 16 or first != second, f"twice {first[:8].hex(' ')} ...", "other bytes")
    t.expect(length < 64 or len(set(second)) > 8, f"{len(set(second))} values in 64 bytes", "random bytes")
    return None


@AREA.row(
    "D-RNG-04",
    "5.4.6",
    "DESC",
    "Readable buffers are not the device's business, and are survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
)
def readable_buffers(t: Trial) -> Outcome:
    """A chain that the device can only read: it is used, refused or passed over, and a reset mends it."""
    t.need(not t.packed, "a fault of split rings")
    lane = t.start()
    t.good(lane)
    posted = lane.post(t.readable(bytes(8)))
    if t.serve(lane, posted, 2 * t.pace.watch):
        t.expect(posted.length == 0, f"len {posted.length} of a chain without a writable byte", "0")
        return rejected("used, len 0")
    return gave_up(t, otherwise="silence")

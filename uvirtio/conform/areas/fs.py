"""5.11: the file system device. FUSE_INIT and FORGET alone are sent: nothing of a file system is looked at."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.row import MODERN, Area, Level
from uvirtio.conform.traffic import batch
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, rejected
from uvirtio.diag.probes.fs import fuse, init
from uvirtio.spec import fs
from uvirtio.spec.status import Status

AREA = Area("fs", 170, "5.11: file system", transports=MODERN, types=frozenset({"fs"}))

_FORGET: Final = 2
_LOAD: Final = 8
_NODE: Final = 0x7FFF_FFFF
_UNIQUE: Final = 0x5EED


@AREA.row("D-FS-01", "5.11.4.2", "MUST", "num_request_queues is 1 or more.", level=Level.LOOK)
def request_queues(t: Trial) -> Outcome:
    """It is read."""
    seen = t.config_field(fs.CONFIG, "num_request_queues")
    t.expect(seen >= 1, f"num_request_queues {seen}", "1 or more")
    return None


@AREA.row(
    "D-FS-03",
    "5.11.6.2.1",
    "MUST NOT",
    "hiprio goes on while request queues are busy.",
    severity=Severity.SILENT,
)
def priority(t: Trial) -> Outcome:
    """Eight requests are out, and FORGET of a node that there is not is sent on hiprio; then all come back."""
    lane = t.start(queues=[fs.REQUESTQ, fs.HIPRIO])
    t.good(lane)
    batch(t, lane, _LOAD)
    hiprio = t.lanes[fs.HIPRIO]
    hiprio.post(t.readable(fuse(_FORGET, _UNIQUE, _NODE, bytes(8))))
    t.await_used(hiprio, 1)
    lane.take()
    if lane.out:
        t.await_used(lane, len(lane.out))
    return None


@AREA.row(
    "D-FS-06",
    "5.11.6",
    "DESC",
    "A FUSE header with a wrong length is answered or refused, and survived.",
    level=Level.RINGS,
    severity=Severity.DEAD,
)
def wrong_length(t: Trial) -> Outcome:
    """FUSE_INIT that says that it is shorter, and one that says that it is longer."""
    lane = t.start()
    whole = len(init(_UNIQUE).given[0])
    said = []
    for length in (fs.FUSE_IN_HEADER.size, 2 * whole):
        answer = t.writable(fs.FUSE_OUT_HEADER.size + fs.FUSE_INIT_OUT_SIZE)
        posted = lane.post(t.readable(init(_UNIQUE, length=length).given[0]), answer)
        served = t.serve(lane, posted)
        if not served:
            needs = bool(t.status() & Status.DEVICE_NEEDS_RESET)
            seen = f"a length of {length} instead of {whole} is not answered"
            t.expect(needs, seen, "an answer, or DEVICE_NEEDS_RESET")
            return rejected("DEVICE_NEEDS_RESET")
        _, error, unique = fs.FUSE_OUT_HEADER.unpack_from(answer.data)
        if posted.length:
            t.expect(unique == _UNIQUE, f"unique {unique:#x}", f"{_UNIQUE:#x}")
            said.append(f"error {error}")
    return rejected(", ".join(said) or "back without an answer")

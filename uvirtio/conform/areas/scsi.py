"""5.6: the SCSI host device. INQUIRY and TEST UNIT READY alone are sent: nothing on a disk is read or written."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from uvirtio.conform.exchange import inquiry, scsi_request
from uvirtio.conform.lane import Lane
from uvirtio.conform.memory import Buffer
from uvirtio.conform.row import ANY, Area, Level, Need
from uvirtio.conform.trial import Trial
from uvirtio.conform.units import unit
from uvirtio.conform.verdict import Outcome, Severity, free
from uvirtio.spec import features as f
from uvirtio.spec import scsi
from uvirtio.spec.scsi import EventType, Response, Task

AREA = Area("scsi", 140, "5.6: SCSI host", transports=ANY, types=frozenset({"scsi"}))

_SIZES: Final = {"sense_size": (scsi.SENSE_SIZE, 64), "cdb_size": (scsi.CDB_SIZE, 16)}
"""By field: what a reset sets, and another value."""
_LIMITS: Final = {"max_channel": 0, "max_target": 255, "max_lun": 16383}
_STATUSES: Final = frozenset({int(status) for status in scsi.Status})
_RESPONSES: Final = range(Response.FAILURE + 1)
"""Of commands; the others are of the control queue (5.6.6.2)."""
_LONG, _SHORT = 255, 8
_TEST_UNIT_READY: Final = bytes([scsi.Opcode.TEST_UNIT_READY])
_NOTHING_THERE: Final = 3 << 5
"""The peripheral qualifier of a unit that there cannot be (SPC-5, 6.7.2)."""
_LOAD: Final = 8
_HOST: Final[frozenset[Need]] = frozenset({"host"})


class Answer(NamedTuple):
    """What became of a command."""

    status: int
    response: int
    room: Buffer | None


def ask(t: Trial, lane: Lane, cdb: bytes, *, target: int = 0, data: bytes = b"", room: int = 0) -> Answer:
    """Send a command to LUN 0 of a target, with a response that is no response before.

    Args:
        t: The trial.
        lane: A request queue.
        cdb: The CDB.
        target: The target.
        data: What the device reads.
        room: Bytes that it may write.
    """
    answer = t.writable(scsi.RESPONSE_SIZE + t.config_field(scsi.CONFIG, "sense_size"))
    given = [t.readable(data)] if data else []
    buffer = t.writable(room) if room else None
    taken = [] if buffer is None else [buffer]
    posted = lane.post(t.readable(scsi_request(t, cdb, target)), *given, answer, *taken)
    t.await_used(lane, 1)
    t.expect(posted.length is not None, "the used ring names another chain", "the command")
    *_, status, response = struct.unpack_from("<IIHBB", answer.data)
    return Answer(status, response, buffer)


def said(answer: Answer) -> str:
    """A response in words."""
    names = {int(one): one.name for one in Response}
    return f"response {names.get(answer.response, hex(answer.response))}, status {answer.status:#x}"


# --- the configuration (5.6.4) ----------------------------------------------------------------------------------


@AREA.row("D-SCS-01", "5.6.4.2", "MUST", "A reset sets sense_size to 96 and cdb_size to 32.", level=Level.ODD)
def reset_sets_sizes(t: Trial) -> Outcome:
    """Other values are written to both while the device runs, and it is reset."""

    def read() -> dict[str, int]:
        return {name: t.config_field(scsi.CONFIG, name) for name in _SIZES}

    right = {name: after for name, (after, _) in _SIZES.items()}
    first = read()
    t.expect(first == right, f"{first} at first", f"{right}")
    t.up()
    for field in scsi.CONFIG:
        if field.name in _SIZES:
            t.transport.write_config(field.offset, field.width, _SIZES[field.name][1])
    written = read()
    t.note(f"written: {written}")
    t.reset()
    seen = read()
    t.expect(seen == right, f"{seen} after {written} and a reset", f"{right}")
    return None


@AREA.row(
    "D-SCS-11",
    "5.6.4",
    "SHOULD",
    "max_channel is 0, max_target at most 255 and max_lun at most 16383.",
    level=Level.LOOK,
)
def limits(t: Trial) -> Outcome:
    """They are read."""
    for name, most in _LIMITS.items():
        seen = t.config_field(scsi.CONFIG, name)
        t.expect(seen <= most, f"{name} {seen}", f"at most {most}")
    return None


# --- requests (5.6.6.1) -----------------------------------------------------------------------------------------


@AREA.row("D-SCS-02", "5.6.6.1.1", "MUST", "status is a SAM status code, and response one of the list.")
def codes(t: Trial) -> Outcome:
    """INQUIRY, and TEST UNIT READY twice, to 0:0."""
    lane = t.start()
    size = 36
    for cdb, room in ((inquiry(size), size), (_TEST_UNIT_READY, 0), (_TEST_UNIT_READY, 0)):
        answer = ask(t, lane, cdb, room=room)
        t.expect(answer.response in _RESPONSES, f"{said(answer)} for opcode {cdb[0]:#x}", "a response of 5.6.6.1")
        if answer.response == Response.OK:
            t.expect(
                answer.status in _STATUSES, f"{said(answer)} for opcode {cdb[0]:#x}", "a status of SAM-5, 5.3.1"
            )
    return None


@AREA.row(
    "D-SCS-03", "5.6.6.1.1", "MUST", "A target that there is not gives BAD_TARGET.", severity=Severity.SILENT
)
def no_such_target(t: Trial) -> Outcome:
    """INQUIRY to the last target."""
    target = min(t.config_field(scsi.CONFIG, "max_target"), 255)
    lane = t.start()
    answer = ask(t, lane, inquiry(36), target=target, room=36)
    assert answer.room is not None
    there = answer.response == Response.OK and answer.room.data[0] < _NOTHING_THERE and answer.room.written
    t.need(not there, f"target {target} is there")
    t.expect(answer.response == Response.BAD_TARGET, f"{said(answer)} for target {target}", "BAD_TARGET")
    return None


@AREA.row(
    "D-SCS-04",
    "5.6.6.1.1",
    "MUST",
    "A command that needs more room than there is gives OVERRUN.",
    level=Level.ODD,
    severity=Severity.SILENT,
)
def overrun(t: Trial) -> Outcome:
    """INQUIRY with an allocation length of 255 and room for 8 bytes; BAD_TARGET where there is no target 0."""
    lane = t.start()
    answer = ask(t, lane, inquiry(_LONG), room=_SHORT)
    t.need(answer.response != Response.BAD_TARGET, "there is no target 0")
    t.expect(answer.response == Response.OVERRUN, said(answer), "OVERRUN")
    return None


@AREA.row(
    "D-SCS-05",
    "5.6.6.1.1",
    "MUST",
    "Data both ways without INOUT gives FAILURE.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def both_ways(t: Trial) -> Outcome:
    """INQUIRY with 8 bytes to read and 36 to write."""
    lane = t.start()
    answer = ask(t, lane, inquiry(36), data=bytes(_SHORT), room=36)
    t.expect(answer.response == Response.FAILURE, said(answer), "FAILURE")
    return None


def _load(t: Trial, lane: Lane) -> None:
    """Several good commands at once."""
    chains = [t.request(lane)[1] for _ in range(_LOAD)]
    lane.publish(*chains)
    lane.kick()


@AREA.row(
    "D-SCS-06",
    "5.6.6.1.1",
    "MUST",
    "A reset ends all commands: nothing of them is written later.",
    severity=Severity.MEMORY,
)
def reset_ends_commands(t: Trial) -> Outcome:
    """A reset with eight commands out; then a good one."""
    _load(t, t.start())
    t.reset()
    before = t.contents()
    t.expect(
        t.quiet(lambda: t.status() != 0 or t.contents() != before), "memory changed after the reset", "none of it"
    )
    t.good(t.start())
    return None


@AREA.row(
    "D-SCS-07",
    "5.6.6.2",
    "MUST",
    "A reset of a unit completes the commands of the unit before itself.",
    level=Level.ODD,
    severity=Severity.SILENT,
)
def reset_of_a_unit(t: Trial) -> Outcome:
    """LOGICAL UNIT RESET with eight commands out: those that it ends come back before it, the others later."""
    lane = t.start(queues=[scsi.REQUESTQ, scsi.CONTROLQ])
    control = t.lanes[scsi.CONTROLQ]
    commands = [t.request(lane) for _ in range(_LOAD)]
    lane.publish(*(posted for _, posted in commands))
    lane.kick()
    task = struct.pack("<II8sQ", scsi.Control.TMF, Task.LOGICAL_UNIT_RESET, bytes([1, 0]), 0)
    answer = t.writable(1)
    control.post(t.readable(task), answer)
    t.await_used(control, 1)
    response = answer.data[0]
    lane.take()
    late = [(elements, posted) for elements, posted in commands if posted.length is None]
    if late:  # the device may take the control queue first; then they are none of the reset's business
        t.await_used(lane, len(late))
    for elements, _ in late:
        ended = elements[1].data[scsi.RESPONSE_SIZE - 1]
        t.expect(
            ended not in (Response.RESET, Response.ABORTED),
            f"a command was ended by the reset ({ended}) and came back behind it",
            "all of them, then the reset",
        )
    return None if response == Response.OK else free(f"LOGICAL UNIT RESET gives {response}")


# --- events (5.6.6.3) -------------------------------------------------------------------------------------------


def _events(t: Trial, features: int) -> Lane:
    return t.start(also=t.offered & features, queues=[scsi.EVENTQ])


def _buffer(t: Trial) -> Buffer:
    return t.writable(max(t.config_field(scsi.CONFIG, "event_info_size"), scsi.EVENT_SIZE))


@AREA.row(
    "D-SCS-08",
    "5.6.6.3.2",
    "MUST",
    "Bit 31 of event says that events were lost.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def lost_events(t: Trial) -> Outcome:
    """A unit is plugged while there is no buffer; then there is one, and the unit goes."""
    t.need_feature(f.Scsi.HOTPLUG)
    with unit(t.device) as one:
        lane = _events(t, f.mask(f.Scsi.HOTPLUG))
        one.plug()
        buffer = _buffer(t)
        lane.post(buffer)
        one.unplug()
        t.await_used(lane, 1)
        event = int.from_bytes(buffer.data[:4], "little")
        t.expect(bool(event & scsi.EVENTS_MISSED), f"event {event:#x}", f"bit 31, {scsi.EVENTS_MISSED:#x}")
    return None


@AREA.row(
    "D-SCS-09", "5.6.6.3.2", "MUST NOT", "No event of a hotplug without HOTPLUG.", needs=_HOST, witness="host"
)
def no_hotplug_events(t: Trial) -> Outcome:
    """The event queue has a buffer, and a unit comes and goes."""
    with unit(t.device) as one:
        lane = _events(t, 0)
        buffer = _buffer(t)
        lane.post(buffer)
        one.plug()
        one.unplug()
        t.expect(t.quiet(lambda: bool(lane.take())), f"an event: {buffer.data[:16].hex()}", "none")
    return None


@AREA.row("D-SCS-10", "5.6.6.3.2", "MUST NOT", "No PARAM_CHANGE for MMC units.", needs=_HOST)
def no_change_of_mmc(t: Trial) -> Outcome:
    """A CD drive comes, and its medium changes; only what CHANGE asks for is negotiated."""
    t.need_feature(f.Scsi.CHANGE)
    with unit(t.device, removable=True) as one:
        lane = _events(t, f.mask(f.Scsi.CHANGE))
        buffer = _buffer(t)
        lane.post(buffer)
        one.plug()
        one.change()
        told = not t.quiet(lambda: bool(lane.take()))
        event = int.from_bytes(buffer.data[:4], "little")
        t.expect(not (told and event == EventType.PARAM_CHANGE), f"event {event:#x}", "none of its medium")
    return None

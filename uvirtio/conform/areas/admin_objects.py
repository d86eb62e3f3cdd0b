"""2.12.1.2, 2.12.1.3: capabilities and resource objects; tried with those for device parts, of any type."""

from __future__ import annotations

import struct

from uvirtio.conform.administration import Answer, Desk, command
from uvirtio.conform.areas.admin import takes
from uvirtio.conform.row import PCI, Area, Level
from uvirtio.conform.traffic import all_used
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free
from uvirtio.spec.admin import AdminStatus, Group, Opcode

AREA = Area("admin_objects", 77, "2.12.1.2, 2.12.1.3: capabilities and resource objects", transports=PCI)

_CAPABILITIES = frozenset({Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET})
_OBJECTS = frozenset(
    {
        Opcode.RESOURCE_OBJ_CREATE,
        Opcode.RESOURCE_OBJ_QUERY,
        Opcode.RESOURCE_OBJ_MODIFY,
        Opcode.RESOURCE_OBJ_DESTROY,
    }
)
_PARTS = 0  # 2.12.1.4: the capability, and the type of its objects
_NO_CAPABILITY = 0xFFFF
_GET, _SET = bytes(8), b"\x01".ljust(8, b"\0")
_EEXIST = 17  # the text has it, the table of 2.12.1 has not: as with the others, Linux's number


class _Store:
    """A device whose capability for device parts can be set, and its objects."""

    def __init__(self, t: Trial, *, objects: bool = True) -> None:
        """Bring it up.

        Args:
            t: The trial.
            objects: Objects are made; else the capability is enough.
        """
        self.t = t
        self.desk = Desk(t)
        wanted = _CAPABILITIES | (_OBJECTS if objects else frozenset())
        t.need(wanted <= self.desk.supported(), "there are no such commands for the self group")
        takes(t, self.desk.use(wanted), "LIST_USE")
        listed = self.desk.run(Opcode.CAP_ID_LIST_QUERY)
        takes(t, listed, "CAP_ID_LIST_QUERY")
        t.need(_PARTS in listed.bits, "there is no capability for device parts")
        got = self.desk.run(Opcode.DEVICE_CAP_GET, struct.pack("<H6x", _PARTS))
        takes(t, got, "DEVICE_CAP_GET")
        self.limits = (got.result + bytes(2))[:2]
        t.need(not objects or bool(self.limits[0]), "there may be no object to get device parts")

    def set(self, get: int, put: int = 0) -> Answer:
        """Set the driver's limits of objects to get, and to set, device parts."""
        return self.desk.run(Opcode.DRIVER_CAP_SET, struct.pack("<H6xBB6x", _PARTS, get, put))

    def allow(self, get: int) -> None:
        """Set the driver's limit of objects to get device parts; a violation if that fails."""
        takes(self.t, self.set(get), f"a limit of {get}")

    def sent(self, opcode: int, ident: int, data: bytes = b"") -> bytes:
        """A command about one object."""
        return command(opcode, struct.pack("<H2xIQ", _PARTS, ident, 0) + data)

    def run(self, opcode: int, ident: int, data: bytes = b"") -> Answer:
        """Send a command about one object."""
        return self.desk.send(self.sent(opcode, ident, data))

    def create(self, ident: int) -> Answer:
        """Make an object to get device parts."""
        return self.run(Opcode.RESOURCE_OBJ_CREATE, ident, _GET)

    def query(self, ident: int) -> Answer:
        """Ask for an object."""
        return self.run(Opcode.RESOURCE_OBJ_QUERY, ident)

    def destroy(self, ident: int) -> Answer:
        """Destroy an object."""
        return self.run(Opcode.RESOURCE_OBJ_DESTROY, ident)


# --- capabilities (2.12.1.2.4) ----------------------------------------------------------------------------------


@AREA.row("D-ACP-01", "2.12.1.2.4", "MUST", "Capabilities come with all three commands: list, get and set.")
def all_three(t: Trial) -> Outcome:
    """The list of opcodes has all of 7, 8 and 9, or none."""
    found = _CAPABILITIES & Desk(t).supported()
    t.need(bool(found), "there is no command for capabilities")
    t.expect(found == _CAPABILITIES, f"only {', '.join(Opcode(one).name for one in sorted(found))}", "all three")
    return None


@AREA.row("D-ACP-02", "2.12.1.2.4", "MUST", "Take any limit of objects up to the one that was reported.")
def any_limit(t: Trial) -> Outcome:
    """For objects to get and to set device parts: none, one, half, and all."""
    store = _Store(t, objects=False)
    get, put = store.limits
    for limits in ((0, 0), (min(1, get), 0), (0, min(1, put)), (get // 2, put // 2), (get, put)):
        takes(t, store.set(*limits), f"limits {limits} of {(get, put)}")
    return None


@AREA.row(
    "D-ACP-04",
    "2.12.1.2.4",
    "MUST",
    "The commands of capabilities fail with EINVAL outside the self group.",
    level=Level.REGISTERS,
)
def self_group_alone(t: Trial) -> Outcome:
    """CAP_ID_LIST_QUERY of the SR-IOV group, for member 1."""
    desk = Desk(t)
    takes(t, desk.use(desk.supported(Group.SR_IOV), Group.SR_IOV), "LIST_USE")
    answer = desk.run(Opcode.CAP_ID_LIST_QUERY, group=Group.SR_IOV, member=1)
    t.expect(answer.status == AdminStatus.EINVAL, answer.words, "EINVAL")
    return None


@AREA.row(
    "D-ACP-05",
    "2.12.1.2.4",
    "SHOULD",
    "Disabling a capability with live objects gives EBUSY.",
    level=Level.REGISTERS,
)
def busy(t: Trial) -> Outcome:
    """A limit of 0 while there is an object, which stays."""
    store = _Store(t)
    store.allow(1)
    takes(t, store.create(0), "an object")
    answer = store.set(0)
    t.expect(answer.status == AdminStatus.EBUSY, f"a limit of 0: {answer.words}", "EBUSY")
    takes(t, store.query(0), "the object")
    return None


@AREA.row(
    "D-ACP-06", "2.12.1.2.4", "SHOULD", "A capability that is not listed gives ENXIO.", level=Level.REGISTERS
)
def no_such_capability(t: Trial) -> Outcome:
    """DEVICE_CAP_GET and DRIVER_CAP_SET of capability 0xffff."""
    store = _Store(t, objects=False)
    for opcode in (Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET):
        answer = store.desk.run(opcode, struct.pack("<H6xQ", _NO_CAPABILITY, 0))
        t.expect(answer.status == AdminStatus.ENXIO, f"{opcode.name}: {answer.words}", "ENXIO")
    return None


@AREA.row("D-ACP-07", "2.12.1.2.4", "MUST", "A reset clears all driver capabilities.", level=Level.REGISTERS)
def reset_clears_capabilities(t: Trial) -> Outcome:
    """A limit is set, and the device reset: an object cannot be made."""
    _Store(t).allow(1)
    t.reset()
    answer = _Store(t).create(0)
    t.expect(not answer.ok, "an object was made with the limit of before the reset", "an error")
    return None


@AREA.row("D-ACP-08", "2.12.1.2.4", "SHOULD", "Limits that were not set count as zero.", level=Level.REGISTERS)
def no_limit_is_zero(t: Trial) -> Outcome:
    """An object is made without DRIVER_CAP_SET."""
    answer = _Store(t).create(0)
    t.expect(not answer.ok, "an object was made, and no limit was set", "an error")
    return None


# --- objects (2.12.1.3.5) ---------------------------------------------------------------------------------------


@AREA.row(
    "D-AVQ-09",
    "2.13.1",
    "MUST",
    "Commands of one administration queue are processed in their order.",
    level=Level.ODD,
    severity=Severity.SILENT,
)
def commands_in_order(t: Trial) -> Outcome:
    """Create, query, destroy and create again, posted together: all four succeed."""
    store = _Store(t)
    store.allow(1)
    opcodes = (
        (Opcode.RESOURCE_OBJ_CREATE, _GET),
        (Opcode.RESOURCE_OBJ_QUERY, b""),
        (Opcode.RESOURCE_OBJ_DESTROY, b""),
        (Opcode.RESOURCE_OBJ_CREATE, _GET),
    )
    lane = store.desk.lane
    laid = [store.desk.lay(store.sent(opcode, 0, data), 72) for opcode, data in opcodes]
    lane.publish(*(posted for _, posted in laid))
    lane.kick()
    all_used(t, lane)
    for (opcode, _), one in zip(opcodes, laid, strict=True):
        takes(t, store.desk.answer(*one), opcode.name)
    return None


@AREA.row("D-AOB-01", "2.12.1.3.5", "SHOULD", "An id in use gives EEXIST.", level=Level.REGISTERS)
def created_twice(t: Trial) -> Outcome:
    """The same object is made twice."""
    store = _Store(t)
    store.allow(1)
    takes(t, store.create(0), "an object")
    answer = store.create(0)
    t.expect(not answer.ok, "the same object was made twice", "EEXIST")
    return None if answer.status == _EEXIST else free(f"refused with {answer.words}; EEXIST has no number")


@AREA.row(
    "D-AOB-02",
    "2.12.1.3.5",
    "SHOULD",
    "An object that is not there gives ENXIO.",
    level=Level.REGISTERS,
)
def no_such_object(t: Trial) -> Outcome:
    """Query, modify and destroy of an object that was never made."""
    store = _Store(t)
    store.allow(1)
    for opcode in (Opcode.RESOURCE_OBJ_QUERY, Opcode.RESOURCE_OBJ_MODIFY, Opcode.RESOURCE_OBJ_DESTROY):
        answer = store.run(opcode, 0, _GET)
        t.expect(answer.status == AdminStatus.ENXIO, f"{opcode.name}: {answer.words}", "ENXIO")
    return None


@AREA.row("D-AOB-03", "2.12.1.3.5", "SHOULD", "Too many objects give ENOSPC.", level=Level.REGISTERS)
def too_many(t: Trial) -> Outcome:
    """A second object, with an id behind the range, where the limit is one."""
    store = _Store(t)
    store.allow(1)
    takes(t, store.create(0), "an object")
    answer = store.create(1)
    t.expect(not answer.ok, "a second object was made, and the limit is one", "ENOSPC")
    if answer.status != AdminStatus.ENOSPC:
        return free(f"refused with {answer.words}: the id is out of its range, too")
    return None


@AREA.row("D-AOB-05", "2.12.1.3.5", "MUST", "A destroyed object can be made again without a reset.")
def made_again(t: Trial) -> Outcome:
    """Create and destroy, three times."""
    store = _Store(t)
    store.allow(1)
    for turn in range(3):
        takes(t, store.create(0), f"create after {turn} times")
        takes(t, store.destroy(0), "destroy")
    return None


@AREA.row("D-AOB-06", "2.12.1.3.5", "SHOULD", "Any free id in its range is accepted.")
def any_id(t: Trial) -> Outcome:
    """The last id below the limit, then the first."""
    store = _Store(t)
    limit = store.limits[0]
    store.allow(limit)
    for ident in dict.fromkeys((limit - 1, 0)):
        takes(t, store.create(ident), f"object {ident} of {limit}")
    return None


@AREA.row("D-AOB-07", "2.12.1.3.5", "SHOULD", "As many objects as the driver's limit can be made.")
def up_to_the_limit(t: Trial) -> Outcome:
    """The reported limit is set, and as many objects made."""
    store = _Store(t)
    limit = store.limits[0]
    store.allow(limit)
    for ident in range(limit):
        takes(t, store.create(ident), f"object {ident} of {limit}")
    return None


@AREA.row(
    "D-AOB-08",
    "2.12.1.3.5",
    "MUST NOT",
    "A modification that fails leaves the object alone.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
)
def failed_modification(t: Trial) -> Outcome:
    """An object is modified to a type that there is not."""
    store = _Store(t)
    store.allow(1)
    takes(t, store.create(0), "an object")
    before = store.query(0).result
    t.need(not store.run(Opcode.RESOURCE_OBJ_MODIFY, 0, b"\xff" * 8).ok, "the object takes any type")
    after = store.query(0)
    t.expect(after.ok and after.result == before, f"the object is {after.result.hex()}", before.hex())
    return None


@AREA.row(
    "D-AOB-09",
    "2.12.1.3.5",
    "MUST",
    "A query has what create or modify gave last.",
    severity=Severity.SILENT,
)
def query_has_the_last(t: Trial) -> Outcome:
    """An object to get device parts, then, where it can be modified, one to set them."""
    store = _Store(t)
    t.note("table and text of the standard disagree on which of QUERY and MODIFY is 0xb: as in the table")
    takes(t, store.set(1, min(1, store.limits[1])), "limits")
    takes(t, store.create(0), "an object")
    expected = _GET
    for _ in range(2):
        answer = store.query(0)
        t.expect(answer.result[:8] == expected, f"the object is {answer.result[:8].hex()}", expected.hex())
        if not store.limits[1] or not store.run(Opcode.RESOURCE_OBJ_MODIFY, 0, _SET).ok:
            break
        expected = _SET
    return None


@AREA.row("D-AOB-10", "2.12.1.3.5", "MUST", "A reset destroys all objects.", level=Level.REGISTERS)
def reset_destroys_objects(t: Trial) -> Outcome:
    """An object is made, and the device reset: the object is not there, and can be made."""
    store = _Store(t)
    store.allow(1)
    takes(t, store.create(0), "an object")
    t.reset()
    store = _Store(t)
    store.allow(1)
    answer = store.query(0)
    t.expect(not answer.ok, "an object of before the reset is there", "an error")
    takes(t, store.create(0), "the same object after the reset")
    return None

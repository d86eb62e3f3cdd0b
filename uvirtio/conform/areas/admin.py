"""2.12.1, 2.13: the administration queue, and what holds for all commands."""

from __future__ import annotations

from uvirtio.conform.administration import Answer, Desk, command, list_of
from uvirtio.conform.row import PCI, Area, Level
from uvirtio.conform.traffic import unwritten
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.spec import admin
from uvirtio.spec import features as f
from uvirtio.spec.admin import AdminStatus, Group, Opcode, Qualifier
from uvirtio.spec.status import Status, describe

AREA = Area("admin", 75, "2.12, 2.13: administration commands and their queue", transports=PCI)

_QUERY = command(Opcode.LIST_QUERY)
_NO_GROUP, _NO_OPCODE = 0x7777, 0x7FFF
_NO_MEMBER = 0x10000  # NumVFs has 16 bits


def refuses(t: Trial, answer: Answer, qualifier: Qualifier, what: str) -> None:
    """A violation, unless the answer is EINVAL with this qualifier."""
    right = answer.status == AdminStatus.EINVAL and answer.qualifier == qualifier
    t.expect(right, f"{what}: {answer.words}", f"EINVAL, qualifier {qualifier.name}")


def takes(t: Trial, answer: Answer, what: str) -> None:
    """A violation, unless the answer is OK."""
    t.expect(answer.ok, f"{what}: {answer.words}", "OK")


# --- parts of a command (2.13.1) --------------------------------------------------------------------------------


@AREA.row("D-AVQ-01", "2.13.1", "MUST", "Missing readable bytes count as zero.", level=Level.REGISTERS)
def short_command(t: Trial) -> Outcome:
    """LIST_QUERY in 8 and in 16 bytes has the answer of the full one; a driver should send all 24."""
    desk = Desk(t)
    whole = desk.send(_QUERY)
    takes(t, whole, "LIST_QUERY")
    for length in (8, 16):
        short = desk.send(_QUERY[:length])
        takes(t, short, f"LIST_QUERY in {length} bytes")
        t.expect(short.bits == whole.bits, f"another list for {length} bytes: {sorted(short.bits)}", "the same")
    return None


@AREA.row(
    "D-AVQ-02",
    "2.13.1",
    "MUST",
    "Discard what does not fit into a short writable part.",
    level=Level.ODD,
    severity=Severity.MEMORY,
)
def short_answer(t: Trial) -> Outcome:
    """LIST_QUERY with room for the status alone: it is there, and the guard bytes behind it stay."""
    desk = Desk(t)
    answer = desk.send(_QUERY, admin.ANSWER_SIZE)
    takes(t, answer, "LIST_QUERY into 8 bytes")
    t.expect(answer.length <= admin.ANSWER_SIZE, f"len {answer.length} of 8 bytes", "no more")
    strays = t.look()
    t.expect(not strays, "; ".join(strays), "nothing behind the part")
    return None


@AREA.row("D-AVQ-03", "2.13.1", "MUST", "Ignore readable bytes beyond the expected length.", level=Level.ODD)
def long_command(t: Trial) -> Outcome:
    """LIST_QUERY followed by 16 bytes of ones has the same answer."""
    desk = Desk(t)
    whole = desk.send(_QUERY)
    long = desk.send(_QUERY + b"\xff" * 16)
    takes(t, long, "LIST_QUERY with 16 bytes more")
    t.expect(long.bits == whole.bits, f"another list: {sorted(long.bits)}", "the same")
    return None


@AREA.row(
    "D-AVQ-04",
    "2.13.1",
    "MUST",
    "Write only the expected structure, and report its true length.",
    severity=Severity.SILENT,
)
def only_the_structure(t: Trial) -> Outcome:
    """LIST_QUERY and LIST_USE with 512 bytes of room: what lies behind the used length stays."""
    desk = Desk(t)
    listed = desk.send(_QUERY, 512)
    t.expect(listed.length >= admin.ANSWER_SIZE + 8, f"len {listed.length} of a list", "16 or more")
    used = desk.send(command(Opcode.LIST_USE, list_of({0, 1})), 512)
    t.expect(used.length == admin.ANSWER_SIZE, f"len {used.length} of an answer without a result", "8")
    for answer in (listed, used):
        data, given = answer.buffer.data, answer.buffer.given
        t.expect(data[answer.length :] == given[answer.length :], f"bytes behind len {answer.length}", "as before")
    return None


@AREA.row("D-AVQ-05", "2.13.1", "SHOULD", "Initialise the result up to the shorter of structure and buffer.")
def all_of_the_structure(t: Trial) -> Outcome:
    """LIST_QUERY into buffers of both patterns: neither shows within the used length."""
    desk = Desk(t)
    for inverted in (False, True):
        answer = desk.send(_QUERY, 512, inverted=inverted)
        wrong = unwritten([answer.buffer], answer.length)
        t.expect(wrong is None, wrong or "", "bytes that were written")
    return None


@AREA.row(
    "D-AVQ-06", "2.13.1", "MUST NOT", "Fail no command merely for the lengths of its parts.", level=Level.ODD
)
def any_lengths(t: Trial) -> Outcome:
    """LIST_QUERY with 8 to 4096 bytes of room and 0 to 64 bytes too many: always OK."""
    desk = Desk(t)
    for more, room in ((0, 8), (0, 16), (8, 24), (64, 1024), (0, 4096)):
        answer = desk.send(_QUERY + bytes(more), room)
        takes(t, answer, f"LIST_QUERY with {more} bytes more and {room} of room")
    return None


@AREA.row("D-AVQ-07", "2.13.1", "MUST", "Write the result in whole units of 8 bytes.")
def whole_units(t: Trial) -> Outcome:
    """The used lengths of LIST_QUERY, LIST_USE and a command that is refused."""
    desk = Desk(t)
    sent = (_QUERY, command(Opcode.LIST_USE, list_of({0, 1})), command(Opcode.LIST_QUERY, group=_NO_GROUP))
    for readable in sent:
        answer = desk.send(readable)
        t.expect(answer.length > 0 and not answer.length % 8, f"len {answer.length}", "a multiple of 8")
    return None


@AREA.row("D-AVQ-08", "2.13.1", "MUST", "Set status and status_qualifier always.", severity=Severity.SILENT)
def status_is_set(t: Trial) -> Outcome:
    """A command that succeeds and one that fails, into both patterns: status and qualifier are the same."""
    desk = Desk(t)
    for readable in (_QUERY, command(Opcode.LIST_QUERY, group=_NO_GROUP)):
        first, second = (desk.send(readable, inverted=inverted) for inverted in (False, True))
        heads = {one.buffer.data[:4] for one in (first, second)}
        t.expect(len(heads) == 1, f"status and qualifier are {' and '.join(map(bytes.hex, heads))}", "one answer")
    return None


# --- what every command has (2.12.1.5) --------------------------------------------------------------------------


@AREA.row(
    "D-ACM-01", "2.12.1.5", "MUST", "Bad opcodes and group types are refused with EINVAL.", level=Level.REGISTERS
)
def bad_values(t: Trial) -> Outcome:
    """A group type and an opcode that there are not."""
    desk = Desk(t)
    for what, answer in (
        ("a bad group type", desk.run(Opcode.LIST_QUERY, group=_NO_GROUP)),
        ("a bad opcode", desk.run(_NO_OPCODE)),
    ):
        t.expect(answer.status == AdminStatus.EINVAL, f"{what}: {answer.words}", "EINVAL")
    return None


@AREA.row("D-ACM-02", "2.12.1.5", "MUST", "A bad group type gives INVALID_GROUP.", level=Level.REGISTERS)
def bad_group(t: Trial) -> Outcome:
    """Group type 0x7777 with a good opcode, and with a bad one."""
    desk = Desk(t)
    refuses(t, desk.run(Opcode.LIST_QUERY, group=_NO_GROUP), Qualifier.INVALID_GROUP, "group type 0x7777")
    refuses(t, desk.run(_NO_OPCODE, group=_NO_GROUP), Qualifier.INVALID_GROUP, "with a bad opcode, too")
    return None


@AREA.row("D-ACM-03", "2.12.1.5", "MUST", "Else a bad opcode gives INVALID_OPCODE.", level=Level.REGISTERS)
def bad_opcode(t: Trial) -> Outcome:
    """Opcode 0x7fff of the self group, with a member that there is not."""
    desk = Desk(t)
    answer = desk.run(_NO_OPCODE, member=_NO_MEMBER)
    refuses(t, answer, Qualifier.INVALID_OPCODE, "opcode 0x7fff")
    return None


@AREA.row("D-ACM-04", "2.12.1.5", "MUST", "Else a bad member id gives INVALID_MEMBER.", level=Level.REGISTERS)
def bad_member(t: Trial) -> Outcome:
    """A command of the SR-IOV group that only looks, for member 65536."""
    desk = Desk(t)
    look = desk.harmless(Group.SR_IOV)
    takes(t, desk.use({look}, Group.SR_IOV), "LIST_USE")
    answer = desk.run(look, group=Group.SR_IOV, member=_NO_MEMBER)
    refuses(t, answer, Qualifier.INVALID_MEMBER, "member 65536")
    return None


@AREA.row("D-ACM-05", "2.12.1.5", "MUST", "Success is OK; failure is anything else.", level=Level.REGISTERS)
def ok_or_not(t: Trial) -> Outcome:
    """LIST_QUERY and LIST_USE are OK with a qualifier of 0; a bad opcode and a bad group type are not OK."""
    desk = Desk(t)
    for good in (desk.send(_QUERY), desk.use({0, 1})):
        t.expect(good.ok and not good.qualifier, good.words, "OK, qualifier 0")
    for bad in (desk.run(_NO_OPCODE), desk.run(Opcode.LIST_QUERY, group=_NO_GROUP)):
        t.expect(not bad.ok, f"an invalid command: {bad.words}", "an error")
    return None


@AREA.row(
    "D-ACM-06",
    "2.12.1.5",
    "MUST NOT",
    "EINVAL changes no state and is no error of the device.",
    level=Level.REGISTERS,
    severity=Severity.DEAD,
)
def refusal_changes_nothing(t: Trial) -> Outcome:
    """A bad opcode and a bad group type: the list is the same afterwards, and the status is clean."""
    desk = Desk(t)
    before = desk.supported()
    desk.run(_NO_OPCODE)
    desk.run(Opcode.LIST_QUERY, group=_NO_GROUP)
    status = t.status()
    t.expect(not status & Status.DEVICE_NEEDS_RESET, f"status {describe(status)}", "no DEVICE_NEEDS_RESET")
    after = desk.send(_QUERY)
    t.expect(after.ok and after.bits == before, f"LIST_QUERY: {after.words}, {sorted(after.bits)}", "as before")
    return None


@AREA.row("D-ACM-07", "2.12.1.5", "SHOULD NOT", "A failed command changes no state.", level=Level.REGISTERS)
def failure_changes_nothing(t: Trial) -> Outcome:
    """A LIST_USE with an opcode that there is not fails, and the list of before is in use."""
    desk = Desk(t)
    look = desk.harmless()
    takes(t, desk.use({look}), "LIST_USE")
    failed = desk.use({200})
    t.need(not failed.ok, "a list with opcode 200 is accepted")
    takes(t, desk.run(look), f"command {look:#x} after a LIST_USE that failed")
    return None


@AREA.row("D-ACM-08", "2.12.1.5", "MUST", "Groups are independent of each other.", level=Level.REGISTERS)
def groups_are_independent(t: Trial) -> Outcome:
    """LIST_USE of the self group: the SR-IOV group has its own list, and none of it is in use."""
    desk = Desk(t)
    look = desk.harmless(Group.SR_IOV)
    mine = desk.supported(Group.SR_IOV)
    takes(t, desk.use(desk.supported()), "LIST_USE of the self group")
    answer = desk.run(Opcode.LIST_QUERY, group=Group.SR_IOV)
    t.expect(answer.bits == mine, f"the list of the SR-IOV group is {sorted(answer.bits)}", f"{sorted(mine)}")
    answer = desk.run(look, group=Group.SR_IOV, member=1)
    refuses(t, answer, Qualifier.INVALID_OPCODE, f"command {look:#x} of a group without LIST_USE")
    return None


@AREA.row(
    "D-ACM-09",
    "2.12.1.5",
    "MUST",
    "Before LIST_USE only LIST_QUERY and LIST_USE are legal.",
    level=Level.REGISTERS,
)
def lists_come_first(t: Trial) -> Outcome:
    """A command that the device has, and that only looks, before LIST_USE, and again after a reset."""
    for _ in range(2):
        desk = Desk(t)
        look = desk.harmless()
        refuses(t, desk.run(look), Qualifier.INVALID_OPCODE, f"command {look:#x} before LIST_USE")
        takes(t, desk.use({look}), "LIST_USE")
        t.reset()
    return None


@AREA.row(
    "D-ACM-10",
    "2.12.1.5",
    "MUST",
    "After LIST_USE just the commands of its list are legal.",
    level=Level.REGISTERS,
)
def just_that_list(t: Trial) -> Outcome:
    """A list with a command, one without it, and one with it again."""
    desk = Desk(t)
    look = desk.harmless()
    for opcodes, legal in (({look}, True), (set(), False), ({look}, True)):
        takes(t, desk.use(opcodes), "LIST_USE")
        answer = desk.run(look)
        refused = answer.status == AdminStatus.EINVAL
        seen = f"command {look:#x} {'in' if legal else 'outside'} the list: {answer.words}"
        t.expect(answer.ok if legal else refused, seen, "OK" if legal else "EINVAL")
    return None


@AREA.row(
    "D-ACM-11", "2.12.1.5", "MUST", "A command outside the list fails with INVALID_OPCODE.", level=Level.REGISTERS
)
def outside_the_list(t: Trial) -> Outcome:
    """A command that the device has and the list has not, then LIST_QUERY itself where the list leaves it out."""
    desk = Desk(t)
    look = desk.harmless()
    takes(t, desk.use(set()), "LIST_USE")
    refuses(t, desk.run(look), Qualifier.INVALID_OPCODE, f"command {look:#x}")
    takes(t, desk.run(Opcode.LIST_USE, list_of({Opcode.LIST_USE})), "LIST_USE without LIST_QUERY")
    refuses(t, desk.send(_QUERY), Qualifier.INVALID_OPCODE, "LIST_QUERY")
    return None


@AREA.row("D-ACM-12", "2.12.1.5", "MUST NOT", "The list of supported commands never shrinks.")
def list_never_shrinks(t: Trial) -> Outcome:
    """LIST_QUERY before and after LIST_USE, and after each of two resets."""
    seen: frozenset[int] = frozenset()
    for _ in range(3):
        desk = Desk(t)
        for _ in range(2):
            now = desk.supported()
            t.expect(seen <= now, f"opcodes {sorted(seen - now)} are supported no more", "all of them")
            seen |= now
            takes(t, desk.use(set()), "LIST_USE")
        t.reset()
    return None


@AREA.row("D-ACM-13", "2.12.1.5", "SHOULD", "The same LIST_USE succeeds again after a reset.")
def same_list_again(t: Trial) -> Outcome:
    """LIST_USE with all that is supported, three times, with a reset between; where it fails at first, it may."""
    desk = Desk(t)
    everything = desk.supported()
    if not desk.use(everything).ok:
        everything = frozenset({0, 1})
        takes(t, desk.use(everything), "LIST_USE")
    for _ in range(2):
        t.reset()
        takes(t, Desk(t).use(everything), "the same LIST_USE after a reset")
    return None


@AREA.row("D-ACM-15", "2.12.1.5", "MUST", "The SR-IOV group of a device without SR-IOV gives INVALID_GROUP.")
def no_virtual_functions(t: Trial) -> Outcome:
    """LIST_QUERY of the SR-IOV group, of a device that does not offer SR_IOV."""
    t.need(not f.has(t.offered, f.SR_IOV), "the device offers SR_IOV")
    refuses(t, Desk(t).run(Opcode.LIST_QUERY, group=Group.SR_IOV), Qualifier.INVALID_GROUP, "group type 1")
    return None


@AREA.row(
    "D-ACM-16",
    "2.12.1.5",
    "MUST",
    "SR-IOV members outside 1 to NumVFs give INVALID_MEMBER.",
    level=Level.REGISTERS,
)
def members_out_of_range(t: Trial) -> Outcome:
    """A command of the SR-IOV group that only looks, for member 0, for 65536, and for one of 64 bits."""
    desk = Desk(t)
    look = desk.harmless(Group.SR_IOV)
    takes(t, desk.use({look}, Group.SR_IOV), "LIST_USE")
    for member in (0, _NO_MEMBER, 1 << 32 | 1):
        answer = desk.run(look, group=Group.SR_IOV, member=member)
        refuses(t, answer, Qualifier.INVALID_MEMBER, f"member {member}")
    return None


# --- commands that come together (2.12.1.1.6, 2.12.1.4.4.1) -----------------------------------------------------

_LEGACY = frozenset(
    {
        Opcode.LEGACY_COMMON_CFG_WRITE,
        Opcode.LEGACY_COMMON_CFG_READ,
        Opcode.LEGACY_DEV_CFG_WRITE,
        Opcode.LEGACY_DEV_CFG_READ,
    }
)
_PARTS = frozenset(
    {
        Opcode.DEV_PARTS_METADATA_GET,
        Opcode.DEV_PARTS_GET,
        Opcode.DEV_PARTS_SET,
        Opcode.DEV_MODE_SET,
    }
)
_PARTS_OBJECTS = frozenset(
    {
        Opcode.RESOURCE_OBJ_CREATE,
        Opcode.RESOURCE_OBJ_QUERY,
        Opcode.RESOURCE_OBJ_MODIFY,
        Opcode.RESOURCE_OBJ_DESTROY,
    }
)


def _together(t: Trial, some: frozenset[Opcode], all_of: frozenset[Opcode]) -> None:
    """A violation, unless each group that has some of these commands has all of those."""
    desk = Desk(t)
    asked = [desk.run(Opcode.LIST_QUERY, group=group) for group in Group]
    having = [answer.bits for answer in asked if answer.ok and answer.bits & some]
    t.need(bool(having), "no group has such commands")
    for bits in having:
        lacking = ", ".join(opcode.name for opcode in sorted(all_of - bits))
        t.expect(not lacking, f"there is no {lacking}", "all of them, or none")


@AREA.row("D-ADP-01", "2.12.1.4.4.1", "MUST", "The commands for device parts come all or not at all.")
def parts_come_together(t: Trial) -> Outcome:
    """The lists of opcodes of both group types."""
    _together(t, _PARTS, _PARTS | _PARTS_OBJECTS)
    return None


@AREA.row("D-ALG-01", "2.12.1.1.6", "MUST", "The commands for legacy configurations come all four or not at all.")
def legacy_comes_together(t: Trial) -> Outcome:
    """The lists of opcodes of both group types."""
    _together(t, _LEGACY, _LEGACY)
    return None


@AREA.row("D-ALG-08", "2.12.1.1.6", "MUST", "LEGACY_NOTIFY_INFO comes with the four commands, too.")
def notify_info_needs_the_four(t: Trial) -> Outcome:
    """The lists of opcodes of both group types."""
    _together(t, frozenset({Opcode.LEGACY_NOTIFY_INFO}), _LEGACY)
    return None

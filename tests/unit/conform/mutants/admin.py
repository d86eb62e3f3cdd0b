"""2.12, 2.13: devices whose administration queue is wrong."""

from __future__ import annotations

from uvirtio.scripted import AdminModel, Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.admin import AdminStatus, Group, Opcode, Qualifier

from . import Mutants, around
from .common import administers

MUTANTS = Mutants(administers)

INVALID = int(AdminStatus.EINVAL)


def owns() -> ScriptedDevice:
    """An rng that owns a group of two virtual functions, with all commands that such a group can have."""
    admin = AdminModel({0: frozenset({0, 1, 7}), 1: frozenset({*range(7), *range(0xA, 0x12)})})
    admin.members[Group.SR_IOV] = range(1, 3)
    return ScriptedDevice(
        Rng(),
        address="scripted:rng",
        features=RING_FEATURES | f.mask(f.ADMIN_VQ),
        common_length=pci.COMMON_CFG_SIZE,
        admin=admin,
    )


def judges(device, instead):
    """Let it judge commands otherwise: ``instead`` is given the method, the opcode, group, member and data."""
    around(device.admin, "judge", instead)


def qualifies(device, wrong, instead):
    """Let it say another qualifier instead of ``wrong``."""

    def judge(before, *command):
        status, qualifier, result = before(*command)
        return status, instead if qualifier == wrong else qualifier, result

    judges(device, judge)


# --- parts of a command -----------------------------------------------------------------------------------------


@MUTANTS.of("D-AVQ-01")
def refuses_short_commands(device):
    def handle(before, queue, chain):
        if len(chain.data()) < 24:
            return device.admin._answer(chain, INVALID, Qualifier.INVALID_COMMAND, b"")
        return before(queue, chain)

    around(device.admin, "handle", handle)


@MUTANTS.of("D-AVQ-02")
def writes_its_whole_answer(device):
    def handle(before, queue, chain):
        room = chain.room
        done = before(queue, chain)
        last = chain.writable[-1]
        if room < 16:
            device.memory.write(last.address + last.length, bytes(8))
        return done

    around(device.admin, "handle", handle)


@MUTANTS.of("D-AVQ-03")
def reads_what_follows(device):
    def judge(before, opcode, group, member, body):
        if opcode == Opcode.LIST_QUERY and any(body):
            return INVALID, Qualifier.INVALID_FIELD, b""
        return before(opcode, group, member, body)

    judges(device, judge)


@MUTANTS.of("D-AVQ-04")
def leaves_junk_behind(device):
    device.admin.junk = b"\x66" * 24


@MUTANTS.of("D-AVQ-05")
def claims_more_than_it_wrote(device):
    around(device.admin, "handle", lambda before, queue, chain: before(queue, chain) + 16)


@MUTANTS.of("D-AVQ-06")
def wants_room_for_its_answer(device):
    def handle(before, queue, chain):
        if chain.room < 16:
            return device.admin._answer(chain, INVALID, Qualifier.INVALID_COMMAND, b"")
        return before(queue, chain)

    around(device.admin, "handle", handle)


@MUTANTS.of("D-AVQ-07")
def stops_in_the_middle(device):
    device.admin.short = 12


@MUTANTS.of("D-AVQ-08")
def forgets_the_qualifier(device):
    """A command that fails leaves the qualifier as it was."""

    def answer(before, chain, status, qualifier, result):
        if not status:
            return before(chain, status, qualifier, result)
        start = chain.writable[0].address
        kept = device.memory.read(start + 2, 2)
        done = before(chain, status, qualifier, result)
        device.memory.write(start + 2, kept)
        return done

    around(device.admin, "_answer", answer)


# --- what every command has -------------------------------------------------------------------------------------


@MUTANTS.of("D-ACM-01")
def has_another_word_for_it(device):
    def judge(before, *command):
        status, qualifier, result = before(*command)
        wrong = status == AdminStatus.EINVAL and qualifier == Qualifier.INVALID_OPCODE
        return AdminStatus.ENXIO if wrong else status, qualifier, result

    judges(device, judge)


@MUTANTS.of("D-ACM-02")
def looks_at_the_opcode_first(device):
    def judge(before, opcode, group, member, body):
        if opcode > 0x1000:
            return INVALID, Qualifier.INVALID_OPCODE, b""
        return before(opcode, group, member, body)

    judges(device, judge)


@MUTANTS.of("D-ACM-03")
def says_no_more_than_invalid(device):
    qualifies(device, Qualifier.INVALID_OPCODE, Qualifier.INVALID_COMMAND)


@MUTANTS.of("D-ACM-04", on=owns)
def calls_the_member_a_field(device):
    qualifies(device, Qualifier.INVALID_MEMBER, Qualifier.INVALID_FIELD)


@MUTANTS.of("D-ACM-05")
def is_always_content(device):
    judges(device, lambda before, *command: (0, *before(*command)[1:]))


@MUTANTS.of("D-ACM-06")
def gives_up_over_a_refusal(device):
    def judge(before, *command):
        done = before(*command)
        if done[0] == AdminStatus.EINVAL:
            device.needs_reset()
        return done

    judges(device, judge)


@MUTANTS.of("D-ACM-07")
def forgets_its_list_on_failure(device):
    def judge(before, opcode, group, member, body):
        done = before(opcode, group, member, body)
        if opcode == Opcode.LIST_USE and done[0]:
            device.admin.used.pop(group, None)
        return done

    judges(device, judge)


@MUTANTS.of("D-ACM-08", on=owns)
def has_one_list_for_all_groups(device):
    def judge(before, opcode, group, member, body):
        done = before(opcode, group, member, body)
        if opcode == Opcode.LIST_USE and not done[0]:
            device.admin.used = dict.fromkeys(device.admin.reported, device.admin.reported[group] | {3})
        return done

    judges(device, judge)


@MUTANTS.of("D-ACM-09")
def starts_with_all_commands(device):
    def judge(before, opcode, group, member, body):
        device.admin.used.setdefault(group, device.admin.reported.get(group, frozenset()))
        return before(opcode, group, member, body)

    judges(device, judge)


@MUTANTS.of("D-ACM-10")
def only_ever_adds_to_its_list(device):
    def judge(before, opcode, group, member, body):
        old = device.admin.used.get(group, frozenset())
        done = before(opcode, group, member, body)
        if group in device.admin.used:
            device.admin.used[group] |= old
        return done

    judges(device, judge)


@MUTANTS.of("D-ACM-11")
def calls_the_command_invalid(device):
    qualifies(device, Qualifier.INVALID_OPCODE, Qualifier.INVALID_COMMAND)


@MUTANTS.of("D-ACM-12")
def loses_a_command_with_a_reset(device):
    def reset(before):
        before()
        if 70 in device.admin.reported[0] and device.admin.commands:
            device.admin.reported = {0: device.admin.reported[0] - {70}}

    around(device.admin, "reset", reset)


@MUTANTS.of("D-ACM-13")
def takes_a_list_once(device):
    def judge(before, opcode, group, member, body):
        if opcode == Opcode.LIST_USE and [one[0] for one in device.admin.commands].count(Opcode.LIST_USE) > 1:
            return INVALID, Qualifier.INVALID_FIELD, b""
        return before(opcode, group, member, body)

    judges(device, judge)


@MUTANTS.of("D-ACM-15")
def owns_what_it_has_not(device):
    device.admin.reported = {**device.admin.reported, 1: frozenset({0, 1})}


@MUTANTS.of("D-ACM-16", on=owns)
def cuts_members_to_32_bits(device):
    judges(
        device,
        lambda before, opcode, group, member, body: before(opcode, group, member & 0xFFFFFFFF, body),
    )


# --- commands that come together --------------------------------------------------------------------------------


def lacks(*opcodes):
    """A mutant whose group has not all commands."""

    def spoil(device):
        device.admin.reported[1] -= set(opcodes)

    return spoil


MUTANTS.of("D-ADP-01", on=owns)(lacks(Opcode.DEV_MODE_SET))
MUTANTS.of("D-ALG-01", on=owns)(lacks(Opcode.LEGACY_DEV_CFG_READ))
MUTANTS.of("D-ALG-08", on=owns)(lacks(Opcode.LEGACY_COMMON_CFG_WRITE))

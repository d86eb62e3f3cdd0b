"""Administration commands as tests send them (2.12, 2.13): any opcode, any group, parts of any length."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.trial import Trial
from uvirtio.interfaces.transport import HasAdminQueues
from uvirtio.spec import admin
from uvirtio.spec import features as f
from uvirtio.spec.admin import AdminStatus, Group, Opcode, Qualifier

LOOKS = (Opcode.CAP_ID_LIST_QUERY, Opcode.LEGACY_COMMON_CFG_READ, Opcode.LEGACY_NOTIFY_INFO)
"""Commands that change nothing, to see whether they are refused."""


class Answer(NamedTuple):
    """What came back for a command."""

    status: int
    qualifier: int
    result: bytes
    """Up to the used length."""
    length: int
    """The used length, in bytes."""
    buffer: Buffer
    """The writable part."""

    @property
    def ok(self) -> bool:
        """Whether the status is OK."""
        return self.status == AdminStatus.OK

    @property
    def bits(self) -> frozenset[int]:
        """The result as a list of opcodes or capabilities (2.12.1)."""
        value = int.from_bytes(self.result, "little")
        return frozenset(bit for bit in range(8 * len(self.result)) if value >> bit & 1)

    @property
    def words(self) -> str:
        """Status and qualifier, for people."""
        known = self.status in set(AdminStatus)
        status = AdminStatus(self.status).name if known else f"{self.status}"
        qualifier = Qualifier(self.qualifier).name if self.qualifier in set(Qualifier) else f"{self.qualifier}"
        return f"{status}, qualifier {qualifier}"


def command(opcode: int, data: bytes = b"", group: int = Group.SELF, member: int = 0) -> bytes:
    """The readable part of a command (2.12.1).

    Args:
        opcode: 16 bits.
        data: Its command-specific data.
        group: The group type, 16 bits.
        member: The identifier of the member, 64 bits.
    """
    return struct.pack("<HH12xQ", opcode, group, member) + data


def list_of(opcodes: Iterable[int]) -> bytes:
    """A list of opcodes, as LIST_USE has it.

    Args:
        opcodes: What is in it.
    """
    value = sum(1 << opcode for opcode in opcodes)
    return value.to_bytes(8 * (value.bit_length() // 64 + 1), "little")


class Desk:
    """The first administration queue of a running device."""

    def __init__(self, t: Trial) -> None:
        """Bring the device up with its administration queue.

        Args:
            t: The trial; the device was reset.
        """
        t.need_feature(f.ADMIN_VQ)
        t.prepare(also=f.mask(f.ADMIN_VQ))
        transport = t.transport
        queues = transport.admin_queues() if isinstance(transport, HasAdminQueues) else range(0)
        t.need(len(queues) > 0, "there is no administration queue")
        self.t = t
        self.lane: Lane = t.lane(queues[0])
        t.go()

    def lay(self, readable: bytes, room: int, *, inverted: bool = False) -> tuple[Buffer, Posted]:
        """Lay a command, not yet visible.

        Args:
            readable: The readable part as it is.
            room: The bytes of the writable part.
            inverted: The writable part has the other pattern.
        """
        buffer = self.t.writable(room, inverted=inverted)
        return buffer, self.lane.chain(self.t.readable(readable), buffer)

    def answer(self, buffer: Buffer, posted: Posted) -> Answer:
        """What came back.

        Args:
            buffer: The writable part.
            posted: The chain, used by the device.
        """
        self.t.expect(posted.length is not None, "a command was not used", "an answer")
        length = posted.length or 0
        data = buffer.data[:length].ljust(admin.ANSWER_SIZE, b"\0")
        status, qualifier = struct.unpack_from("<HH", data)
        return Answer(status, qualifier, data[admin.ANSWER_SIZE :], length, buffer)

    def send(self, readable: bytes, room: int = 72, *, inverted: bool = False) -> Answer:
        """Send a command, and wait for its answer.

        Args:
            readable: The readable part as it is.
            room: The bytes of the writable part.
            inverted: The writable part has the other pattern.
        """
        buffer, posted = self.lay(readable, room, inverted=inverted)
        self.lane.publish(posted)
        self.lane.kick()
        self.t.await_used(self.lane, 1)
        return self.answer(buffer, posted)

    def run(self, opcode: int, data: bytes = b"", group: int = Group.SELF, member: int = 0) -> Answer:
        """Send an ordinary command, and wait for its answer; parameters are those of ``command``."""
        return self.send(command(opcode, data, group, member))

    def supported(self, group: int = Group.SELF) -> frozenset[int]:
        """The opcodes that the device has for a group type; the test is left out where it has no such group.

        Args:
            group: The group type.
        """
        answer = self.run(Opcode.LIST_QUERY, group=group)
        self.t.need(answer.ok, f"group type {group} is not there: {answer.words}")
        return answer.bits

    def use(self, opcodes: Iterable[int], group: int = Group.SELF) -> Answer:
        """Say which commands will be used.

        Args:
            opcodes: Which; LIST_QUERY and LIST_USE are used anyhow.
            group: The group type.
        """
        return self.run(Opcode.LIST_USE, list_of({Opcode.LIST_QUERY, Opcode.LIST_USE, *opcodes}), group)

    def harmless(self, group: int = Group.SELF) -> int:
        """A command that the device has, and that changes nothing; the test is left out where it has none.

        Args:
            group: The group type.
        """
        found = [opcode for opcode in LOOKS if opcode in self.supported(group)]
        self.t.need(bool(found), f"group type {group} has no command that only looks")
        return found[0]

"""The administration queues of a scripted device (2.12, 2.13): strict about the driver, wrong on demand."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from uvirtio.scripted.model import Admin
from uvirtio.scripted.ring import Chain
from uvirtio.spec import admin as spec

REPORTED = frozenset({0, 1, 7, 8, 9, 63, 70})


Answered = tuple[int, int, bytes]
"""Status, qualifier, result."""


def refused(qualifier: int) -> Answered:
    """EINVAL, and what is wrong in detail."""
    return spec.AdminStatus.EINVAL, qualifier, b""


class AdminModel(Admin):
    """``reported``: the opcodes that there are for each group type."""

    def __init__(
        self, reported: dict[int, frozenset[int]] | None = None, queue_sizes: Sequence[int] = (16,)
    ) -> None:
        self.queue_sizes = queue_sizes
        self.reported = {0: REPORTED} if reported is None else reported
        self.members: dict[int, range] = {}
        """The members of each group type that has any (2.12)."""
        self.used: dict[int, frozenset[int]] = {}
        self.commands: list[tuple[int, int, int, bytes]] = []
        """(opcode, group type, member, data) of all that came."""
        self.queues: set[int] = set()
        self.answers: deque[tuple[int, int]] = deque()
        """(status, qualifier) instead of the honest ones."""
        self.junk = b""
        """What is left behind the used length."""
        self.short: int | None = None
        """The length that is written, of a longer answer."""
        self.out = 0

    def reset(self) -> None:
        """Forget which commands are in use (2.13.1)."""
        self.used.clear()

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Answer one command (2.12.1); the bytes written."""
        check = self.device.check
        self.queues.add(queue)
        data = chain.data()
        check("ADM-10", len(data) >= spec.COMMAND_SIZE, f"a readable part of {len(data)} bytes")
        check("ADM-12", bool(data) and chain.room >= spec.ANSWER_SIZE, f"a writable part of {chain.room} bytes")
        check("ADM-11", not len(data) % 8 and not chain.room % 8, f"parts of {len(data)} and {chain.room} bytes")
        # 2.13.1: what is missing counts as zero.
        data = data.ljust(spec.COMMAND_SIZE, b"\0")
        opcode, group, member = struct.unpack_from("<HH12xQ", data)
        check("ADM-10", data[4:16] == bytes(12), "the reserved bytes are not zero")
        body = data[spec.COMMAND_SIZE :]
        self.commands.append((opcode, group, member, body))
        if self.answers:
            status, qualifier = self.answers.popleft()
            return self._answer(chain, status, qualifier, b"")
        return self._answer(chain, *self.judge(opcode, group, member, body))

    def judge(self, opcode: int, group: int, member: int, body: bytes) -> Answered:
        """Status, qualifier and result of a command (2.12.1.5)."""
        check = self.device.check
        reported = self.reported.get(group)
        if reported is None:
            return refused(spec.Qualifier.INVALID_GROUP)
        legal = self.used.get(group, frozenset({0, 1}))
        check("ADM-05", opcode in legal, f"command {opcode:#x} of group {group} is not in use")
        if opcode not in legal:
            return refused(spec.Qualifier.INVALID_OPCODE)
        if opcode == spec.Opcode.LIST_QUERY:
            words = max(reported) // 64 + 1
            bits = sum(1 << bit for bit in reported)
            return 0, 0, bits.to_bytes(8 * words, "little")
        if opcode == spec.Opcode.LIST_USE:
            asked = frozenset(bit for bit in range(8 * len(body)) if int.from_bytes(body, "little") >> bit & 1)
            check("ADM-04", asked <= reported, f"opcodes {sorted(asked - reported)} were never reported")
            check("ADM-10", len(body) >= 8, f"a list of {len(body)} bytes")
            if not asked <= reported:
                return refused(spec.Qualifier.INVALID_FIELD)
            self.used[group] = asked
            return 0, 0, b""
        if group in self.members and member not in self.members[group]:
            return refused(spec.Qualifier.INVALID_MEMBER)
        return self.serve(opcode, group, member, body)

    def serve(self, opcode: int, group: int, member: int, body: bytes) -> Answered:
        """Status, qualifier and result of a command that is in use."""
        return 0, 0, bytes(range(1, 65))

    def _answer(self, chain: Chain, status: int, qualifier: int, result: bytes) -> int:
        answer = (struct.pack("<HH4x", status, qualifier) + result)[: chain.room]
        length = len(answer) if self.short is None else min(self.short, len(answer))
        chain.fill(answer[:length] + self.junk[: chain.room - length])
        return length

"""The administration queues of a scripted device (2.12, 2.13): strict about the driver, wrong on demand."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from uvirtio.scripted.model import Admin, Surroundings
from uvirtio.scripted.ring import Chain
from uvirtio.spec import admin as spec

REPORTED = frozenset({0, 1, 7, 8, 9, 63, 70})


class AdminModel(Admin):
    """``reported``: the opcodes that there are for each group type."""

    def __init__(
        self, reported: dict[int, frozenset[int]] | None = None, queue_sizes: Sequence[int] = (16,)
    ) -> None:
        self.queue_sizes = queue_sizes
        self.reported = {0: REPORTED} if reported is None else reported
        self.device: Surroundings
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
        check("ADM-12", len(data) >= spec.COMMAND_SIZE, f"a readable part of {len(data)} bytes")
        check("ADM-12", chain.room >= spec.ANSWER_SIZE, f"a writable part of {chain.room} bytes")
        check("ADM-11", not len(data) % 8 and not chain.room % 8, f"parts of {len(data)} and {chain.room} bytes")
        opcode, group, member = struct.unpack_from("<HH12xQ", data)
        check("ADM-10", data[4:16] == bytes(12), "the reserved bytes are not zero")
        body = data[spec.COMMAND_SIZE :]
        self.commands.append((opcode, group, member, body))
        if self.answers:
            status, qualifier = self.answers.popleft()
            return self._answer(chain, status, qualifier, b"")
        reported = self.reported.get(group)
        if reported is None:
            return self._answer(chain, spec.AdminStatus.EINVAL, spec.Qualifier.INVALID_GROUP, b"")
        if opcode == spec.Opcode.LIST_QUERY:
            bits = sum(1 << bit for bit in reported)
            return self._answer(chain, 0, 0, bits.to_bytes(16, "little"))
        if opcode == spec.Opcode.LIST_USE:
            asked = frozenset(bit for bit in range(8 * len(body)) if int.from_bytes(body, "little") >> bit & 1)
            check("ADM-04", asked <= reported, f"opcodes {sorted(asked - reported)} were never reported")
            check("ADM-10", len(body) >= 8, f"a list of {len(body)} bytes")
            self.used[group] = asked
            return self._answer(chain, 0, 0, b"")
        check("ADM-05", opcode in self.used.get(group, ()), f"command {opcode:#x} of group {group} is not in use")
        return self._answer(chain, 0, 0, bytes(range(1, 65)))

    def _answer(self, chain: Chain, status: int, qualifier: int, result: bytes) -> int:
        answer = (struct.pack("<HH4x", status, qualifier) + result)[: chain.room]
        length = len(answer) if self.short is None else min(self.short, len(answer))
        chain.fill(answer[:length] + self.junk[: chain.room - length])
        return length

"""The administration queue (2.12, 2.13): commands to a device about itself, or about a group that it owns.

No device model known to us has one, so this is tested with a scripted device only. Commands go through one queue
one at a time: they keep their order, and nothing is outstanding when LIST_USE is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from uvirtio.device import ADMIN_QUEUE, Device, Queue
from uvirtio.drivers.base import runs, settle, transact
from uvirtio.errors import AdminFailed, NotSupported, UsageError
from uvirtio.spec.admin import (
    ANSWER_SIZE,
    COMMAND_SIZE,
    PART_ALIGN,
    AdminStatus,
    Group,
    Opcode,
    Qualifier,
    qualifier_of,
    status_of,
)
from uvirtio.spec.ring import align_up

KNOWN = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})
"""Opcodes that this package uses. The others are for owners of groups, of resources and of device parts."""

_ROOM = 4096
_LIST = 64
"""Bytes for a list of opcodes: 512 bits, where the standard has 18."""
_FIRST_PAUSE, _LAST_PAUSE = 1e-3, 50e-3


class Admin:
    """Sends administration commands to a device that was started with ``admin=True``."""

    def __init__(self, device: Device, *, extra: Iterable[int] = ()) -> None:
        """Take the administration queue of a started device.

        Args:
            device: A device that was started with ``admin=True``.
            extra: Opcodes beside ``KNOWN`` that the caller knows how to use.

        Raises:
            NotSupported: ADMIN_VQ was not negotiated.
        """
        found = [queue for queue in device.queues.values() if queue.name == ADMIN_QUEUE]
        if not found:
            raise NotSupported(
                f"{device.address} has no administration queue",
                seen="ADMIN_VQ was not negotiated",
                expected="a device that offers ADMIN_VQ, started with admin=True",
            )
        self.device = device
        self._queue: Queue = found[0]
        self._known = KNOWN | frozenset(extra)
        self._buffer = device.dma.alloc(2 * _ROOM)
        self._reported: dict[int, frozenset[int]] = {}
        self.in_use: dict[int, frozenset[int]] = {}
        """The opcodes that ``use`` enabled, by group type."""

    # --- lists (2.12.1) ---------------------------------------------------------------------------------------

    def query(self, group: int = Group.SELF) -> frozenset[int]:
        """Return the opcodes that the device supports for a group type (LIST_QUERY).

        Args:
            group: The group type (2.12.1).

        Raises:
            AdminFailed: The device answered with an error.
            DeviceTimeout: The device did not answer in time.
        """
        answer = self._run(Opcode.LIST_QUERY, group, 0, b"", _LIST, None)
        bits = int.from_bytes(answer, "little")
        self._reported[group] = frozenset(bit for bit in range(8 * _LIST) if bits >> bit & 1)
        return self._reported[group]

    def use(self, group: int = Group.SELF) -> frozenset[int]:
        """Enable the opcodes that both the device and the driver support (LIST_USE).

        Queries the device first where ``query`` was not called for this group type.

        Args:
            group: The group type (2.12.1).

        Returns:
            The opcodes that are enabled now.

        Raises:
            AdminFailed: The device answered with an error.
            DeviceTimeout: The device did not answer in time.
        """
        reported = self._reported.get(group)
        if reported is None:
            reported = self.query(group)
        chosen = reported & self._known
        bits = sum(1 << opcode for opcode in chosen)
        length = align_up(max(1, (bits.bit_length() + 7) // 8), PART_ALIGN)
        self._run(Opcode.LIST_USE, group, 0, bits.to_bytes(length, "little"), 0, None)
        self.in_use[group] = chosen
        return chosen

    # --- commands ---------------------------------------------------------------------------------------------

    def command(
        self,
        opcode: int,
        data: bytes = b"",
        *,
        group: int = Group.SELF,
        member: int = 0,
        room: int = 0,
        timeout: float | None = None,
    ) -> bytes:
        """Run one command that ``use`` enabled. EAGAIN is tried again until ``timeout``.

        Args:
            opcode: The command (2.12.1).
            data: Command-specific data for the device.
            group: The group type.
            member: The identifier of the group member.
            room: Bytes of the command-specific result.
            timeout: Seconds in all; the device's own for each try where None.

        Returns:
            The result, ``room`` bytes. What the device left unwritten reads as zero (2.13.2).

        Raises:
            UsageError: The command is not enabled, or data or result exceed the buffer.
            AdminFailed: The device answered with an error.
            DeviceTimeout: The device did not answer in time.
        """
        if opcode not in self.in_use.get(group, frozenset()):
            raise UsageError(
                f"command {opcode:#x} is not in use for group type {group}",
                seen=sorted(self.in_use.get(group, ())),
                expected="a command that use() enabled (2.12.1.6)",
            )
        return self._run(opcode, group, member, data, room, timeout)

    def _run(self, opcode: int, group: int, member: int, data: bytes, room: int, timeout: float | None) -> bytes:
        # 2.13.2: both parts at the full length of their structure, filled with zeros to a multiple of 8.
        sent = align_up(COMMAND_SIZE + len(data), PART_ALIGN)
        wanted = align_up(ANSWER_SIZE + room, PART_ALIGN)
        if sent > _ROOM or wanted > _ROOM:
            raise UsageError(
                f"a command carries up to {_ROOM} bytes each way",
                seen=(sent, wanted),
                expected=f"at most {_ROOM}",
            )
        head = struct.pack("<HH12xQ", opcode, group, member)
        with self.device.session(timeout):
            deadline = self.device.clock.monotonic() + self.device.seconds(None)
            pause = _FIRST_PAUSE
            while True:
                status, qualifier, answer = self._once((head + data).ljust(sent, b"\0"), wanted)
                if status is AdminStatus.OK:
                    return answer[:room]
                if status is not AdminStatus.EAGAIN or self.device.clock.monotonic() + pause > deadline:
                    raise AdminFailed(
                        f"{self.device.address} answers command {opcode:#x} with {status.name}",
                        seen=f"{status.name}, {qualifier.name}",
                        expected="OK",
                        remedy="the qualifier says what is wrong (2.12.1)",
                    )
                self.device.clock.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)

    def _once(self, sent: bytes, wanted: int) -> tuple[AdminStatus, Qualifier, bytes]:
        timeout = self.device.seconds(None)
        settle(self.device, self._queue, timeout=timeout)  # 2.12.1.6: nothing else is out
        self._buffer.view[: len(sent)] = sent
        self._buffer.view[_ROOM : _ROOM + wanted] = bytes(wanted)
        done = transact(
            self.device,
            self._queue,
            runs(self._buffer, 0, len(sent)),
            runs(self._buffer, _ROOM, wanted),
            timeout=timeout,
            what="the answer to an administration command",
        )
        answer = bytes(self._buffer.view[_ROOM : _ROOM + done.written]).ljust(wanted, b"\0")
        status, qualifier = struct.unpack_from("<HH", answer)
        return status_of(status), qualifier_of(qualifier), answer[ANSWER_SIZE:]

"""The control queue (5.1.6.5): commands one at a time, each with the device's answer."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.device import Device, Queue
from uvirtio.drivers.base import runs, settle, transact
from uvirtio.errors import NetRefused, ProtocolError, UsageError
from uvirtio.spec import net as spec

_NO_ANSWER = 0xFF
_DATA_AT, _ACK_AT = 64, 0
_SIZE = 4096
_DATA_MAX = _SIZE - _DATA_AT


class ControlQueue:
    """Sends commands, and makes an error of each answer but OK."""

    def __init__(self, device: Device, queue: Queue) -> None:
        """Allocate the memory of a command.

        Args:
            device: The device.
            queue: Its control queue.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for it.
        """
        self._device, self._queue = device, queue
        self._block = device.dma.alloc(_SIZE)

    def send(self, kind: spec.Control, command: int, *data: bytes, what: str, timeout: float) -> None:
        """Send one command and wait for its answer.

        Args:
            kind: The class.
            command: The command of this class.
            *data: Its data; each piece is an element of its own, as a legacy interface has it (5.1.6.8).
            what: What it does, for errors.
            timeout: Seconds to wait.

        Raises:
            NetRefused: The answer is ERR.
            ProtocolError: It is neither OK nor ERR, or there is none.
            UsageError: There is more data than a command can have here.
            DeviceTimeout: There was no answer in time.
        """
        if sum(map(len, data)) > _DATA_MAX:
            raise UsageError(
                f"this is too much to {what}",
                seen=f"{sum(map(len, data))} bytes",
                expected=f"at most {_DATA_MAX} bytes, which are {_DATA_MAX // spec.MAC_SIZE - 2} addresses",
            )
        # A wait that was interrupted left its command with the device, and with it this memory.
        settle(self._device, self._queue, timeout=timeout)
        view = self._block.view
        view[_ACK_AT] = _NO_ANSWER
        head_at = _ACK_AT + 8
        view[head_at : head_at + spec.CONTROL_HEADER_SIZE] = bytes((kind, command))
        readable = runs(self._block, head_at, spec.CONTROL_HEADER_SIZE)
        at = _DATA_AT
        for piece in data:
            view[at : at + len(piece)] = piece
            readable += runs(self._block, at, len(piece))
            at += len(piece)
        writable = runs(self._block, _ACK_AT, spec.ACK_SIZE)
        about = f"the command to {what}"
        transact(self._device, self._queue, readable, writable, timeout=timeout, what=f"the answer to {about}")
        self._judge(view[_ACK_AT], f"{kind.name} {command}", about)

    def _judge(self, answer: int, name: str, about: str) -> None:
        if answer == spec.Ack.OK:
            return
        if answer == spec.Ack.ERR:
            raise NetRefused(
                f"{self._device.address} refuses {about}",
                seen=f"ERR to class and command {name}",
                expected="OK",
                remedy="the device cannot do it, or not with these values; its log may say more",
                about=name,
            )
        raise ProtocolError(
            f"{self._device.address} answers {about} with what is no answer",
            seen="nothing" if answer == _NO_ANSWER else answer,
            expected="0 (OK) or 1 (ERR) (5.1.6.5)",
            remedy="the device is at fault; its log may say more",
        )


def mac_table(unicast: Sequence[bytes], multicast: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The data of MAC_TABLE_SET (5.1.6.5.2.2): for each kind their number (le32) and the addresses."""
    return _table(unicast), _table(multicast)


def _table(macs: Sequence[bytes]) -> bytes:
    return len(macs).to_bytes(4, "little") + b"".join(macs)

"""The data path of a crypto device (5.9): a block is encrypted and decrypted, and compared with a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import QUEUE_SIZE, UNTOUCHED, Ask, AskingPath, Room, in_words
from uvirtio.spec import crypto as spec
from uvirtio.spec.crypto import Opcode, Status
from uvirtio.spec.layout import by_name

_FIELDS: Final = by_name(spec.CONFIG)

# AES-128-CBC, the first block of NIST SP 800-38A, F.2.1.
KEY: Final = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
IV: Final = bytes(range(16))
PLAIN: Final = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
CIPHERED: Final = bytes.fromhex("7649abac8119b246cee98e9b12e9197d")
BLOCK: Final = 16
NO_SESSION: Final = 0x7FFF_FFFF_FFFF_FFFF


def status_in_words(status: int) -> str:
    """The status of a request.

    Args:
        status: 8 or 32 bits.
    """
    return f"status {in_words(status, Status, 'no status of 5.9.6')}"


def create(controlq: int, operation: int) -> Ask:
    """Make a session of AES-128-CBC (5.9.7.2.1).

    Args:
        controlq: The control queue, behind the data queues.
        operation: ``OP_ENCRYPT`` or ``OP_DECRYPT``.
    """
    cipher = spec.CIPHER_AES_CBC
    head = spec.CREATE.pack(
        Opcode.CREATE_SESSION, cipher, 0, 0, cipher, len(KEY), operation, 0, spec.SYM_CIPHER, 0
    )

    def wrong(rooms: Sequence[Room]) -> str | None:
        _, status, _ = spec.SESSION.unpack(rooms[0].data)
        return None if status == Status.OK else status_in_words(status)

    return Ask("CREATE_SESSION", controlq, (head, KEY), (spec.SESSION.size,), wrong)


def carry_out(opcode: Opcode, session: int, source: bytes, expected: bytes | None) -> Ask:
    """Encrypt or decrypt a block (5.9.7.4).

    Args:
        opcode: ``ENCRYPT`` or ``DECRYPT``.
        session: Its id, 64 bits.
        source: The block.
        expected: What comes of it; None: there is no such session, and the device has to say so.
    """
    head = spec.DATA.pack(opcode, spec.CIPHER_AES_CBC, session, 0, 0, BLOCK, BLOCK, BLOCK, 0, spec.SYM_CIPHER, 0)

    def wrong(rooms: Sequence[Room]) -> str | None:
        made, status = rooms
        if expected is None:
            known = status.data[0] in tuple(Status) and status.data[0] != Status.OK
            return None if known else f"{status_in_words(status.data[0])} for a session that there is not"
        if status.data[0] != Status.OK:
            return UNTOUCHED if status.untouched else status_in_words(status.data[0])
        if made.untouched:
            return UNTOUCHED
        return None if made.data == expected else f"{made.data.hex()} instead of {expected.hex()}"

    return Ask(opcode.name, spec.DATAQ, (head, IV, source), (BLOCK, 1), wrong)


def destroy(controlq: int, session: int) -> Ask:
    """End a session (5.9.7.2.1).

    Args:
        controlq: The control queue.
        session: Its id, 64 bits.
    """
    head = spec.DESTROY.pack(Opcode.DESTROY_SESSION, spec.CIPHER_AES_CBC, 0, 0, session)

    def wrong(rooms: Sequence[Room]) -> str | None:
        status = rooms[0].data[0]
        return None if status == Status.OK else status_in_words(status)

    return Ask("DESTROY_SESSION", controlq, (head,), (1,), wrong)


class CryptoPath(AskingPath):
    """Encrypts and decrypts a block in sessions that it ends."""

    def queues(self) -> list[QueueSpec]:
        """The first data queue and the control queue."""
        (self._controlq,) = self._device.read_config(_FIELDS["max_dataqueues"])
        return [
            QueueSpec(spec.DATAQ, "dataq1", QUEUE_SIZE),
            QueueSpec(self._controlq, "controlq", QUEUE_SIZE),
        ]

    def exercise(self) -> PathResult:
        """A session that encrypts and one that decrypts, a block in each, and their end."""
        ready, services, low = self._device.read_config(
            *(_FIELDS[name] for name in ("status", "crypto_services", "cipher_algo_l"))
        )
        if not ready & spec.HW_READY:
            return PathResult("its hardware is not ready (status 0): nothing was asked", skipped=True)
        if not services & spec.SERVICE_CIPHER or not low >> spec.CIPHER_AES_CBC & 1:
            return PathResult(f"no AES-CBC (ciphers {low:#x}): nothing was asked", skipped=True)
        for operation, opcode, source, made in (
            (spec.OP_ENCRYPT, Opcode.ENCRYPT, PLAIN, CIPHERED),
            (spec.OP_DECRYPT, Opcode.DECRYPT, CIPHERED, PLAIN),
        ):
            (answer,) = self.ask(create(self._controlq, operation))
            session, _, _ = spec.SESSION.unpack(answer)
            self.ask(carry_out(opcode, session, source, made))
            self.ask(destroy(self._controlq, session))
        return PathResult(f"AES-128-CBC of a known block gives {CIPHERED.hex()}, and back; two sessions ended")

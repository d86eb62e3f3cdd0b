"""A crypto device (5.9) made of Python: sessions of AES-128-CBC on one data queue.

Lies: ``garbled`` (a bit of what is encrypted is another, or of a status), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from typing import NamedTuple

from uvirtio.scripted.aes import BLOCK, Aes128
from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import crypto as spec
from uvirtio.spec.crypto import Opcode, Status
from uvirtio.spec.layout import by_name, size

_CONTROLQ = 1
_LONGEST = 1 << 20


class Session(NamedTuple):
    """A key, and whether it encrypts."""

    cipher: Aes128
    encrypts: bool


class Crypto(Answering):
    """A device that knows AES-CBC alone."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    queue_sizes = (64, 64)

    def __init__(self, *, ready: bool = True) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        told = {
            "status": spec.HW_READY * ready,
            "max_dataqueues": _CONTROLQ,
            "crypto_services": spec.SERVICE_CIPHER,
            "cipher_algo_l": 1 << spec.CIPHER_AES_CBC,
            "max_cipher_key_len": BLOCK,
            "max_size": _LONGEST,
        }
        for name, value in told.items():
            self.put(name, value)
        self.sessions: dict[int, Session] = {}
        self._next = 0

    def reset(self) -> None:
        """The device was reset: its sessions are gone."""
        self.sessions.clear()

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a request of either queue."""
        whole = len(data) >= spec.CREATE.size
        self.device.check("CRYPTO-01", whole, f"a request of {len(data)} bytes")
        if not whole:
            return b""
        return self._control(data) if queue == _CONTROLQ else self._data(data)

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """Another bit: the first of what is encrypted, or the status of a control request."""
        if queue == _CONTROLQ and len(answer) == spec.SESSION.size:
            ident, status, _ = spec.SESSION.unpack(answer)
            return spec.SESSION.pack(ident, status ^ Status.NOTSUPP, 0)
        return bytes([answer[0] ^ 1]) + answer[1:]

    def _control(self, data: bytes) -> bytes:
        opcode = int.from_bytes(data[:4], "little")
        if opcode == Opcode.DESTROY_SESSION:
            ident = spec.DESTROY.unpack_from(data)[4]
            return bytes([Status.ERR if self.sessions.pop(ident, None) is None else Status.OK])
        _, _, _, _, cipher, length, operation, _, kind, _ = spec.CREATE.unpack_from(data)
        key = data[spec.CREATE.size :]
        right = (opcode, cipher, kind) == (Opcode.CREATE_SESSION, spec.CIPHER_AES_CBC, spec.SYM_CIPHER)
        if not right or not length == len(key) == BLOCK:
            return spec.SESSION.pack(0, Status.NOTSUPP, 0)
        ident, self._next = self._next, self._next + 1
        self.sessions[ident] = Session(Aes128(key), operation == spec.OP_ENCRYPT)
        return spec.SESSION.pack(ident, Status.OK, 0)

    def _data(self, data: bytes) -> bytes:
        opcode, _, ident, _, _, iv, source, room, *_ = spec.DATA.unpack_from(data)
        body = data[spec.DATA.size :]
        session = self.sessions.get(ident)
        if session is None or session.encrypts is not (opcode == Opcode.ENCRYPT):
            return bytes(room) + bytes([Status.INVSESS])
        fits = len(body) == iv + source and iv == BLOCK and source == room and not source % BLOCK
        self.device.check("CRYPTO-02", fits, f"lengths {iv}, {source}, {room}, and {len(body)} bytes")
        if not fits:
            return bytes(room) + bytes([Status.BADMSG])
        made = session.cipher.cbc(body[iv:], body[:iv], encrypt=session.encrypts)
        return made + bytes([Status.OK])

"""A vhost-user front end in a few lines, for a block device with one split ring.

Not uvirtio, on purpose: a finding must stand without it.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DEADLINE = 20.0  # seconds
BASE = 0x100000  # guest address = user address of the memory
(GET_FEATURES, SET_FEATURES, SET_OWNER) = (1, 2, 3)
(SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE) = (5, 8, 9, 10)
(SET_VRING_KICK, SET_VRING_CALL) = (12, 13)
(GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, GET_CONFIG) = (15, 16, 18, 24)
PROTOCOL_CONFIG = 1 << 9
F_VERSION_1, F_PROTOCOL_FEATURES = 1 << 32, 1 << 30


@contextlib.contextmanager
def daemon(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a session of its own; ended by SIGTERM, or SIGKILL if it does not heed that."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class FrontEnd:
    """One connection, the features that were asked for, and 1 MiB of shared memory."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.offered = self.ask_u64(GET_FEATURES)
        protocol = self.ask_u64(GET_PROTOCOL_FEATURES)
        assert protocol & PROTOCOL_CONFIG, "no CONFIG messages"
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", PROTOCOL_CONFIG))
        self.send(SET_OWNER)

    def send(self, message: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        head = struct.pack("<III", message, 1, len(payload))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([head + payload], rights)

    def ask(self, message: int, payload: bytes = b"") -> bytes:
        self.send(message, payload)
        head = self._exactly(12)
        return self._exactly(struct.unpack("<III", head)[2])

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError("the back end closed the connection")
            data += part
        return data

    def ask_u64(self, message: int) -> int:
        value: int = struct.unpack("<Q", self.ask(message))[0]
        return value

    def negotiate(self, features: int) -> None:
        self.send(SET_FEATURES, struct.pack("<Q", features | F_VERSION_1 | F_PROTOCOL_FEATURES))

    def config(self, length: int) -> bytes:
        return self.ask(GET_CONFIG, struct.pack("<III", 0, length, 0) + bytes(length))[12:]

    def start(self, enable: bool = True) -> None:
        """Share the memory and start queue 0: 8 descriptors at 0, available ring at 0x400, used at 0x800."""
        fd = os.memfd_create("guest")
        os.ftruncate(fd, 1 << 20)
        self.memory = mmap.mmap(fd, 1 << 20)
        table = struct.pack("<II", 1, 0) + struct.pack("<QQQQ", BASE, 1 << 20, BASE, 0)
        self.send(SET_MEM_TABLE, table, (fd,))
        self.send(SET_VRING_NUM, struct.pack("<II", 0, 8))
        self.send(SET_VRING_BASE, struct.pack("<II", 0, 0))
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, BASE, BASE + 0x800, BASE + 0x400, 0))
        self.call, self.bell = os.eventfd(0), os.eventfd(0)
        self.send(SET_VRING_CALL, struct.pack("<Q", 0), (self.call,))
        self.send(SET_VRING_KICK, struct.pack("<Q", 0), (self.bell,))
        if enable:
            self.send(SET_VRING_ENABLE, struct.pack("<II", 0, 1))
        self.requests = 0

    def write_sector(self) -> int:
        """Write one sector of 512 bytes, wait for it, and return its status byte (virtio 1.4, section 5.2.6)."""
        memory = self.memory
        struct.pack_into("<IIQ", memory, 0x1000, 1, 0, 0)  # VIRTIO_BLK_T_OUT, sector 0
        memory[0x2000:0x2200] = b"x" * 512
        memory[0x3000] = 0xEE
        chain = ((0x1000, 16, 1, 1), (0x2000, 512, 1, 2), (0x3000, 1, 2, 0))
        for number, (offset, length, flags, following) in enumerate(chain):
            struct.pack_into("<QIHH", memory, 16 * number, BASE + offset, length, flags, following)
        struct.pack_into("<H", memory, 0x404 + 2 * (self.requests % 8), 0)
        self.requests += 1
        struct.pack_into("<H", memory, 0x402, self.requests)
        os.eventfd_write(self.bell, 1)
        end = time.monotonic() + DEADLINE
        while struct.unpack_from("<H", memory, 0x802)[0] != self.requests:
            if time.monotonic() > end:
                raise TimeoutError("the request never came back")
            time.sleep(0.005)
        return memory[0x3000]

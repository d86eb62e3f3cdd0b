"""Virtio in a few lines over QEMU's qtest socket: no guest, no KVM, one split ring at a time.

Not uvirtio, on purpose: a finding must stand without it.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# 64 KiB of firmware that only halts: cli, hlt and a jump back to hlt at the reset vector.
HALT = bytes(0xFFF0) + b"\xfa\xf4\xeb\xfd" + bytes(12)
DEADLINE = 20.0  # seconds, for each answer


class Qemu:
    """A q35 machine whose processor halts at once."""

    def __init__(self, program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory()
        firmware = Path(self._folder.name, "halt.bin")
        firmware.write_bytes(HALT)
        qtest, qtest_theirs = socket.socketpair()
        qmp, qmp_theirs = socket.socketpair()
        command = [program, "-M", "q35", "-m", "64M", "-accel", "tcg", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-bios", str(firmware)]
        command += ["-chardev", f"socket,id=qtest,fd={qtest_theirs.fileno()}"]
        command += ["-object", "qtest,id=qtest,chardev=qtest,log=none"]
        command += ["-chardev", f"socket,id=qmp,fd={qmp_theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        fds = (qtest_theirs.fileno(), qmp_theirs.fileno(), *pass_fds)
        self.errors = Path(self._folder.name, "stderr")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=fds,
                start_new_session=True,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )
        qtest_theirs.close()
        qmp_theirs.close()
        qtest.settimeout(DEADLINE)
        qmp.settimeout(DEADLINE)
        self._qtest = qtest.makefile("rw")
        self._qmp = qmp.makefile("rw")
        try:
            self.version = json.loads(self._qmp.readline())["QMP"]["version"]["package"]
            self.qmp("qmp_capabilities")
        except (OSError, ValueError):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, what: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def qmp(self, command: str, **arguments: object) -> Any:
        """The value that the command returned, or its error."""
        request = {"execute": command, "arguments": {key.replace("_", "-"): v for key, v in arguments.items()}}
        self._qmp.write(json.dumps(request) + "\n")
        self._qmp.flush()
        while True:
            answer = json.loads(self._qmp.readline())
            if "event" not in answer:
                return answer.get("return", answer.get("error"))

    def send(self, *words: str | int) -> str:
        self._qtest.write(" ".join(word if isinstance(word, str) else hex(word) for word in words) + "\n")
        self._qtest.flush()
        while True:
            answer = self._qtest.readline().split()
            if not answer:
                raise EOFError("QEMU is gone")
            if answer[0] == "OK":
                return answer[1] if len(answer) > 1 else ""

    def read(self, width: int, address: int) -> int:
        return int(self.send("read" + " bw l   q"[width], address), 16)

    def write(self, width: int, address: int, value: int) -> None:
        self.send("write" + " bw l   q"[width], address, value)

    def load(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.send("read", address, length)[2:])

    def store(self, address: int, data: bytes) -> None:
        self.send("write", address, len(data), "0x" + data.hex())

    def config(self, slot: int, offset: int, width: int = 4) -> int:
        self.send("outl", 0xCF8, 0x80000000 | slot << 11 | offset & ~3)
        return int(self.send("in" + " bw l"[width], 0xCFC + (offset & 3)), 16)

    def set_config(self, slot: int, offset: int, value: int, width: int = 4) -> None:
        self.send("outl", 0xCF8, 0x80000000 | slot << 11 | offset & ~3)
        self.send("out" + " bw l"[width], 0xCFC + (offset & 3), value)


class Virtio:
    """The modern registers of the function in ``slot`` of bus 0 (virtio 1.4, section 4.1)."""

    def __init__(self, qemu: Qemu, slot: int) -> None:
        self.qemu = qemu
        place = 0xE0000000 + slot * 0x1000000
        bars = {}
        bar = 0
        while bar < 6:
            register = 0x10 + 4 * bar
            qemu.set_config(slot, register, 0xFFFFFFFF)
            kind = qemu.config(slot, register)
            wide = kind & 7 == 4
            if kind and not kind & 1:
                qemu.set_config(slot, register, place)
                if wide:
                    qemu.set_config(slot, register + 4, 0)
                bars[bar] = place
                place += 0x100000
            bar += 2 if wide else 1
        qemu.set_config(slot, 4, 6, 2)  # memory, bus master
        where = {}
        pointer = qemu.config(slot, 0x34, 1)
        while pointer:
            if qemu.config(slot, pointer, 1) == 9:  # vendor
                kind = qemu.config(slot, pointer + 3, 1)
                if kind != 5:  # no memory behind the PCI configuration access window
                    where[kind] = bars[qemu.config(slot, pointer + 4, 1)] + qemu.config(slot, pointer + 8)
                if kind == 2:
                    self.multiplier = qemu.config(slot, pointer + 16)
            pointer = qemu.config(slot, pointer + 1, 1)
        self.common, self.notify, self.device = where[1], where[2], where[4]

    def offered(self) -> int:
        words = []
        for word in (0, 1):
            self.qemu.write(4, self.common, word)
            words.append(self.qemu.read(4, self.common + 4))
        return words[0] | words[1] << 32

    def negotiate(self, features: int) -> None:
        for status in (0, 1, 3):
            self.qemu.write(1, self.common + 20, status)
        for word in (0, 1):
            self.qemu.write(4, self.common + 8, word)
            self.qemu.write(4, self.common + 12, features >> 32 * word & 0xFFFFFFFF)
        self.qemu.write(1, self.common + 20, 11)
        assert self.qemu.read(1, self.common + 20) & 8, "FEATURES_OK refused"

    def queue(self, index: int, address: int, size: int) -> Ring:
        qemu = self.qemu
        qemu.write(2, self.common + 22, index)
        qemu.write(2, self.common + 24, size)
        qemu.store(address, bytes(0x1000))
        for number, part in enumerate((0, Ring.AVAIL, Ring.USED)):
            qemu.write(4, self.common + 32 + 8 * number, address + part)
            qemu.write(4, self.common + 36 + 8 * number, 0)
        qemu.write(2, self.common + 28, 1)
        offset = qemu.read(2, self.common + 30) * self.multiplier
        return Ring(qemu, index, address, size, self.notify + offset)

    def ready(self) -> None:
        self.qemu.write(1, self.common + 20, 15)


class Ring:
    """A split virtqueue of at most 64 descriptors in one page, whose requests are waited for one by one."""

    AVAIL, USED = 0x400, 0x800

    def __init__(self, qemu: Qemu, index: int, address: int, size: int, bell: int) -> None:
        self.qemu, self.index, self.address, self.size, self.bell = qemu, index, address, size, bell
        self.published = self.taken = 0

    def add(self, *parts: tuple[int, int, bool], head: int = 0) -> None:
        """Publish one chain of (address, length, device may write), its descriptors from ``head`` on."""
        for number, (address, length, writable) in enumerate(parts):
            flags = 2 * writable | (number + 1 < len(parts))
            entry = struct.pack("<QIHH", address, length, flags, head + number + 1)
            self.qemu.store(self.address + 16 * (head + number), entry)
        self.qemu.write(2, self.address + self.AVAIL + 4 + 2 * (self.published % self.size), head)
        self.published += 1
        self.qemu.write(2, self.address + self.AVAIL + 2, self.published & 0xFFFF)

    def kick(self) -> None:
        self.qemu.write(2, self.bell, self.index)

    def used(self) -> list[tuple[int, int]]:
        """The (head, length) that came back since the last call."""
        found = []
        index = self.qemu.read(2, self.address + self.USED + 2)
        while self.taken != index:
            slot = self.address + self.USED + 4 + 8 * (self.taken % self.size)
            head, length = struct.unpack("<II", self.qemu.load(slot, 8))
            found.append((head, length))
            self.taken = self.taken + 1 & 0xFFFF
        return found

    def wait(self) -> tuple[int, int]:
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if found := self.used():
                return found[0]
            time.sleep(0.005)
        raise TimeoutError("nothing came back")

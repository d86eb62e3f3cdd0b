"""What this process sees of the other side of a device: its peer, its screen, and memory as processors see it."""

from __future__ import annotations

import os

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    from uvirtio.backends.qemu.parts import MachineParts

_WORD: Final = 4
_SCREENS: Final = "virtio-gpu"


class OtherSideOf:
    """What the objects of QEMU's devices share to satisfy ``OtherSide``."""

    machine: MachineParts
    id: str
    """The machine's name of the device."""

    @property
    def other_sides(self) -> frozenset[str]:
        """What there is: ``screen`` of a GPU, ``peer`` and ``memory`` of what was supplied with one."""
        found = {"peer"} if self.id in self.machine.peers else set()
        if self.id in self.machine.files:
            found.add("memory")
        kind = str(self.machine.qmp("qom-get", path=f"/machine/peripheral/{self.id}", property="type"))
        return frozenset(found | {"screen"} if kind.startswith(_SCREENS) else found)

    def peer_send(self, data: bytes) -> None:
        """Send bytes to the device.

        Args:
            data: The bytes.
        """
        self.machine.peers[self.id].send(data)

    def peer_receive(self, timeout: float) -> bytes:
        """Receive what the device has sent; empty where nothing came.

        Args:
            timeout: Seconds to wait for the first of it.
        """
        return self.machine.peers[self.id].receive(timeout)

    def screen(self) -> bytes:
        """What the device's screen shows, as a portable pixmap. QEMU writes it into a memfd: no file is left."""
        fd = os.memfd_create("uvirtio-screen", os.MFD_CLOEXEC)
        try:
            self.machine.qmp("screendump", filename=f"/proc/{os.getpid()}/fd/{fd}", device=self.id)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def cpu_read(self, address: int, length: int) -> bytes:
        """Read guest-physical memory.

        Args:
            address: Where; a multiple of 4.
            length: Bytes; a multiple of 4.
        """
        read = self.machine.qtest.read
        return b"".join(
            read(_WORD, address + place).to_bytes(_WORD, "little") for place in range(0, length, _WORD)
        )

    def cpu_write(self, address: int, data: bytes) -> None:
        """Write guest-physical memory.

        Args:
            address: Where; a multiple of 4.
            data: The bytes; a multiple of 4.
        """
        for place in range(0, len(data), _WORD):
            word = int.from_bytes(data[place : place + _WORD], "little")
            self.machine.qtest.write(_WORD, address + place, word)

    def file_read(self, offset: int, length: int) -> bytes:
        """Read the memfd behind the device's memory.

        Args:
            offset: Where, in bytes.
            length: Bytes.
        """
        return os.pread(self.machine.files[self.id], length, offset)

    def file_write(self, offset: int, data: bytes) -> None:
        """Write the memfd behind the device's memory.

        Args:
            offset: Where, in bytes.
            data: The bytes.
        """
        os.pwrite(self.machine.files[self.id], data, offset)

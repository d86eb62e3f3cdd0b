"""Real eventfds for interrupts and kicks, through QEMU's ivshmem-doorbell device.

ivshmem lets guests interrupt each other: a server passes to every peer the eventfds of all peers. Here this
process is the server *and* the only other peer:

- an interrupt is an MSI-X message of the virtio function to ivshmem's Doorbell register, which makes QEMU set
  one of this process's eventfds;
- a kick is one of ivshmem's own vectors: this process sets its eventfd, and QEMU sends the MSI-X message that is
  in its table, whose address is the notify register of a virtqueue.
"""

from __future__ import annotations

import os
import select
import time
from _socket import SCM_RIGHTS, SOL_SOCKET, socketpair  # of CPython; the module socket takes long to import

from uvirtio.backends.resources import Resources
from uvirtio.errors import Closed, DeviceGone, Misuse, QemuFailed
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.backends.qemu.pci import PciAccess
    from uvirtio.backends.qemu.process import QemuProcess

VECTORS = 32
"""Number of eventfds each way. The last interrupt vector is reserved to find out whether QEMU has them all."""

_VERSION = 0
_QEMU_PEER = 0
_OUR_PEER = 1
_SHARED_SIZE = 65536
"""Of the memory that ivshmem wants and nothing here uses: QEMU takes whole pages of its target and of this
machine, up to 64 KiB, and refuses a file that is shorter."""

_DOORBELL = 12
"""Offset of the Doorbell register in BAR 0; peer in the upper half, vector in the lower."""


class Bells:
    """The eventfds of one machine: created before QEMU starts, connected to its ivshmem function afterwards."""

    ID = "uvirtio-bells"

    def __init__(self) -> None:
        self._calls: list[int] = []
        self._kicks: list[int] = []
        with Resources() as undo:  # where there are too few descriptors
            self.inherited, self._server = socketpair()
            undo.callback(self.inherited.close)
            undo.callback(self._server.close)
            self._shared = os.memfd_create("uvirtio-ivshmem", os.MFD_CLOEXEC)
            undo.callback(os.close, self._shared)
            os.ftruncate(self._shared, _SHARED_SIZE)
            for _ in range(VECTORS):
                self._calls.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                undo.callback(os.close, self._calls[-1])
            # What an ivshmem server sends: version, the client's id, the shared memory, then each peer's vectors.
            # The kernel counts descriptors under way against RLIMIT_NOFILE, all of this user's.
            self._tell(_VERSION)
            self._tell(_QEMU_PEER)
            self._tell(-1, self._shared)
            for fd in self._calls:
                self._tell(_OUR_PEER, fd)
            undo.keep()
        self._free_calls = list(range(VECTORS - 2, -1, -1))
        self._free_kicks = list(range(VECTORS - 1, -1, -1))
        self._pci: PciAccess | None = None
        self._doorbell_address = 0
        self._closed = False

    def _tell(self, word: int, fd: int | None = None) -> None:
        rights = [] if fd is None else [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(4, "little"))]
        self._server.sendmsg([word.to_bytes(8, "little", signed=True)], rights)

    @property
    def calls_free(self) -> int:
        """Number of interrupt vectors that are free."""
        return len(self._free_calls)

    @property
    def connected(self) -> bool:
        """Whether ``connect`` has been called."""
        return self._pci is not None

    def connect(self, pci: PciAccess, timeout: float) -> None:
        """Set up the ivshmem function.

        Args:
            pci: Access to the function.
            timeout: Seconds to wait until QEMU has the eventfds.

        Raises:
            QemuFailed: QEMU does not connect them.
        """
        pci.assign_bars()
        pci.enable(bus_master=True)
        pci.msix_enable(True)
        self._doorbell_address = pci.bars[0].address + _DOORBELL
        probe = select.poll()
        probe.register(self._calls[-1], select.POLLIN)
        deadline = time.monotonic() + timeout
        while True:
            # QEMU reads the server's messages beside its other work, in order: when the last vector fires, it
            # has them all.
            pci.qtest.write(4, self._doorbell_address, self.call_message(VECTORS - 1)[1])
            if probe.poll(1):  # milliseconds
                break
            if time.monotonic() > deadline:
                raise QemuFailed(
                    "QEMU did not connect the eventfds of its ivshmem device",
                    seen=f"no signal after {timeout:g} s",
                    expected="an eventfd that fires",
                    remedy="install a QEMU with ivshmem-doorbell, such as Debian's",
                )
        self._pci = pci

    def restore(self) -> None:
        """Set up the ivshmem function as it was, after a reset of the machine."""
        if self._pci is not None:
            self._pci.restore(bus_master=True)
            self._pci.msix_enable(True)

    def call_message(self, vector: int) -> tuple[int, int]:
        """Return the (address, data) of an MSI-X message that sets the eventfd ``vector`` of this process."""
        return self._doorbell_address, _OUR_PEER << 16 | vector

    def take_call(self) -> int:
        """Reserve a free interrupt vector, its eventfd drained."""
        vector = self._free_calls.pop()
        try:
            os.eventfd_read(self._calls[vector])
        except BlockingIOError:
            pass
        return vector

    def call_fd(self, vector: int) -> int:
        """Return the eventfd of an interrupt vector."""
        return self._calls[vector]

    def give_call(self, vector: int) -> None:
        """Free an interrupt vector."""
        self._free_calls.append(vector)

    def take_kick(self, address: int, value: int, process: QemuProcess) -> EventfdDoorbell | None:
        """Return an eventfd that writes a value to guest-physical memory; None when all are in use.

        Args:
            address: The guest-physical address, in bytes.
            value: What is written, 32 bits.
            process: The QEMU process, for errors.
        """
        if self._pci is None or not self._free_kicks:
            return None
        if self._free_kicks[-1] == len(self._kicks) and not self._one_more_kick():
            return None
        vector = self._free_kicks.pop()
        self._pci.msix_set(vector, address, value)
        self._pci.qtest.settle()  # a kick does not go the way of the entry, and could come first
        return EventfdDoorbell(self, vector, self._kicks[vector], value, process)

    def _one_more_kick(self) -> bool:
        """Register the next of QEMU's own vectors, only when it is needed: QEMU polls each of them every time.

        QEMU takes a while to receive it; kicks before that are counted in the eventfd. False: QEMU has ended.
        """
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._tell(_QEMU_PEER, fd)
        except OSError:
            os.close(fd)
            return False
        self._kicks.append(fd)
        return True

    def give_kick(self, vector: int) -> None:
        """Free a kick's vector."""
        if self._pci is not None and not self._closed:
            try:
                self._pci.msix_mask(vector)
            except (DeviceGone, Closed):
                return
            self._free_kicks.append(vector)

    def close(self) -> None:
        """Close all descriptors; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.inherited.close()
        self._server.close()
        for fd in (self._shared, *self._calls, *self._kicks):
            os.close(fd)


class EventfdDoorbell:
    """A kick as an eventfd: no socket round trip. It can send one word only. Satisfies ``Doorbell``."""

    def __init__(self, pool: Bells, vector: int, fd: int, value: int, process: QemuProcess) -> None:
        """Use a vector of the pool; ``Bells.take_kick`` makes it."""
        self._pool = pool
        self._vector = vector
        self._fd = fd
        self._value = value
        self._process = process
        self._closed = False

    def ring(self, value: int) -> None:
        """Kick.

        Raises:
            Misuse: ``value`` is not the fixed one.
            DeviceGone: QEMU ended.
            Closed: After ``close()``.
        """
        if value != self._value:
            raise Misuse(f"this doorbell writes {self._value:#x}, not {value:#x}")
        if self._closed:
            raise Closed("this doorbell is closed")
        if self._process.exited:
            raise DeviceGone(
                "QEMU ended while its device was in use",
                seen=self._process.autopsy(),
                expected="a running QEMU",
                remedy="open the device again",
            )
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Free the vector; idempotent."""
        if not self._closed:
            self._closed = True
            self._pool.give_kick(self._vector)

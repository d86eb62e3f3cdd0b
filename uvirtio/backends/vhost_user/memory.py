"""Memory that a vhost-user back end shares: one sparse file without a name, sent once for each connection.

User addresses and guest addresses are the same numbers, so that the addresses of rings and those in descriptors
cannot be mixed up. The file takes memory only where it is used.

A back end that was not drained may write for seconds after its rings were stopped (qemu-storage-daemon does). Then
the file is given up whole: its pages are unmapped, never handed out again, and what is written late is never read.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from uvirtio.backends.linear_blocks import GuestBlock
from uvirtio.errors import Closed, OperationFailed
from uvirtio.host import limits
from uvirtio.memory.iova import IovaAllocator

BASE: Final = 1 << 32
"""First address of the memory, in bytes: no small number, and no pointer of this process, is one."""

SIZE: Final = 1 << 30
"""Length of the memory, in bytes."""


class SharedMemory:
    """The memory of one connection."""

    def __init__(self, size: int = SIZE) -> None:
        """Make the file.

        Args:
            size: Its length in bytes.
        """
        self.size = size
        self.fd = os.memfd_create("uvirtio-vhost-user", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        # The back end has the file, too. A file that it made shorter would end this process by SIGBUS.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._free = IovaAllocator([(BASE, BASE + size - 1)])
        self._blocks: set[SharedBlock] = set()
        self.given_up = False

    def alloc(self, size: int) -> SharedBlock:
        """Allocate zeroed, page-aligned, contiguous memory.

        Args:
            size: Length in bytes.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or the kernel has no memory.
            Closed: The memory was given up.
        """
        if self.given_up:
            raise Closed("this memory was given up with its connection")
        address = self._free.alloc(size)
        try:
            block = SharedBlock(self, address, size)
        except OSError as error:
            self._free.free(address)
            raise limits.reached(error, f"no {size} bytes of shared memory") or OperationFailed(
                f"no {size} bytes of shared memory",
                seen=os.strerror(error.errno or 0),
                expected="pages of a memfd",
            ) from error
        self._blocks.add(block)
        return block

    def free(self, block: SharedBlock) -> None:
        """Take back the memory of a block; called by the block."""
        self._blocks.discard(block)
        if not self.given_up:
            self._free.free(block.address)

    def read16(self, address: int) -> int:
        """Return the 16-bit number at an address."""
        return int.from_bytes(os.pread(self.fd, 2, address - BASE), "little")

    def give_up(self) -> None:
        """Close the file and hand out nothing of it again; idempotent. Blocks are unmapped by their users."""
        if not self.given_up:
            self.given_up = True
            os.close(self.fd)


class SharedBlock(GuestBlock):
    """A run of the shared memory, with a mapping of its own. Satisfies ``Block``."""

    def __init__(self, memory: SharedMemory, address: int, size: int) -> None:
        """Map and zero the memory.

        Args:
            memory: The memory.
            address: Device address of the block, in bytes.
            size: Length of the block, in bytes.
        """
        self._memory = memory
        self._mapping = mmap.mmap(memory.fd, size, offset=address - BASE)
        try:
            # A hole, and then pages: zeros, whatever was written there since the last use. A lack of memory is an
            # error here; at the first touch it would be the end of this process.
            self._mapping.madvise(mmap.MADV_REMOVE)
            self._mapping.madvise(mmap.MADV_DONTFORK)
            os.posix_fallocate(memory.fd, address - BASE, size)
        except OSError:
            self._mapping.close()
            raise
        super().__init__(self._mapping, address)
        self._closed = False

    def close(self) -> None:
        """Free the memory; idempotent. The device must not use it any more.

        Raises:
            BufferError: A view made from ``view`` is still held; the memory is not reused then.
        """
        if not self._closed:
            self.view.release()
            if not self._memory.given_up:
                self._mapping.madvise(mmap.MADV_REMOVE)
            self._mapping.close()
            self._closed = True
            self._memory.free(self)


class SharedDma:
    """The memory of one start of a device: its blocks end with it. Satisfies ``DmaSpace``."""

    translated = False

    def __init__(self, memory: SharedMemory) -> None:
        """Make an empty space.

        Args:
            memory: The memory of the connection.
        """
        self._memory = memory
        self._blocks: set[SharedBlock] = set()
        self._closed = False
        self.contiguous_limit = memory.size

    def alloc(self, size: int) -> SharedBlock:
        """Allocate zeroed, page-aligned, contiguous memory; see ``SharedMemory.alloc``.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or the kernel has no memory.
            Closed: The space was closed, or the memory was given up.
        """
        if self._closed:
            raise Closed("this DMA space is closed")
        block = self._memory.alloc(size)
        self._blocks = {old for old in self._blocks if not old._closed}
        self._blocks.add(block)
        return block

    def pin(self, size: int) -> SharedBlock:
        """Allocate memory as ``alloc``: it never moves."""
        return self.alloc(size)

    def close(self) -> None:
        """Free all blocks; idempotent.

        Raises:
            BufferError: A view of a block is still held.
        """
        self._closed = True
        while self._blocks:
            self._blocks.pop().close()

"""The only place where registers, ring indices, ring flags and event words are read or written.

CPython has exactly one idiom that makes one load or one store of the right width in every build: an item access
on a memoryview that was cast to ``B``, ``H`` or ``I``. Its C code is a ``memcpy`` of a constant 2, 4 or 8 bytes
(``Objects/memoryobject.c``), which gcc makes one instruction at every level of optimisation. The others do not
hold: ``struct.pack_into`` stores zero first (a doorbell would ring queue 0, a status write would reset), slices
access twice, and a ctypes store reads the register first where the compiler keeps a load that only bit-fields need
(``Modules/_ctypes/cfield.c``): gcc 12 did in each of 3.11, 3.12 and 3.13, and Debian's debug builds (-Og) of 3.13
and 3.14 do; their usual builds by gcc 16 do not. So everything here is a cast view, or pread/pwrite of exactly the
width; ``tests/unit/memory/test_access.py`` proves it on the running interpreter by watching each access with a
hardware watchpoint. PyPy stores a cast item byte by byte, so it is refused (``require_host``).

All values are unsigned and little-endian, which is also the byte order of the hosts that this runs on: virtio 1.x
is little-endian throughout (1.4 of the standard).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from struct import Struct

from uvirtio.errors import Closed, DeviceGone, Misuse
from uvirtio.interfaces.runtime import Exchanges
from uvirtio.memory.fence import order_fence
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.interfaces.memory import Registers, Step
    from uvirtio.typed import Protocol

    Copier = Callable[[Any, int], tuple[bytes]]
    """Copies bytes out of a view, from an offset on: in one call, where a slice and ``bytes`` of it are two."""

    class Buffer(Protocol):
        """Objects with the buffer protocol: an mmap, a bytearray, another memoryview."""

        def __buffer__(self, flags: int, /) -> memoryview: ...


def words16(memory: memoryview, offset: int, count: int) -> memoryview:
    """View ``count`` 16-bit words from byte ``offset``; each item access is one 2-byte load or store.

    Raises:
        Misuse: They are not all in ``memory``, or ``offset`` is not aligned.
    """
    return _words(memory, offset, count, 2, "H")


def words32(memory: memoryview, offset: int, count: int) -> memoryview:
    """View ``count`` 32-bit words from byte ``offset``; each item access is one 4-byte load or store.

    Raises:
        Misuse: They are not all in ``memory``, or ``offset`` is not aligned.
    """
    return _words(memory, offset, count, 4, "I")


def words64(memory: memoryview, offset: int, count: int) -> memoryview:
    """View ``count`` 64-bit words from byte ``offset``. For descriptors in RAM only: no register is 64 bits wide.

    Raises:
        Misuse: They are not all in ``memory``, or ``offset`` is not aligned.
    """
    return _words(memory, offset, count, 8, "Q")


def columns(words: memoryview) -> tuple[memoryview, memoryview]:
    """View every second word from the first on, and every second from the second on: the halves of pairs.

    An item access of these is one load or store, too, and its index is the number of the pair.
    """
    if isinstance(words, memoryview):
        return words[::2], words[1::2]
    return _Column(words, 0), _Column(words, 1)


class _Column:
    """The same where something stands for the view that notes what is read of it."""

    def __init__(self, words: memoryview, first: int) -> None:
        self._words, self._first = words, first

    def __getitem__(self, number: int) -> int:
        return self._words[2 * number + self._first]

    def __setitem__(self, number: int, value: int) -> None:
        self._words[2 * number + self._first] = value

    def release(self) -> None:
        """Do nothing: the words are released by themselves."""


FEW = 64
"""The most elements of a batch that one call copies, or takes apart: each number has a format of its own."""


def copiers(view: memoryview, width: int) -> tuple[Copier, ...]:
    """Return what copies 0 to ``FEW`` elements of ``width`` bytes out of ``view``, by their number.

    A copy may touch words twice, so it is for what the device has finished with. None where something stands for
    the view that notes what is read of it.
    """
    return _copiers(width) if isinstance(view, memoryview) else ()


@cache
def _copiers(width: int) -> tuple[Copier, ...]:
    return tuple(Struct(f"{width * count}s").unpack_from for count in range(FEW + 1))


DescriptorWriter = Callable[[memoryview, int, int, int, int, int], None]
"""Writes 16 bytes at a byte offset: a word of 64 bits, one of 32, two of 16."""

_write_descriptor: DescriptorWriter = Struct("QIHH").pack_into


def descriptor_writer(words: memoryview) -> DescriptorWriter:
    """Return what writes a whole descriptor to a view of 64-bit words, in one call.

    It stores zero first, so it is for what the device does not take yet: it may look at the flags of the next slot
    of a packed ring, where zero is available in no lap (2.8.1).
    """
    return _write_descriptor if isinstance(words, memoryview) else _write_two_words


def _write_two_words(words: memoryview, offset: int, first: int, second: int, third: int, fourth: int) -> None:
    """The same where something stands for the view that notes what is written to it."""
    words[offset // 8] = first
    words[offset // 8 + 1] = second | third << 32 | fourth << 48


def _words(memory: memoryview, offset: int, count: int, width: int, code: str) -> memoryview:
    if offset < 0 or count < 0 or offset % width or offset + count * width > memory.nbytes:
        raise Misuse(f"{count} words of {width} bytes at {offset} do not fit {memory.nbytes} bytes, aligned")
    with memory[offset : offset + count * width] as piece:
        return piece.cast(code)  # type: ignore[call-overload,no-any-return]


def _too_large(value: int, width: int) -> Misuse:
    return Misuse(f"{value:#x} does not fit {width} bytes", seen=value, expected=f"0 to {(1 << 8 * width) - 1:#x}")


class MappedRegisters:
    """Registers in a mapping: a BAR, a virtio-mmio window, a page of /dev/mem. Satisfies ``Registers``.

    The views are not exported: an exported view would keep the BAR mapped, and ``mmap.close()`` fails while one
    exists. ``close()`` releases them and leaves the mapping to its owner.

    Where the CPU may reorder (all but x86), memory is ordered around registers as by writel and readl of Linux:
    what was stored before is visible before a register is written, and what is loaded after a register was read
    is not older.
    """

    def __init__(self, mapping: Buffer, offset: int, length: int) -> None:
        """View ``length`` bytes of ``mapping`` from ``offset``.

        Args:
            mapping: The mapping; the caller closes it after the registers.
            offset: Start of the window in the mapping, in bytes.
            length: Length of the window, in bytes.

        Raises:
            Misuse: The window is not all in the mapping.
        """
        if offset < 0 or length < 0:
            raise Misuse(f"a window of {length} bytes at {offset}")
        # A capability may lie at any byte (an ISR often does): the views start at the 4-byte word below it.
        base = offset & ~3
        with memoryview(mapping) as whole:
            if offset + length > whole.nbytes:
                raise Misuse(f"a window of {length} bytes at {offset} does not fit {whole.nbytes} bytes")
            end = min(whole.nbytes, (offset + length + 3) & ~3)
            with whole.cast("B")[base:end] as piece:
                self._b = piece.cast("B")
                self._h = piece[: (end - base) & ~1].cast("H")
                self._i = piece[: (end - base) & ~3].cast("I")
        self._order = order_fence()
        self._bias = offset - base
        self.length = length
        self._closed = False

    def _index(self, offset: int, width: int) -> int:
        if self._closed:
            raise Closed("these registers are closed")
        place = offset + self._bias
        if offset < 0 or offset + width > self.length or place % width:
            raise Misuse(f"a {width}-byte access at {offset:#x} of {self.length:#x}, aligned to its width")
        return place // width

    def read8(self, offset: int) -> int:
        """Read 8 bits at ``offset``."""
        value = self._b[self._index(offset, 1)]
        if self._order is not None:
            self._order()
        return value

    def read16(self, offset: int) -> int:
        """Read 16 bits at ``offset``."""
        value = self._h[self._index(offset, 2)]
        if self._order is not None:
            self._order()
        return value

    def read32(self, offset: int) -> int:
        """Read 32 bits at ``offset``."""
        value = self._i[self._index(offset, 4)]
        if self._order is not None:
            self._order()
        return value

    def write8(self, offset: int, value: int) -> None:
        """Write 8 bits at ``offset``."""
        place = self._index(offset, 1)
        if self._order is not None:
            self._order()
        try:
            self._b[place] = value
        except ValueError:
            raise _too_large(value, 1) from None

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits at ``offset``, in one step: this is the doorbell of a PCI device."""
        place = offset + self._bias
        if self._closed or offset < 0 or offset + 2 > self.length or place & 1:
            self._index(offset, 2)
        if self._order is not None:
            self._order()
        try:
            self._h[place >> 1] = value
        except ValueError:
            raise _too_large(value, 2) from None

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits at ``offset``."""
        place = self._index(offset, 4)
        if self._order is not None:
            self._order()
        try:
            self._i[place] = value
        except ValueError:
            raise _too_large(value, 4) from None

    def close(self) -> None:
        """Release the views; idempotent."""
        if not self._closed:
            self._closed = True
            for view in (self._b, self._h, self._i):
                view.release()


class WidthRegisters:
    """Registers that are accessed by a place and a width: behind a descriptor, a protocol, a pair of I/O ports.

    A subclass makes the one access of exactly ``width`` bytes in ``_read`` and ``_write``; ``place`` is ``base``
    plus an offset that is in the window, aligned to the width. What is behind it belongs to the caller.
    """

    def __init__(self, base: int, length: int) -> None:
        """Set the window of ``length`` bytes that begins at place ``base``."""
        self._base = base
        self.length = length
        self._closed = False

    def _place(self, offset: int, width: int) -> int:
        if self._closed:
            raise Closed("these registers are closed")
        place = self._base + offset
        if offset < 0 or offset + width > self.length or place % width:
            raise Misuse(f"a {width}-byte access at {offset:#x} of {self.length:#x}, aligned to its width")
        return place

    def _read(self, place: int, width: int) -> int:
        raise NotImplementedError

    def _write(self, place: int, width: int, value: int) -> None:
        raise NotImplementedError

    def read8(self, offset: int) -> int:
        """Read 8 bits at ``offset``."""
        return self._read(self._place(offset, 1), 1)

    def read16(self, offset: int) -> int:
        """Read 16 bits at ``offset``."""
        return self._read(self._place(offset, 2), 2)

    def read32(self, offset: int) -> int:
        """Read 32 bits at ``offset``."""
        return self._read(self._place(offset, 4), 4)

    def write8(self, offset: int, value: int) -> None:
        """Write 8 bits at ``offset``."""
        self._write(self._place(offset, 1), 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits at ``offset``."""
        self._write(self._place(offset, 2), 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits at ``offset``."""
        self._write(self._place(offset, 4), 4, value)

    def close(self) -> None:
        """Stop accepting accesses; idempotent."""
        self._closed = True


class ForwardedRegisters(WidthRegisters):
    """Registers that forward each access to ``inner``; a subclass adds to it in ``_read`` and ``_write``."""

    def __init__(self, inner: Registers) -> None:
        """Wrap ``inner``, which is closed together with this object."""
        super().__init__(0, inner.length)
        self._inner = inner

    def _place(self, offset: int, width: int) -> int:
        return offset  # checked there

    def _read(self, place: int, width: int) -> int:
        return read_field(self._inner, place, width)

    def _write(self, place: int, width: int, value: int) -> None:
        write_field(self._inner, place, width, value)

    def close(self) -> None:
        """Close the inner registers."""
        self._inner.close()


class FdRegisters(WidthRegisters):
    """Registers behind a file descriptor: an I/O BAR, PCI configuration space, a VFIO region.

    One pread or pwrite of exactly the width per access. A failing or short access is DeviceGone: the region was
    accessible before.
    """

    def __init__(self, fd: int, offset: int, length: int, *, what: str = "device") -> None:
        """Set the window; nothing is accessed yet.

        Args:
            fd: The file; the caller keeps it open, and closes it.
            offset: Start of the window in the file, in bytes.
            length: Length of the window, in bytes.
            what: The name of the device, for errors.
        """
        super().__init__(offset, length)
        self._fd = fd
        self._what = what

    def _gone(self, place: int, seen: str) -> DeviceGone:
        return DeviceGone(
            f"{self._what} no longer answers at offset {place - self._base:#x}",
            seen=seen,
            expected="a value",
            remedy="look whether the device was removed: uvirtio list",
        )

    def _read(self, place: int, width: int) -> int:
        try:
            data = os.pread(self._fd, width, place)
        except OSError as error:
            raise self._gone(place, os.strerror(error.errno or 0)) from error
        if len(data) != width:
            raise self._gone(place, f"{len(data)} bytes of {width}")
        return int.from_bytes(data, "little")

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits at ``offset``, in one step: this is the doorbell of a PCI device."""
        place = self._base + offset
        if self._closed or offset < 0 or offset + 2 > self.length or place & 1 or not 0 <= value <= 0xFFFF:
            self._place(offset, 2)
            raise _too_large(value, 2)
        try:
            done = os.pwrite(self._fd, value.to_bytes(2, "little"), place)
        except OSError as error:
            raise self._gone(place, os.strerror(error.errno or 0)) from error
        if done != 2:
            raise self._gone(place, f"{done} bytes of 2")

    def _write(self, place: int, width: int, value: int) -> None:
        if not 0 <= value < 1 << 8 * width:
            raise _too_large(value, width)
        try:
            done = os.pwrite(self._fd, value.to_bytes(width, "little"), place)
        except OSError as error:
            raise self._gone(place, os.strerror(error.errno or 0)) from error
        if done != width:
            raise self._gone(place, f"{done} bytes of {width}")


class FdDoorbell:
    """A kick by a 16-bit write to registers behind a descriptor, whose bytes and place are made once.

    Satisfies ``Doorbell``.
    """

    def __init__(self, registers: FdRegisters, value: int) -> None:
        """Take over the registers.

        Args:
            registers: A window whose first 16 bits are the notification register.
            value: What is written at each kick.

        Raises:
            Misuse: They are not 16 aligned bits, or ``value`` does not fit them.
        """
        if not 0 <= value <= 0xFFFF:
            raise _too_large(value, 2)
        self._registers = registers
        self._fd, self._place, self._data = registers._fd, registers._place(0, 2), value.to_bytes(2, "little")

    def ring(self, value: int) -> None:
        """Write what was set; ``value`` is ignored.

        Raises:
            DeviceGone: The device was removed.
            Closed: After ``close()``.
        """
        del value
        registers = self._registers
        if registers._closed:
            registers._place(0, 2)
        try:
            done = os.pwrite(self._fd, self._data, self._place)
        except OSError as error:
            raise registers._gone(self._place, os.strerror(error.errno or 0)) from error
        if done != 2:
            raise registers._gone(self._place, f"{done} bytes of 2")

    def close(self) -> None:
        """Close the registers; idempotent."""
        self._registers.close()


def exchange(registers: Registers, steps: Sequence[Step]) -> list[int]:
    """Make several accesses in their order: in one round trip where the registers can (``Exchanges``).

    Args:
        registers: The registers.
        steps: The accesses. None depends on what another one reads.

    Returns:
        What the reads among them read.

    Raises:
        Misuse: An access is outside the window, not aligned, or its value is too wide.
        DeviceGone: The device was removed.
        Closed: The registers are closed.
    """
    if isinstance(registers, Exchanges):
        return registers.exchange(steps)
    found: list[int] = []
    for offset, width, value in steps:
        if value is None:
            found.append(read_field(registers, offset, width))
        else:
            write_field(registers, offset, width, value)
    return found


def read_field(registers: Registers, offset: int, width: int) -> int:
    """Read a little-endian field of 1, 2, 4 or 8 bytes by accesses of its width; 8 bytes are two of 4 (4.1.3.1).

    The lower 4 bytes are read first.

    Raises:
        Misuse: The field is not all in the window, or not aligned.
        DeviceGone: The device was removed.
        Closed: The registers are closed.
    """
    if width == 1:
        return registers.read8(offset)
    if width == 2:
        return registers.read16(offset)
    if width == 4:
        return registers.read32(offset)
    return registers.read32(offset) | registers.read32(offset + 4) << 32


def write_field(registers: Registers, offset: int, width: int, value: int) -> None:
    """Write a little-endian field of 1, 2, 4 or 8 bytes by accesses of its width; 8 bytes are two of 4 (4.1.3.1).

    The lower 4 bytes are written first.

    Raises:
        Misuse: The field is not all in the window, or not aligned.
        DeviceGone: The device was removed.
        Closed: The registers are closed.
    """
    if width == 1:
        registers.write8(offset, value)
    elif width == 2:
        registers.write16(offset, value)
    else:
        registers.write32(offset, value & 0xFFFFFFFF)
        if width == 8:
            registers.write32(offset + 4, value >> 32)

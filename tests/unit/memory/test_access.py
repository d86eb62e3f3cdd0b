"""One call, one access, of the right width: proved on the running interpreter, instruction by instruction."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.support.watchpoints import Seen, Unavailable, observe
from uvirtio.errors import Closed, DeviceGone, Misuse, NotSupported
from uvirtio.host import cpu
from uvirtio.memory.access import FdDoorbell, FdRegisters, MappedRegisters, words16, words32, words64

SETUP = """
import ctypes, mmap, struct
from uvirtio.memory.access import MappedRegisters, columns, words16, words32, words64
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.split import SplitQueue
page = mmap.mmap(-1, 4096)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))
registers = MappedRegisters(page, 0, 64)
odd = MappedRegisters(page, 21, 3)
whole = memoryview(page)
halves, words, quads = words16(whole, 8, 4), words32(whole, 8, 4), words64(whole, 8, 4)
firsts, seconds = columns(words)
starts, rests = columns(quads)
field = ctypes.c_uint32.from_buffer(page, 8)
class Area:
    def __init__(self):
        self.map = mmap.mmap(-1, 4096)
        self.view = memoryview(self.map)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
    def segments(self, offset, length):
        return [(self.base + offset, length)]
desc, avail, used = Area(), Area(), Area()
queue = SplitQueue(0, 8, desc, avail, used, RingOptions(fence=lambda: None, event_idx=False))
"""

# name: (code, watched address, loads, stores, width)
SINGLE: dict[str, tuple[str, str, int, int, int]] = {
    "read8": ("registers.read8(8)", "base + 8", 1, 0, 1),
    "read16": ("registers.read16(8)", "base + 8", 1, 0, 2),
    "read32": ("registers.read32(8)", "base + 8", 1, 0, 4),
    "write8": ("registers.write8(8, 0x5a)", "base + 8", 0, 1, 1),
    "write16": ("registers.write16(8, 0x5a5a)", "base + 8", 0, 1, 2),
    "write32": ("registers.write32(8, 0x5a5a5a5a)", "base + 8", 0, 1, 4),
    "read8 in an odd window": ("odd.read8(0)", "base + 21", 1, 0, 1),
    "write8 in an odd window": ("odd.write8(0, 1)", "base + 21", 0, 1, 1),
    "words16 load": ("halves[0]", "base + 8", 1, 0, 2),
    "words16 store": ("halves[0] = 0x1234", "base + 8", 0, 1, 2),
    "words32 load": ("words[0]", "base + 8", 1, 0, 4),
    "words32 store": ("words[0] = 0x12345678", "base + 8", 0, 1, 4),
    "words64 load": ("quads[0]", "base + 8", 1, 0, 8),
    "words64 store": ("quads[0] = 0x123456789abcdef0", "base + 8", 0, 1, 8),
    "columns load, first": ("firsts[1]", "base + 16", 1, 0, 4),
    "columns load, second": ("seconds[1]", "base + 20", 1, 0, 4),
    "columns store of 64 bits": ("rests[0] = 0x123456789abcdef0", "base + 16", 0, 1, 8),
    "publish, avail.idx": ("queue.add((), [(64, 64)], 0); queue.publish()", "avail.base + 2", 0, 1, 2),
    "publish, used.flags": ("queue.add((), [(64, 64)], 0); queue.publish()", "used.base", 1, 0, 2),
    "reap, used.idx": ("queue.reap()", "used.base + 2", 1, 0, 2),
    "want_interrupts, avail.flags": ("queue.want_interrupts(False)", "avail.base", 0, 1, 2),
}

# What must not be used, and how it gives itself away: more than one access.
DOUBLE: dict[str, tuple[str, str]] = {
    "struct.pack_into": ("struct.pack_into('<I', page, 8, 7)", "base + 8"),
    "slice store": ("page[8:12] = b'abcd'", "base + 8"),
    "slice load": ("page[8:12]", "base + 8"),
    "ctypes store": ("field.value = 7", "base + 8"),
}


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    probes = {name: (entry[0], entry[1]) for name, entry in SINGLE.items()} | DOUBLE
    try:
        found: dict[str, Seen] = {}
        for width in (1, 2, 4, 8):
            group = {name: probes[name] for name, entry in SINGLE.items() if entry[4] == width}
            if width == 4:
                group |= DOUBLE
            found |= observe(SETUP, group, width)
    except Unavailable as reason:
        pytest.skip(f"accesses cannot be watched here: {reason}")
    if not found["struct.pack_into"].stores:
        pytest.skip("the debug registers of this (virtual) CPU do not fire, so nothing would be proved")
    return found


@pytest.mark.spec("PCI-ACC-01", "PCI-ACC-02", "PCI-ACC-03", "SPL-12")
@pytest.mark.parametrize("name", SINGLE)
def test_one_call_is_one_access_of_its_width(seen: dict[str, Seen], name: str):
    _, _, loads, stores, width = SINGLE[name]
    assert seen[name] == Seen(loads, stores, [width] * (loads + stores))


def test_the_watch_sees_two_accesses_where_there_are_two(seen: dict[str, Seen]):
    """The control: without it, a watch that sees nothing would prove everything."""
    assert seen["struct.pack_into"].stores >= 2


@pytest.mark.parametrize("name", [name for name in DOUBLE if name != "struct.pack_into"])
def test_other_idioms_are_what_they_are_said_to_be(seen: dict[str, Seen], name: str):
    counted = seen[name].loads + seen[name].stores
    assert counted >= 1
    if counted == 1:
        pytest.skip(f"{name} makes one access with this interpreter and C library; we do without it all the same")


# --- MappedRegisters ----------------------------------------------------------------------------------------


def test_values_are_little_endian_and_at_their_offsets():
    page = mmap.mmap(-1, 4096)
    page[0x100:0x108] = bytes(range(1, 9))
    registers = MappedRegisters(page, 0x100, 8)
    assert registers.read8(1) == 2
    assert registers.read16(2) == 0x0403
    assert registers.read32(4) == 0x08070605
    registers.write8(0, 0xFF)
    registers.write16(2, 0xBEEF)
    registers.write32(4, 0xDEADBEEF)
    assert page[0xFC:0x10C] == bytes(4) + bytes.fromhex("ff02efbeefbeadde") + bytes(4)
    registers.close()
    page.close()


@pytest.mark.parametrize(("offset", "length"), [(0x100, 8), (0x101, 1), (0x103, 5), (0xFFF, 1), (0xFF8, 8)])
def test_nothing_outside_the_window_or_misaligned(offset: int, length: int):
    page = mmap.mmap(-1, 4096)
    with_guard = bytes(page)
    registers = MappedRegisters(page, offset, length)
    for width in (1, 2, 4):
        for at in range(-4, length + 4):
            fits = at >= 0 and at + width <= length and (offset + at) % width == 0
            read, write = getattr(registers, f"read{8 * width}"), getattr(registers, f"write{8 * width}")
            if fits:
                write(at, 0)
                assert read(at) == 0
            else:
                with pytest.raises(Misuse):
                    read(at)
                with pytest.raises(Misuse):
                    write(at, 0)
    assert bytes(page) == with_guard
    registers.close()
    page.close()


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (0, -1), (0, 4097), (4096, 1), (4000, 97)])
def test_a_window_beyond_the_mapping_is_refused_and_leaks_no_view(offset: int, length: int):
    page = mmap.mmap(-1, 4096)
    with pytest.raises(Misuse):
        MappedRegisters(page, offset, length)
    page.close()


@pytest.mark.parametrize("value", [-1, 256])
def test_a_value_that_does_not_fit_is_not_cut(value: int):
    registers = MappedRegisters(bytearray(8), 0, 8)
    with pytest.raises(Misuse):
        registers.write8(0, value)
    assert registers.read8(0) == 0


def test_closing_releases_the_mapping_and_stops_accesses():
    page = mmap.mmap(-1, 4096)
    registers = MappedRegisters(page, 0, 16)
    with pytest.raises(BufferError):
        page.close()
    registers.close()
    registers.close()
    for call in (lambda: registers.read8(0), lambda: registers.write32(0, 0)):
        with pytest.raises(Closed):
            call()
    page.close()


def test_a_big_endian_host_is_refused(monkeypatch: pytest.MonkeyPatch):
    cpu.require_host()
    monkeypatch.setattr(cpu.sys, "byteorder", "big")
    with pytest.raises(NotSupported, match="big-endian"):
        cpu.require_host()


def test_another_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.sys.implementation, "name", "pypy")
    with pytest.raises(NotSupported, match="CPython alone") as caught:
        cpu.require_host()
    assert str(caught.value.seen).startswith("pypy, Python 3.")


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("view", "width"), [(words16, 2), (words32, 4), (words64, 8)])
def test_words_are_bounded_and_aligned(view: object, width: int):
    memory = bytearray(64)
    whole = memoryview(memory)
    words = view(whole, 8, 3)  # type: ignore[operator]
    assert len(words) == 3 and words.itemsize == width
    words[2] = 1
    assert memory[8 + 2 * width] == 1
    with pytest.raises(IndexError):
        words[3] = 1
    words.release()
    for offset, count in ((1, 1), (-width, 1), (0, -1), (0, 64 // width + 1), (64, 1)):
        with pytest.raises(Misuse):
            view(whole, offset, count)  # type: ignore[operator]
    whole.release()
    memory += b"resizing fails while a view lives"


# --- FdRegisters --------------------------------------------------------------------------------------------


class Recorded:
    """os.pread and os.pwrite, with a list of what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, int]] = []
        pread, pwrite = os.pread, os.pwrite

        def reading(fd: int, length: int, offset: int) -> bytes:
            self.calls.append(("pread", length, offset))
            return pread(fd, length, offset)

        def writing(fd: int, data: bytes, offset: int) -> int:
            self.calls.append(("pwrite", len(data), offset))
            return pwrite(fd, data, offset)

        monkeypatch.setattr(os, "pread", reading)
        monkeypatch.setattr(os, "pwrite", writing)


@pytest.mark.spec("PCI-ACC-01", "PCI-ACC-02", "PCI-ACC-03")
@pytest.mark.parametrize("width", [1, 2, 4])
def test_one_call_is_one_system_call_of_exactly_the_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
):
    path = tmp_path / "region"
    path.write_bytes(bytes(range(64)))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        recorded = Recorded(monkeypatch)
        registers = FdRegisters(fd, 16, 32)
        value = getattr(registers, f"read{8 * width}")(8)
        assert value == int.from_bytes(bytes(range(24, 24 + width)), "little")
        getattr(registers, f"write{8 * width}")(12, (1 << 8 * width) - 2)
        assert recorded.calls == [("pread", width, 24), ("pwrite", width, 28)]
        assert path.read_bytes()[28 : 28 + width] == ((1 << 8 * width) - 2).to_bytes(width, "little")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)


def test_fd_registers_keep_to_their_window_without_a_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recorded = Recorded(monkeypatch)
    registers = FdRegisters(-1, 16, 8)
    for width, offset in ((1, -1), (1, 8), (2, 7), (2, 1), (4, 6), (4, 2), (4, 8)):
        with pytest.raises(Misuse):
            getattr(registers, f"read{8 * width}")(offset)
        with pytest.raises(Misuse):
            getattr(registers, f"write{8 * width}")(offset, 0)
    registers.close()
    registers.close()
    with pytest.raises(Closed):
        registers.read8(0)
    for write in (registers.write8, registers.write16, registers.write32):
        with pytest.raises(Closed):
            write(0, 0)
    assert recorded.calls == []


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_fd_registers_refuse_a_value_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, value: int):
    recorded = Recorded(monkeypatch)
    with pytest.raises(Misuse):
        FdRegisters(-1, 0, 8).write16(0, value)
    assert recorded.calls == []


@pytest.mark.parametrize("error", [errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF])
def test_a_failing_region_is_a_device_that_is_gone(monkeypatch: pytest.MonkeyPatch, error: int):
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "pwrite", fail)
    registers = FdRegisters(-1, 0, 8, what="0000:03:00.0 BAR 4")
    bell = FdDoorbell(FdRegisters(-1, 0, 2, what="0000:03:00.0 BAR 4 at 0x4"), 1)
    for call in (lambda: registers.read32(4), lambda: registers.write16(4, 1), lambda: bell.ring(1)):
        with pytest.raises(DeviceGone) as caught:
            call()
        assert caught.value.seen == os.strerror(error)
        assert "0000:03:00.0 BAR 4" in caught.value.message and "0x4" in caught.value.message
        assert isinstance(caught.value.__cause__, OSError)


def test_a_doorbell_is_one_system_call_of_what_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "region"
    path.write_bytes(bytes(64))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        recorded = Recorded(monkeypatch)
        bell = FdDoorbell(FdRegisters(fd, 16, 2), 0x1234)
        bell.ring(7)
        assert recorded.calls == [("pwrite", 2, 16)] and path.read_bytes()[15:19] == b"\0\x34\x12\0"
        bell.close()
        with pytest.raises(Closed):
            bell.ring(7)
        assert len(recorded.calls) == 1
        bell = FdDoorbell(FdRegisters(fd, 16, 2, what="0000:03:00.0 BAR 4"), 0)
        monkeypatch.setattr(os, "pwrite", lambda *_: 1)
        with pytest.raises(DeviceGone, match="BAR 4 no longer answers") as caught:
            bell.ring(0)
        assert caught.value.seen == "1 bytes of 2"
    finally:
        os.close(fd)


@pytest.mark.parametrize(("length", "value"), [(2, -1), (2, 1 << 16), (1, 0)])
def test_a_doorbell_that_cannot_be_is_not_made(length: int, value: int):
    with pytest.raises(Misuse):
        FdDoorbell(FdRegisters(-1, 16, length), value)


def test_a_short_answer_is_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "region"
    path.write_bytes(bytes(6))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        registers = FdRegisters(fd, 0, 64)
        with pytest.raises(DeviceGone, match="no longer answers"):
            registers.read32(4)
        monkeypatch.setattr(os, "pwrite", lambda *_: 1)
        for write in (registers.write16, registers.write32):
            with pytest.raises(DeviceGone):
                write(0, 1)
    finally:
        os.close(fd)

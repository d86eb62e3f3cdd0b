"""Plugged memory as memory: what is not plugged is in no mapping, and what is mapped stays plugged."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uvirtio.drivers import mem as drivers
from uvirtio.drivers.mem import Manager, Region
from uvirtio.errors import (
    BadSize,
    Closed,
    InUse,
    Misuse,
    NotPlugged,
    NotSupported,
    OperationFailed,
    PermissionLack,
)
from uvirtio.host.roots import Roots
from uvirtio.interfaces.memory import Block, MemoryWindow
from uvirtio.memory.window import FileWindow, dev_mem
from uvirtio.opening import identify
from uvirtio.scripted.mem import ADDR, JUNK, Mem
from uvirtio.scripted.pci import ScriptedDevice

PAGE = mmap.PAGESIZE
BLOCK = 4 * PAGE
SIZE = 16 * BLOCK


@contextmanager
def region(**model: object) -> Iterator[tuple[drivers.Mem, Region, Mem]]:
    device = Mem(blocks=16, block_size=BLOCK, requested=SIZE, memory=True, **model)  # type: ignore[arg-type]
    function = ScriptedDevice(device)
    with identify(function.address, function) as opened, drivers.Mem(opened) as mem:
        window = device.window()
        with Region(mem, window) as made:
            yield mem, made, device
    function.assert_left()
    device.close()


def at(block: int) -> int:
    return ADDR + block * BLOCK


# --- the guard ----------------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-06", "MEM-07", "MEM-09", "MEM-10")
@pytest.mark.parametrize("features", [0, 2], ids=["readable", "inaccessible"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (BLOCK - 1, 2),
        (3 * BLOCK, 1),
        (3 * BLOCK - 1, 2),
        (0, SIZE),
        (SIZE, 1),
        (-1, 2),
        (SIZE - 1, 2),
        (BLOCK, 0),
    ],
)
def test_unplugged_blocks_are_neither_read_nor_written_nor_mapped(features, offset, length):
    with region(features=features) as (mem, it, _):
        mem.plug(at(1), 2)
        gc.collect()  # what earlier tests mapped
        before = Path("/proc/self/maps").read_text().count("scripted-mem")
        for touch in (
            lambda: it.read(offset, length),
            lambda: it.write(offset, bytes(length)),
            lambda: it.view(offset, length),
            lambda: it.zero(offset, length),
        ):
            with pytest.raises(NotPlugged) as caught:
                touch()
            assert caught.value.exit_code == 2
        assert Path("/proc/self/maps").read_text().count("scripted-mem") == before
        assert mem.block_table.uses == []


@pytest.mark.spec("MEM-06", "MEM-10", "MEM-11")
def test_a_mapping_lives_exactly_as_long_as_its_piece():
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("scripted-mem")

    gc.collect()  # what other tests have left to it
    with region() as (mem, it, _):
        mem.plug(at(0), 4)
        before = mapped()
        piece = it.view(BLOCK, BLOCK)
        assert mapped() == before + 1
        with pytest.raises(InUse):
            mem.unplug(at(1), 1)
        mem.unplug(at(0), 1)
        before = mapped()  # the scripted device maps what is plugged, for itself
        piece.close()
        piece.close()
        assert mapped() == before - 1
        mem.unplug(at(1), 1)
        with pytest.raises(ValueError, match="released"):
            piece.view[0]
        with pytest.raises(Closed):
            piece.segments(0, 1)


@pytest.mark.spec("MEM-11")
def test_a_view_that_somebody_keeps_keeps_its_blocks():
    with region() as (mem, it, _):
        mem.plug(at(0), 1)
        piece = it.view(0, BLOCK)
        kept = piece.view[:10]
        with pytest.raises(BufferError):
            piece.close()
        with pytest.raises(InUse):
            mem.unplug(at(0), 1)
        kept.release()
        piece.close()
        mem.unplug(at(0), 1)


# --- initialisation -----------------------------------------------------------------------------------------


@pytest.mark.spec("MEM-12")
def test_what_was_plugged_is_cleared_before_anybody_has_it_and_only_once():
    with region() as (mem, it, device):
        mem.plug(at(2), 2)
        window = device.window()
        raw = window.map(2 * BLOCK, BLOCK)
        assert raw[0] == JUNK
        assert it.read(2 * BLOCK, 100) == bytes(100)
        it.write(2 * BLOCK + 50, b"kept")
        assert it.read(2 * BLOCK, BLOCK) == bytes(50) + b"kept" + bytes(BLOCK - 54)
        raw.close()
        window.close()
        mem.unplug(at(2), 1)
        mem.plug(at(2), 1)
        assert it.read(2 * BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.spec("MEM-12")
def test_what_an_earlier_owner_left_is_shown_as_it_is_and_handed_out_clean():
    with region(plugged={1}) as (mem, it, device):
        import os

        os.pwrite(device.fd, b"precious", BLOCK)
        assert it.read(BLOCK, 8) == b"precious"
        manager = Manager(mem, region=it)
        [out] = manager.hand_out("new")
        assert it.read(out.address - ADDR, BLOCK) == bytes(BLOCK)


@pytest.mark.spec("MEM-12")
def test_hand_outs_are_cleared_each_time():
    with region() as (mem, it, _):
        manager = Manager(mem, unit=2 * BLOCK, region=it)
        mem.plug(at(0), 4)
        [one] = manager.hand_out("one", count=1)
        it.write(one.address - ADDR, b"\x55" * one.size)
        manager.give_back(one)
        [two] = manager.hand_out("two", count=1)
        assert two.address == one.address
        assert it.read(two.address - ADDR, two.size) == bytes(two.size)


# --- buffers ------------------------------------------------------------------------------------------------


def test_buffers_come_from_plugged_memory_that_nobody_uses():
    with region() as (mem, it, _):
        with pytest.raises(OperationFailed, match="in a row"):
            it.alloc(1)
        mem.plug(at(1), 2)
        mem.plug(at(5), 1)
        one: Block = it.alloc(PAGE + 1)
        two = it.alloc(2 * BLOCK - 2 * PAGE)
        three = it.alloc(BLOCK)
        assert (one.size, two.size) == (2 * PAGE, 2 * BLOCK - 2 * PAGE)
        assert one.segments(0, 2 * PAGE) == [(at(1), 2 * PAGE)]
        assert two.segments(1, 2) == [(at(1) + 2 * PAGE + 1, 2)]
        assert three.pfns() == [(at(5) >> 12) + page for page in range(4)]
        assert one.contiguous and not any(one.view)
        with pytest.raises(OperationFailed):
            it.alloc(1)
        with pytest.raises(InUse):
            mem.unplug(at(5), 1)
        three.close()
        mem.unplug(at(5), 1)
        for offset, length in ((PAGE, 2 * PAGE), (PAGE, -1), (-1, 1), (2 * PAGE, 1)):
            with pytest.raises(Misuse, match="bytes at"):
                one.segments(offset, length)
        assert one.segments(2 * PAGE - 1, 1) == [(at(1) + 2 * PAGE - 1, 1)]
        with pytest.raises(BadSize, match="0 bytes"):
            it.alloc(0)
        assert one.segments(0, 0) == []


@pytest.mark.spec("MEM-08")
def test_a_device_is_shown_the_plugged_runs_and_no_gap():
    class Space:
        translated = True
        contiguous_limit = 1 << 30

        def __init__(self) -> None:
            self.shown: dict[int, int] = {}

        def alloc(self, size):
            raise NotImplementedError

        pin = alloc

        def close(self):
            pass

        def adopt(self, mapping, physical):
            space = self
            self.shown[physical] = len(mapping)

            class Shown:
                contiguous = True

                def segments(self, offset, length):
                    return [(physical + (1 << 40) + offset, length)]

                def close(self):
                    del space.shown[physical]

            return Shown()

    with region() as (mem, it, _):
        mem.plug(at(1), 2)
        mem.plug(at(6), 3)
        space = Space()
        pieces = it.show(space)
        assert space.shown == {at(1): 2 * BLOCK, at(6): 3 * BLOCK}
        assert pieces[1].segments(5, 6) == [(at(6) + (1 << 40) + 5, 6)]
        with pytest.raises(InUse):
            mem.unplug(at(7), 1)
        for piece in pieces:
            piece.close()
        assert space.shown == {}
        mem.unplug(at(7), 1)


def test_a_space_that_adopts_nothing():
    with region() as (mem, it, _):
        mem.plug(at(0), 1)
        translated = ScriptedDevice(Mem()).dma(False)
        translated.translated = True
        with pytest.raises(NotSupported, match="translated"):
            it.alloc(PAGE, shown=translated)
        assert mem.block_table.uses == []
        translated.translated = False
        assert it.alloc(PAGE, shown=translated).segments(0, 1) == [(ADDR, 1)]


def test_blocks_smaller_than_a_page_have_no_region():
    device = Mem(blocks=16, block_size=512)
    function = ScriptedDevice(device)
    with identify(function.address, function) as opened, drivers.Mem(opened) as mem:
        window: MemoryWindow = FileWindow(-1, 0, 16 * 512, what="nothing")
        with pytest.raises(NotSupported, match="smaller than a page"):
            Region(mem, window)


# --- windows ------------------------------------------------------------------------------------------------


def test_dev_mem_is_mapped_at_the_devices_address(tmp_path):
    roots = Roots.under(tmp_path)
    roots.dev.mkdir()
    with (roots.dev / "mem").open("wb") as file:
        file.truncate(ADDR + SIZE)
    device = Mem(blocks=16, block_size=BLOCK, requested=SIZE)
    function = ScriptedDevice(device)
    with identify(function.address, function) as opened, drivers.Mem(opened) as mem:
        mem.plug(at(3), 1)
        with Region.open(mem, roots=roots) as it:
            it.write(3 * BLOCK, b"there")
        with (roots.dev / "mem").open("rb") as file:
            file.seek(at(3))
            assert file.read(5) == b"there"


def test_a_machine_without_dev_mem(tmp_path):
    roots = Roots.under(tmp_path)
    with pytest.raises(NotSupported) as caught:
        dev_mem(ADDR, SIZE, roots)
    assert "CONFIG_DEVMEM" in caught.value.expected


def test_dev_mem_that_is_not_for_us(tmp_path, monkeypatch):
    import os

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionLack, match="cannot be opened"):
        dev_mem(ADDR, SIZE, Roots.under(tmp_path))


def test_a_range_that_the_kernel_keeps(monkeypatch):
    window = FileWindow(-1, ADDR, SIZE, what="/dev/mem")
    with pytest.raises(Closed):
        window.map(0, PAGE)
    window._fd = 0

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(PermissionLack) as caught:
        window.map(0, PAGE)
    assert "/proc/iomem" in caught.value.remedy
    window._fd = -1


@pytest.mark.parametrize(("offset", "length"), [(-PAGE, PAGE), (0, 0), (0, SIZE + PAGE), (1, PAGE), (0, 1)])
def test_a_window_has_edges(offset, length):
    window = FileWindow(99, 0, SIZE, what="test")
    window_fd, window._fd = window._fd, 0
    with pytest.raises(Misuse, match="in pages"):
        window.map(offset, length)
    window._fd = -1
    assert window_fd == 99

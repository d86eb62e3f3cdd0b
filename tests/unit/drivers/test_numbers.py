"""Numbers that a caller gives: NumPy's, fractions, and those that fit no field of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import Blk, Device, Mem, Rng, Scsi, scripted
from uvirtio.drivers import scsi
from uvirtio.drivers.mem import Request
from uvirtio.drivers.scsi import commands
from uvirtio.errors import BadSize
from uvirtio.interfaces.values import TIMEOUT_MAX
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE

LUN = scsi.Lun(0)
AT = 1020


class Narrow:
    """An integer as NumPy has them, of ten bits: what is larger wraps."""

    def __init__(self, value: int) -> None:
        self.value = value % 1024

    def __index__(self) -> int:
        return self.value

    def __add__(self, other: Any) -> Narrow:
        return Narrow(self.value + int(other))

    def __radd__(self, other: Any) -> Narrow:
        return self + other

    def __sub__(self, other: Any) -> Narrow:
        return Narrow(self.value - int(other))

    def __rsub__(self, other: Any) -> Narrow:
        return Narrow(int(other) - self.value)

    def __mul__(self, other: Any) -> Narrow:
        return Narrow(self.value * int(other))

    def __rmul__(self, other: Any) -> Narrow:
        return self * other

    def __lt__(self, other: Any) -> bool:
        return self.value < int(other)

    def __gt__(self, other: Any) -> bool:
        return self.value > int(other)

    def __le__(self, other: Any) -> bool:
        return self.value <= int(other)

    def __ge__(self, other: Any) -> bool:
        return self.value >= int(other)


def _disk() -> scripted.Disk:
    return scripted.Disk(features=f.mask(*f.Blk) & ~f.mask(f.Blk.RO), max_discard_sectors=64, max_discard_seg=1)


def _blk(device: Device) -> Any:
    return Blk(device, allow_write=True, request_size=2 * SECTOR_SIZE)


def _scsi(device: Device) -> Any:
    return Scsi(device, allow_write=True, request_size=2 * SECTOR_SIZE)


@pytest.mark.parametrize(
    ("model", "driver", "before"),
    [(_disk, _blk, ()), (scripted.ScsiHost, _scsi, (LUN,))],
    ids=["blk", "scsi"],
)
def test_sums_of_narrow_integers_do_not_wrap(
    model: Callable[[], scripted.Model], driver: Callable[[Device], Any], before: tuple[Any, ...]
) -> None:
    data = bytes(range(1, 9)) * SECTOR_SIZE
    with uvirtio.open(scripted.ScriptedDevice(model())) as device, driver(device) as disk:
        disk.write(*before, Narrow(AT), data)
        assert disk.read(*before, AT, 8) == data
        assert disk.read(*before, Narrow(AT), Narrow(8)) == data


def test_ranges_of_narrow_integers_do_not_wrap() -> None:
    with uvirtio.open(scripted.ScriptedDevice(_disk())) as device, _blk(device) as blk:
        blk.write(AT, b"x" * 8 * SECTOR_SIZE)
        blk.write_zeroes(Narrow(AT), Narrow(8))
        assert blk.read(AT, 8) == bytes(8 * SECTOR_SIZE)
        one = blk.submit_read(Narrow(AT + 3), Narrow(2))
        assert one.result() == bytes(2 * SECTOR_SIZE)


@pytest.mark.parametrize(
    "call",
    [
        lambda blk: blk.read(0, 1.5),
        lambda blk: blk.read(1.0, 1),
        lambda blk: blk.submit_read(0, 1.5),
        lambda blk: blk.write(1.5, bytes(SECTOR_SIZE)),
        lambda blk: blk.discard(1.0, 1),
        lambda blk: blk.burst(1.5),
    ],
)
def test_a_fraction_is_refused_and_nothing_is_left_of_it(call: Callable[[Any], object]) -> None:
    with uvirtio.open(scripted.ScriptedDevice(_disk())) as device, Blk(device, allow_write=True, depth=1) as blk:
        blk.read(0, 1)
        with pytest.raises(TypeError):
            call(blk)
        blk.write(3, b"x" * SECTOR_SIZE)
        assert blk.read(3, 1) == b"x" * SECTOR_SIZE


@pytest.mark.parametrize("page", [-1, 256, 1 << 64])
def test_a_page_that_cannot_be_is_refused(page: int) -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.ScsiHost())) as device, Scsi(device) as host:
        with pytest.raises(BadSize, match="its field of the CDB"):
            host.vpd(LUN, page)
        assert host.inquiry(LUN)


@pytest.mark.parametrize(
    "make",
    [
        lambda: commands.request_sense(256),
        lambda: commands.inquiry(1 << 16),
        lambda: commands.vpd(0x83, -1),
        lambda: commands.report_luns(1 << 32),
        lambda: commands.read_capacity_16(-1),
        lambda: commands.mode_sense(256),
    ],
)
def test_a_number_without_room_in_the_cdb_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(BadSize, match="its field of the CDB"):
        make()


@pytest.mark.parametrize("numbers", [(-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 16)])
def test_a_request_that_does_not_fit_its_fields_is_refused(numbers: tuple[int, int]) -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.Mem())) as device, Mem(device) as mem:
        with pytest.raises(BadSize, match="64 bits"):
            mem.ask(Request.STATE, *numbers)
        mem.resync()


@pytest.mark.parametrize("timeout", [10**400, 1e300])
def test_a_time_out_beyond_the_longest_is_the_longest(timeout: float) -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.Rng())) as device, Rng(device) as rng:
        assert len(rng.read(4, timeout=timeout)) == 4
        assert device.seconds(timeout) == TIMEOUT_MAX
        assert device.seconds(-timeout) == 0

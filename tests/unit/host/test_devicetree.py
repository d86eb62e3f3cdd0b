"""The device tree in sysfs: cells of any number, buses with a translation, and malformed trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio.host import devicetree, mmio


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


def cells(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def bus(fake: FakeSys, where: str, address: int | None, size: int | None, ranges: bytes | None = b"") -> None:
    properties = {} if ranges is None else {"ranges": ranges}
    for name, value in (("#address-cells", address), ("#size-cells", size)):
        if value is not None:
            properties[name] = cells(value)
    fake.node(where, properties)


def test_of_the_root_with_two_cells_each(fake: FakeSys) -> None:
    node = fake.node("virtio_mmio@a003e00", {"reg": cells(0, 0xA003E00, 0, 0x200)})
    assert devicetree.registers(node, fake.roots) == (0xA003E00, 0x200)


@pytest.mark.parametrize(
    ("address", "size", "reg"),
    [
        (1, 1, cells(0xA003E00, 0x200)),
        (2, 1, cells(0, 0xA003E00, 0x200)),
        (1, 2, cells(0xA003E00, 0, 0x200)),
        (1, 1, cells(0xA003E00, 0x200, 0xB000000, 0x1000)),  # of several ranges the first one
    ],
)
def test_cells_are_those_of_the_parent(fake: FakeSys, address: int, size: int, reg: bytes) -> None:
    bus(fake, "soc", address, size)
    node = fake.node("soc/virtio@a003e00", {"reg": reg, "#address-cells": cells(3)})
    assert devicetree.registers(node, fake.roots) == (0xA003E00, 0x200)


def test_a_bus_without_cells_has_those_above_it(fake: FakeSys) -> None:
    bus(fake, "soc", 1, 1)
    bus(fake, "soc/bus", None, None)
    node = fake.node("soc/bus/virtio@1000", {"reg": cells(0x1000, 0x200)})
    assert devicetree.registers(node, fake.roots) == (0x1000, 0x200)


def test_without_any_cells_it_is_one_and_one(fake: FakeSys) -> None:
    node = fake.node("virtio@1000", {"reg": cells(0x1000, 0x200)})
    for name in ("#address-cells", "#size-cells"):
        (node.parent / name).unlink()
    assert devicetree.registers(node, fake.roots) == (0x1000, 0x200)


def test_addresses_are_translated_by_every_bus(fake: FakeSys) -> None:
    bus(fake, "outer", 1, 1, cells(0x0, 0x1, 0x40000000, 0x10000000))
    bus(fake, "outer/inner", 1, 1, cells(0x8000, 0x9000, 0x1000, 0x0, 0x200000, 0x1000))
    node = fake.node("outer/inner/virtio@e00", {"reg": cells(0xE00, 0x200)})
    assert devicetree.registers(node, fake.roots) == (0x1_4020_0E00, 0x200)


@pytest.mark.parametrize(("address", "found"), [(0xFFF, None), (0x1000, 0x9000), (0x1FFF, 0x9FFF), (0x2000, None)])
def test_a_range_has_its_first_address_and_not_the_one_behind_it(
    fake: FakeSys, address: int, found: int | None
) -> None:
    bus(fake, "soc", 1, 1, cells(0x1000, 0, 0x9000, 0x1000))
    node = fake.node("soc/virtio", {"reg": cells(address, 0x200)})
    assert devicetree.registers(node, fake.roots) == (None if found is None else (found, 0x200))


def test_cells_that_are_no_number_of_32_bits_are_those_of_the_bus_above(fake: FakeSys) -> None:
    fake.node("soc", {"ranges": b"", "#address-cells": cells(0, 1), "#size-cells": b""})
    node = fake.node("soc/virtio", {"reg": cells(0, 0xA003E00, 0, 0x200)})
    assert devicetree.registers(node, fake.roots) == (0xA003E00, 0x200)


@pytest.mark.parametrize("ranges", [None, cells(0x8000, 0, 0x9000, 0x1000)])
def test_what_no_range_has_is_at_no_address(fake: FakeSys, ranges: bytes | None) -> None:
    bus(fake, "i2c", 1, 1, ranges)
    assert devicetree.registers(fake.node("i2c/x@10", {"reg": cells(0x10, 1)}), fake.roots) is None


@pytest.mark.parametrize("reg", [None, b"", cells(0, 0xA003E00, 0)])
def test_no_or_half_a_reg_is_none(fake: FakeSys, reg: bytes | None) -> None:
    node = fake.node("virtio@a003e00", {} if reg is None else {"reg": reg})
    assert devicetree.registers(node, fake.roots) is None


def test_a_node_outside_of_the_tree_is_none(fake: FakeSys) -> None:
    assert devicetree.registers(fake.sys / "devices", fake.roots) is None
    assert devicetree.registers(fake.sys / "nothing", fake.roots) is None


@given(data=st.binary(max_size=64), ranges=st.binary(max_size=64), count=st.binary(max_size=5))
def test_any_contents_are_survived(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ranges: bytes, count: bytes
) -> None:
    fake = FakeSys(tmp_path_factory.mktemp("tree"))
    fake.node("soc", {"ranges": ranges, "#address-cells": count, "#size-cells": count})
    found = devicetree.registers(fake.node("soc/virtio@0", {"reg": data}), fake.roots)
    assert found is None or (found[0] >= 0 and found[1] >= 0)


# --- windows ------------------------------------------------------------------------------------------------


def test_the_node_says_where_a_window_is_and_how_long(fake: FakeSys) -> None:
    fake.mmio("a003e00.virtio_mmio", compatible=b"virtio,mmio\0", reg=(0xA003E00, 0x200))
    fake.mmio("a003c00.virtio_mmio", compatible=b"virtio,mmio\0", reg=(0xA003C00, 0x1000))
    found = [(one.name, one.base, one.length) for one in mmio.windows(fake.roots)]
    assert found == [("a003c00.virtio_mmio", 0xA003C00, 0x1000), ("a003e00.virtio_mmio", 0xA003E00, 0x200)]


def test_a_name_is_believed_only_without_a_node(fake: FakeSys) -> None:
    fake.mmio("a003e00.virtio_mmio", compatible=b"acme,other\0", reg=(0xA003E00, 0x200))
    fake.mmio("a003c00.virtio_mmio")  # a container does not show it /sys/firmware
    assert [(one.name, one.base, one.length) for one in mmio.windows(fake.roots)] == [
        ("a003c00.virtio_mmio", 0xA003C00, 0)
    ]


def test_one_window_alone_is_the_same(fake: FakeSys) -> None:
    fake.text(fake.roots.proc / "cmdline", "virtio_mmio.device=512@0x1000:5\n")
    fake.text(fake.roots.proc / "iomem", "feb00000-feb001ff : LNRO0005:00\n")
    fake.mmio("LNRO0005:00")
    fake.mmio("a003e00.virtio_mmio", compatible=b"virtio,mmio\0", reg=(0xA003E00, 0x200))
    every = mmio.windows(fake.roots)
    assert len(every) == 3
    for one in every:
        assert mmio.windows(fake.roots, one.name) == [one]
    assert mmio.windows(fake.roots, "serial8250") == []

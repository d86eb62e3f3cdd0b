"""The walk over a PCI function's virtio capabilities, on made-up configuration spaces."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.errors import CapabilityError
from uvirtio.interfaces.values import BarInfo
from uvirtio.transports.pci_caps import MAX_HOPS, VirtioCapability, over_msix, select, walk_capabilities

BAR_SIZE = 0x4000


def reader(config: bytes, log: list[tuple[int, int]] | None = None) -> Callable[[int, int], int]:
    def read(offset: int, width: int) -> int:
        assert width in (1, 2, 4) and offset % width == 0 and 0 <= offset <= len(config) - width
        if log is not None:
            log.append((offset, width))
        return int.from_bytes(config[offset : offset + width], "little")

    return read


def one_bar(index: int) -> BarInfo | None:
    return BarInfo(4, BAR_SIZE, False) if index == 4 else None


def cap(cfg_type: int, offset: int, length: int, *, bar: int = 4, cap_len: int | None = None,
        ident: int = 0, extra: bytes = b"") -> bytes:  # fmt: skip
    """A vendor capability without its link; the builder below fills cap_next in."""
    body = struct.pack("<BBxxII", bar, ident, offset, length) + extra
    return bytes([0x09, 0, 4 + len(body) if cap_len is None else cap_len, cfg_type]) + body


def notify(offset: int = 0x3000, length: int = 0x1000, multiplier: int = 4, **more: int) -> bytes:
    return cap(2, offset, length, extra=struct.pack("<I", multiplier), **more)


def build(*caps: bytes, first: int = 0x40, step: int = 0) -> bytearray:
    config = bytearray(256)
    struct.pack_into("<HH", config, 0, 0x1AF4, 0x1044)
    struct.pack_into("<H", config, 6, 0x10)
    link, at = 0x34, first
    for body in caps:
        config[link] = at
        config[at : at + len(body)] = body
        link = at + 1
        at += (step or len(body) + 3) & ~3
    return config


GOOD = (cap(1, 0, 0x1000), cap(3, 0x1000, 0x1000), cap(4, 0x2000, 0x1000), notify())


def walk(*caps: bytes) -> list[VirtioCapability]:
    return walk_capabilities(reader(bytes(build(*caps))), one_bar)


def test_a_device_as_qemu_makes_it() -> None:
    found = walk(*GOOD, cap(5, 0, 0, bar=0, extra=b"\0\0\0\0"))
    assert [(c.type, c.bar, c.offset, c.length, c.verdict) for c in found] == [
        ("common", 4, 0, 0x1000, "ok"),
        ("isr", 4, 0x1000, 0x1000, "ok"),
        ("device", 4, 0x2000, 0x1000, "ok"),
        ("notify", 4, 0x3000, 0x1000, "ok"),
        ("pci_cfg", 0, 0, 0, "ok"),
    ]
    chosen = select(found)
    assert set(chosen) == {"common", "isr", "device", "notify"}
    assert chosen["notify"].notify_off_multiplier == 4
    assert found[0].config_offset == 0x40


def test_other_capabilities_are_stepped_over() -> None:
    msix = bytes([0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert [c.type for c in walk(msix, *GOOD)] == ["common", "isr", "device", "notify"]


@pytest.mark.spec("PCI-CAP-01")
@pytest.mark.parametrize("cfg_type", [0, 6, 7, 10, 77, 255])
def test_a_reserved_type_is_ignored(cfg_type: int) -> None:
    found = walk(cap(cfg_type, 0, 0x1000), *GOOD)
    assert (found[0].type, found[0].cfg_type, found[0].verdict) == ("unknown", cfg_type, "ignored")
    assert select(found)["common"].config_offset == 0x50


@pytest.mark.fault(5)
@pytest.mark.spec("PCI-CAP-02")
def test_the_first_usable_of_a_type_counts() -> None:
    found = walk(cap(1, 0x3FF0, 0x1000), cap(1, 0x100, 0x100), cap(1, 0x200, 0x100), *GOOD[1:])
    assert [c.verdict for c in found[:3]] == ["bad", "ok", "ignored"]
    assert found[2].why == "not the first of its type"
    assert select(found)["common"].offset == 0x100


@pytest.mark.spec("PCI-CAP-03")
def test_a_longer_cap_len_is_accepted() -> None:
    found = walk(cap(1, 0, 0x1000, cap_len=64), *GOOD[1:])
    assert found[0].verdict == "ok"
    select(found)


@pytest.mark.fault(3)
@pytest.mark.spec("PCI-CAP-04")
@pytest.mark.parametrize("bar", [6, 7, 255])
def test_a_reserved_bar_is_ignored_and_a_later_one_used(bar: int) -> None:
    found = walk(cap(1, 0, 0x1000, bar=bar), *GOOD)
    assert found[0].verdict == "ignored" and "reserved" in found[0].why
    assert select(found)["common"].bar == 4


@pytest.mark.fault(4)
@pytest.mark.spec("PCI-CAP-06")
@pytest.mark.parametrize("length", [0x100_0000, 0xFFFF_0000])
def test_a_surprisingly_big_length_is_cut_to_the_bar(length: int) -> None:
    found = walk(cap(1, 0, length), cap(3, 0x1000, 0x1000), notify())
    assert found[0].verdict == "ok"
    assert (found[0].length, found[0].usable, found[0].end) == (length, BAR_SIZE, BAR_SIZE)
    select(found)


@pytest.mark.fault(4)
def test_a_length_that_wraps_is_bad() -> None:
    found = walk(cap(1, 0x1000, 0xFFFF_F001), *GOOD[1:])
    assert found[0].verdict == "bad" and "wraps" in found[0].why
    with pytest.raises(CapabilityError) as error:
        select(found)
    assert "wraps" in str(error.value.seen)


@pytest.mark.fault(2, 3, 7)
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (cap(1, 0, 0x1000, cap_len=15), "cap_len 15"),
        (cap(2, 0x3000, 0x1000, cap_len=16), "cap_len 16"),
        (cap(8, 0, 0x1000, cap_len=16), "cap_len 16"),
        (cap(1, 0, 55), "length 55"),
        (cap(1, 2, 0x1000), "not aligned to 4"),
        (cap(4, 0x2002, 0x1000), "not aligned to 4"),
        (notify(offset=0x3001), "not aligned to 2"),
        (cap(1, 0, 0x1000, bar=2), "BAR 2 is not there"),
        (cap(3, 0x4000, 1), "outside BAR 4"),
        (cap(4, 0x2000, 0), "length 0"),
    ],
)
def test_what_makes_a_capability_bad(body: bytes, why: str) -> None:
    (found,) = walk(body)
    assert found.verdict == "bad" and why in found.why


@pytest.mark.fault(4)
@pytest.mark.parametrize(
    ("body", "usable", "why"),
    [
        (cap(3, BAR_SIZE - 1, 1), 1, ""),  # the last byte of the BAR
        (cap(1, BAR_SIZE - 56, 56), 56, ""),  # the shortest that there is
        (cap(1, 0x1000, 0xFFFF_F000), BAR_SIZE - 0x1000, "cut to fit"),  # up to the last of 2^32 bytes
    ],
)
def test_what_just_fits_is_good(body: bytes, usable: int, why: str) -> None:
    (found,) = walk(body)
    assert (found.verdict, found.usable) == ("ok", usable)
    assert why in found.why and bool(why) is bool(found.why)


def test_without_bars_nothing_is_judged_by_them() -> None:
    (found,) = walk_capabilities(reader(bytes(build(cap(1, 0x8_0000, 0x1000, bar=2)))))
    assert found.verdict == "ok" and found.usable == 0x1000


def test_a_capability_at_the_very_end_is_not_read_past_it() -> None:
    config = build(first=0xF4)
    config[0x34] = 0xF4
    config[0xF4:0x100] = bytes([0x09, 0, 16, 1]) + bytes(8)
    (found,) = walk_capabilities(reader(bytes(config)), one_bar)
    assert found.verdict == "bad" and "past the end" in found.why


def test_shared_memory_has_64_bit_offsets_and_one_region_per_id() -> None:
    huge = [cap(8, 0x1000, 0x2000, ident=i, extra=struct.pack("<II", 1, 2)) for i in (0, 1, 1)]
    found = walk_capabilities(
        reader(bytes(build(*huge))), lambda index: BarInfo(index, 1 << 40, False) if index == 4 else None
    )
    assert [c.verdict for c in found] == ["ok", "ok", "ignored"]
    assert (found[0].offset, found[0].length) == (0x1_0000_1000, 0x2_0000_2000)


@pytest.mark.spec("PCI-VND-02")
def test_vendor_data_is_named_by_its_vendor_and_not_interpreted() -> None:
    (found,) = walk(bytes([0x09, 0, 12, 9]) + struct.pack("<H", 0x1AF5) + bytes(6))
    assert (found.type, found.vendor_id, found.verdict) == ("vendor", 0x1AF5, "ok")
    assert (found.bar, found.offset, found.length) == (0, 0, 0)


@pytest.mark.fault(1)
@pytest.mark.parametrize("target", [0x04, 0x3C])
def test_a_pointer_into_the_header_ends_the_walk_and_is_reported(target: int) -> None:
    config = build(*GOOD)
    config[0x40 + 1] = target
    found = walk_capabilities(reader(bytes(config)), one_bar)
    assert [c.type for c in found] == ["common", "unknown"]
    assert found[1].verdict == "bad" and found[1].cfg_type is None and "header" in found[1].why


@pytest.mark.fault(1)
def test_a_loop_is_found_and_reported() -> None:
    config = build(*GOOD)
    config[0x60 + 1] = 0x40
    found = walk_capabilities(reader(bytes(config)), one_bar)
    assert [c.type for c in found] == ["common", "isr", "device", "unknown"]
    assert "loops" in found[-1].why
    with pytest.raises(CapabilityError, match="no usable notify") as error:
        select(found)
    assert "loops" in str(error.value.seen)


def test_a_function_that_is_gone() -> None:
    (found,) = walk_capabilities(reader(b"\xff" * 256), one_bar)
    assert found.verdict == "bad" and "all ones" in found.why


def test_no_capability_list_means_no_capability() -> None:
    config = build(*GOOD)
    config[6] = 0
    assert walk_capabilities(reader(bytes(config)), one_bar) == []


@pytest.mark.spec("PCI-LEG-04")
def test_without_capabilities_select_says_legacy() -> None:
    with pytest.raises(CapabilityError) as error:
        select([])
    assert "legacy" in str(error.value.remedy)


@pytest.mark.fault(6)
def test_kicks_never_reach_the_common_configuration() -> None:
    on_top = walk(cap(1, 0, 0x1000), cap(3, 0x1000, 1), notify(offset=0x10))
    with pytest.raises(CapabilityError, match="overlaps the common"):
        select(on_top)
    around = walk(cap(1, 0x1000, 0x1000), cap(3, 0x2000, 1), notify(offset=0, length=0x4000))
    assert select(around)["notify"].usable == 0x1000


@pytest.mark.parametrize("missing", ["common", "notify", "isr"])
def test_a_mandatory_capability_is_missing(missing: str) -> None:
    found = [c for c in walk(*GOOD) if c.type != missing]
    with pytest.raises(CapabilityError, match=f"no usable {missing}"):
        select(found)


def test_the_device_capability_may_be_missing() -> None:
    assert "device" not in select([c for c in walk(*GOOD) if c.type != "device"])


def check_any(config: bytes) -> None:
    log: list[tuple[int, int]] = []
    found = walk_capabilities(reader(config, log), one_bar)
    assert len(found) <= MAX_HOPS + 1
    assert len(log) <= 3 + MAX_HOPS * 12
    for capability in found:
        if capability.verdict == "ok" and capability.type in ("common", "notify", "isr", "device"):
            assert capability.bar == 4 and capability.usable > 0 and capability.end <= BAR_SIZE
        capability.as_dict()
    try:
        chosen = select(found)
    except CapabilityError:
        return
    assert {"common", "notify", "isr"} <= set(chosen)


@pytest.mark.fault(1)
@pytest.mark.spec("PCI-CAP-01", "PCI-CAP-04", "PCI-CAP-06")
@given(st.binary(min_size=256, max_size=256))
def test_any_256_bytes_are_survived(config: bytes) -> None:
    made = bytearray(config)
    made[6] |= 0x10
    check_any(bytes(made))


@pytest.mark.fault(1, 2, 4)
@given(st.data())
def test_any_chain_of_vendor_capabilities_is_survived(data: st.DataObject) -> None:
    """Nearer to the mark than plain noise: every 4 bytes may be a vendor capability of a defined type."""
    config = bytearray(data.draw(st.binary(min_size=256, max_size=256)))
    config[6] |= 0x10
    config[0x34] = data.draw(st.integers(0x40, 0xFF))
    for at in range(0x40, 0x100, data.draw(st.sampled_from([4, 8, 16, 20, 24]))):
        config[at] = 0x09
        if at + 8 <= 0x100:
            config[at + 2] = data.draw(st.sampled_from([0, 15, 16, 20, 24, 64, 255]))
            config[at + 3] = data.draw(st.integers(0, 10))
            config[at + 4] = data.draw(st.sampled_from([0, 4, 4, 4, 6, 255]))
    check_any(bytes(config))


# --- I/O ports, and the MSI-X table -------------------------------------------------------------------------


@pytest.mark.fault(3)
def test_a_structure_in_io_ports_is_used_and_one_in_no_bar_is_passed_over() -> None:
    """4.1.4.1: a BAR is in memory or in I/O space. One of size 0 is not there."""

    def bars(index: int) -> BarInfo | None:
        return {2: BarInfo(2, 4, True), 3: BarInfo(3, 0, False), 4: BarInfo(4, BAR_SIZE, False)}.get(index)

    everything = (notify(offset=0, length=4, bar=3), notify(offset=0, length=4, bar=2), *GOOD)
    found = walk_capabilities(reader(bytes(build(*everything))), bars)
    assert [(one.bar, one.verdict) for one in found if one.type == "notify"] == [
        *((3, "bad"), (2, "ok"), (4, "ignored")),
    ]
    assert select(found)["notify"].bar == 2


def msix(table: int, pending: int, vectors: int = 4) -> bytes:
    """An MSI-X capability without its link; places with the BAR in their low bits."""
    return struct.pack("<BBHII", 0x11, 0, vectors - 1, table, pending)


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("table", "pending", "said"),
    [
        (0x0 | 1, 0x800 | 1, []),  # a BAR of its own, as QEMU has it
        (0x3FC0 | 4, 0x2000 | 1, ["the notify structure at 0x3000 of BAR 4 overlaps the MSI-X table"]),
        (0x4000 | 4, 0x3FF8 | 4, ["the notify structure at 0x3000 of BAR 4 overlaps the MSI-X pending bits"]),
        (0xFC0 | 4, 0x4000 | 4, ["the common structure at 0x0 of BAR 4 overlaps the MSI-X table"]),
        (0xFC8 | 4, 0x4000 | 4, [f"the {name} structure at {at} of BAR 4 overlaps the MSI-X table"
                                 for name, at in (("common", "0x0"), ("isr", "0x1000"))]),
        (0x4000 | 4, 0x4040 | 4, []),
    ],
)  # fmt: skip
def test_structures_over_the_msix_table_are_told(table: int, pending: int, said: list[str]) -> None:
    config = reader(bytes(build(*GOOD, msix(table, pending))))
    assert over_msix(config, walk_capabilities(config, one_bar)) == said
    assert over_msix(reader(bytes(build(*GOOD))), walk(*GOOD)) == []


@pytest.mark.fault(6)
@pytest.mark.parametrize("at", [0xF4, 0xF8])
def test_the_msix_capability_may_end_where_configuration_space_does(at: int) -> None:
    config = build(msix(0x3FC0 | 4, 0x2000 | 1)[: 0x100 - at], first=at)
    whole = at + 12 <= 0x100
    assert len(over_msix(reader(bytes(config)), walk(*GOOD))) == whole, "one that does not fit is not read"

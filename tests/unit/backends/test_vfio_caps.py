"""The capability chains of VFIO's info structures: whatever the bytes say, the walk ends, with a typed error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.backends.vfio.caps import CHAIN_LIMIT, info_caps
from uvirtio.backends.vfio.uapi import (
    vfio_iommu_type1_info_cap_iova_range,
    vfio_iommu_type1_info_dma_avail,
    vfio_iova_range,
)
from uvirtio.errors import OperationFailed

HEAD = 24


def cap(number: int, following: int, body: bytes = b"") -> bytes:
    return struct.pack("<HHI", number, 1, following) + body


def test_no_chain():
    assert info_caps(bytes(HEAD), 0, HEAD) == []


def test_a_chain_in_any_order():
    data = bytes(HEAD) + cap(1, 0, b"last....") + cap(3, HEAD, b"first...")
    assert [(c.id, c.data[8:16]) for c in info_caps(data, HEAD + 16, HEAD)] == [
        (3, b"first..."),
        (1, b"last...."),
    ]


@pytest.mark.parametrize("first", [1, HEAD - 1, HEAD + 1, HEAD + 8, 0xFFFF_FFFF])
def test_an_offset_that_leaves_no_room_for_a_header(first):
    with pytest.raises(OperationFailed):
        info_caps(bytes(HEAD) + cap(1, 0), first, HEAD)


def test_a_capability_that_follows_itself():
    with pytest.raises(OperationFailed, match="no sense"):
        info_caps(bytes(HEAD) + cap(1, HEAD), HEAD, HEAD)


def test_two_that_follow_each_other():
    with pytest.raises(OperationFailed):
        info_caps(bytes(HEAD) + cap(1, HEAD + 8) + cap(2, HEAD), HEAD, HEAD)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_chain(extra):
    count = CHAIN_LIMIT + extra
    links = [cap(1, HEAD + 8 * (i + 1) if i + 1 < count else 0) for i in range(count)]
    data = bytes(HEAD) + b"".join(links)
    if extra:
        with pytest.raises(OperationFailed):
            info_caps(data, HEAD, HEAD)
    else:
        assert len(info_caps(data, HEAD, HEAD)) == CHAIN_LIMIT


def test_counted_items_have_to_fit():
    body = struct.pack("<II", 2, 0) + struct.pack("<QQ", 0, 0xFFF)
    (found,) = info_caps(bytes(HEAD) + cap(1, 0, body), HEAD, HEAD)
    fixed = found.fields(vfio_iommu_type1_info_cap_iova_range)
    assert [(r.start, r.end) for r in found.items(vfio_iova_range, 16, 1)] == [(0, 0xFFF)]
    with pytest.raises(OperationFailed):
        found.items(vfio_iova_range, 16, fixed.nr_iovas)


def test_a_capability_cut_off_in_its_fixed_part():
    (found,) = info_caps(bytes(HEAD) + cap(3, 0, b"\1\2"), HEAD, HEAD)
    with pytest.raises(OperationFailed):
        found.fields(vfio_iommu_type1_info_dma_avail)


@given(st.binary(max_size=400), st.integers(0, 0xFFFF_FFFF) | st.integers(0, 400))
def test_any_bytes_end_in_capabilities_or_in_the_one_error(data, first):
    try:
        found = info_caps(data, first, HEAD)
    except OperationFailed:
        return
    assert len(found) <= CHAIN_LIMIT
    assert all(len(c.data) >= 8 for c in found)

"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.cli.size import human, parse_size
from uvirtio.errors import BadSize
from uvirtio.spec.page import VIRTIO_PAGE

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20,
          "G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64M", 64 << 20),
        ("1GiB", 1 << 30),
        ("4096K", 4 << 20),
        ("4096", 4096),
        ("4096B", 4096),
        ("1.5G", 3 << 29),
        ("64m", 64 << 20),
        (" 64M ", 64 << 20),
        ("0", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


NO_SIZES = ["", "M", "-1", "+1", "1 M", "64MB", "64kb", "1e3", "0x10", "1_000", "\u0663M", "1.M", ".5M", "1..5M",
            "nan", "inf", "1" * 21, "64M64", "M64", "%", "1%%", "\0", "64M\n1"]  # fmt: skip


@pytest.mark.parametrize("text", NO_SIZES)
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadSize) as raised:
        parse_size(text, total=1 << 30)
    assert raised.value.exit_code == 2


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(BadSize, match="whole number"):
        parse_size("1.0000001K")


def test_the_nearest_sizes_are_named() -> None:
    with pytest.raises(BadSize) as raised:
        parse_size("10000", multiple=VIRTIO_PAGE)
    assert raised.value.remedy == "nearest valid sizes: 8192 and 12288"
    with pytest.raises(BadSize) as raised:
        parse_size("5", multiple=VIRTIO_PAGE)
    assert raised.value.remedy is not None
    assert "4096" in raised.value.remedy


def test_a_percentage_is_of_the_total_and_whole_pages() -> None:
    assert parse_size("25%", total=512 << 20, multiple=VIRTIO_PAGE) == 128 << 20
    assert parse_size("12.5%", total=1 << 20) == 1 << 17
    assert parse_size("100%", total=10_000, multiple=VIRTIO_PAGE) == 8192


@pytest.mark.parametrize("text", ["0%", "101%", "100.1%"])
def test_percentages_out_of_range(text: str) -> None:
    with pytest.raises(BadSize, match="range"):
        parse_size(text, total=1 << 30)


def test_a_percentage_of_nothing() -> None:
    with pytest.raises(BadSize, match="not accepted here"):
        parse_size("25%")


@given(st.integers(0, 10**15), st.sampled_from(sorted(_UNITS)))
def test_every_number_with_every_unit(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * _UNITS[unit]
    assert parse_size(f"{number}{unit.lower()}") == number * _UNITS[unit]


@given(st.integers(0, 1 << 60), st.sampled_from([1, 512, 4096, 1 << 21]))
def test_multiples_or_a_refusal(number: int, multiple: int) -> None:
    try:
        assert parse_size(str(number), multiple=multiple) == number
        assert number % multiple == 0
    except BadSize as error:
        assert number % multiple != 0
        assert error.remedy is not None
        nearest = [int(word) for word in error.remedy.split() if word.isdecimal()]
        assert nearest
        assert all(near > 0 and near % multiple == 0 and abs(near - number) < multiple for near in nearest)


@given(st.integers(1, 100), st.integers(0, 1 << 50))
def test_percentages_never_exceed(percent: int, total: int) -> None:
    size = parse_size(f"{percent}%", total=total, multiple=VIRTIO_PAGE)
    assert size % VIRTIO_PAGE == 0
    assert 0 <= total * percent // 100 - size < VIRTIO_PAGE


@given(st.text(max_size=30))
def test_garbage_is_a_size_or_a_refusal(text: str) -> None:
    try:
        assert parse_size(text, total=1 << 30, multiple=VIRTIO_PAGE) >= 0
    except BadSize as error:
        assert error.remedy is not None or error.expected is not None


@given(st.integers(0, 1 << 60))
def test_human_sizes_are_short(size: int) -> None:
    assert len(human(size)) <= 14
    assert human(size).split()[1] in ("B", "KiB", "MiB", "GiB", "TiB")


def test_a_device_where_a_size_belongs_is_told_as_that():
    with pytest.raises(BadSize, match="'qemu:virtio-rng-pci' is not a size") as caught:
        parse_size("qemu:virtio-rng-pci")
    assert caught.value.remedy == "the device comes first, and sizes after it"

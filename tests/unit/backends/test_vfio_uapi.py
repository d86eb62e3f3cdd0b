"""uvirtio/backends/vfio/uapi.py against the header of this machine."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from tests.support.c_program import lines_for, places_in, printed
from uvirtio.backends.vfio import uapi

HEADER = Path("/usr/include/linux/vfio.h")

# Flexible parts and later additions are not ours; these are compared field by field.
STRUCTURES = [
    value
    for value in vars(uapi).values()
    if isinstance(value, type) and issubclass(value, ctypes.Structure) and value.__name__.startswith("vfio_")
]
NUMBERS = {
    name: value for name, value in vars(uapi).items() if name.startswith("VFIO_") and isinstance(value, int)
}


@pytest.fixture(scope="module")
def header() -> str:
    if not HEADER.is_file():
        pytest.skip("no <linux/vfio.h> here (linux-libc-dev)")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)


def _values(header: str) -> dict[str, int]:
    """Every macro and enumerator of the header that is a number, an _IO() or a shift."""
    found: dict[str, int] = {}
    for name, text in re.findall(r"^#define\s+(VFIO_\w+)[ \t]+(.+)$", header, flags=re.M):
        text = text.strip()
        if io := re.fullmatch(r"_IO\(VFIO_TYPE,\s*VFIO_BASE \+ (\d+)\)", text):
            found[name] = (ord(";") << 8) | (100 + int(io[1]))
        elif shift := re.fullmatch(r"\((\d+) << (\d+)\)", text):
            found[name] = int(shift[1]) << int(shift[2])
        elif number := re.fullmatch(r"\(?(\d+)\)?", text):
            found[name] = int(number[1])
    for body in re.findall(r"^enum \{(.*?)\}", header, flags=re.S | re.M):
        following = 0
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, value = (part.strip() for part in item.partition("="))
            following = int(value) if value else following
            found[name] = following
            following += 1
    return found


def test_the_lists_are_not_empty():
    assert len(STRUCTURES) >= 13
    assert len(NUMBERS) >= 50


def test_ioctl_numbers_have_no_size_and_no_direction():
    # VFIO versions its structures by argsz, so its numbers are plain _IO().
    assert uapi.VFIO_GET_API_VERSION == 0x3B64
    assert uapi.VFIO_IOMMU_MAP_DMA == 0x3B71


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_number(header, name):
    assert NUMBERS[name] == _values(header)[name]


def test_the_type_and_base_of_the_ioctls(header):
    assert re.search(r"#define VFIO_TYPE\s+\(';'\)", header)
    assert re.search(r"#define VFIO_BASE\s+100", header)


def test_sizes_and_offsets_as_the_compiler_sees_them(header, tmp_path):
    seen = printed(tmp_path, [HEADER.name], lines_for(STRUCTURES, {}))
    for layout in STRUCTURES:
        # A newer header may append fields; what we declare has to be a prefix of it.
        assert [ctypes.sizeof(layout)] <= seen.pop(layout.__name__), layout.__name__
    assert seen == places_in(STRUCTURES, {})

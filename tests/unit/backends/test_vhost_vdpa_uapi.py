"""uvirtio/backends/vhost_vdpa/uapi.py against the headers of this machine, as the compiler reads them."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from tests.support.c_program import lines_for, places_in, printed
from uvirtio.backends.vhost_vdpa import uapi

HEADERS = [Path("/usr/include/linux/vhost.h"), Path("/usr/include/linux/vhost_types.h")]

STRUCTURES = [
    value
    for value in vars(uapi).values()
    if isinstance(value, type) and issubclass(value, ctypes.Structure) and value.__name__.startswith("vhost_")
]
NUMBERS = {
    name: value for name, value in vars(uapi).items() if name.startswith("VHOST_") and isinstance(value, int)
}

INSIDE = {"payload": "iotlb"}
"""The union has no name in the header."""

# Younger than the oldest header that tests may meet (Linux 6.1): held against the text of Linux 6.18's headers by
# hand, and against the header of this machine where it has them.
YOUNGER = {
    "VHOST_VDPA_RESUME": 0xAF7E,
    "VHOST_VDPA_GET_VRING_SIZE": 0xC008AF82,
    "VHOST_GET_FEATURES_ARRAY": 0x8008AF83,
    "VHOST_SET_FEATURES_ARRAY": 0x4008AF83,
    "VHOST_BACKEND_F_RESUME": 5,
    "VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK": 6,
    "VHOST_BACKEND_F_DESC_ASID": 7,
    "VHOST_BACKEND_F_IOTLB_PERSIST": 8,
}


def test_the_lists_are_not_empty():
    assert len(STRUCTURES) >= 8
    assert len(NUMBERS) >= 45


@pytest.mark.parametrize("name", sorted(YOUNGER))
def test_numbers_that_a_header_may_lack(name):
    assert NUMBERS[name] == YOUNGER[name]


def test_numbers_sizes_and_offsets_as_the_compiler_sees_them(tmp_path):
    if not all(header.is_file() for header in HEADERS):
        pytest.skip("no <linux/vhost.h> (linux-libc-dev)")
    text = "".join(header.read_text() for header in HEADERS)
    there = {name for name in NUMBERS if re.search(rf"#define\s+{name}\b", text)}
    assert set(NUMBERS) - there <= set(YOUNGER)
    layouts = [layout for layout in STRUCTURES if re.search(rf"struct {layout.__name__} {{", text)]
    assert {layout.__name__ for layout in STRUCTURES} - {layout.__name__ for layout in layouts} <= {
        "vhost_features_array"
    }
    lines = [f'printf("{name} %llu\\n", (unsigned long long)(unsigned int)({name}));' for name in sorted(there)]
    seen = printed(tmp_path, ["vhost.h"], lines + lines_for(layouts, INSIDE))
    assert seen == {
        **{name: [NUMBERS[name] & 0xFFFF_FFFF] for name in there},
        **{layout.__name__: [ctypes.sizeof(layout)] for layout in layouts},
        **places_in(layouts, INSIDE),
    }

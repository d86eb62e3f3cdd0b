"""uvirtio/backends/vhost_vdpa/uapi.py against the headers of this machine, as the compiler reads them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not all(header.is_file() for header in HEADERS):
        pytest.skip("no C compiler, or no <linux/vhost.h> (linux-libc-dev)")
    text = "".join(header.read_text() for header in HEADERS)
    there = {name for name in NUMBERS if re.search(rf"#define\s+{name}\b", text)}
    assert set(NUMBERS) - there <= set(YOUNGER)
    lines = [f'printf("{name} %llu\\n", (unsigned long long)(unsigned int)({name}));' for name in sorted(there)]
    layouts = [layout for layout in STRUCTURES if re.search(rf"struct {layout.__name__} {{", text)]
    assert {layout.__name__ for layout in STRUCTURES} - {layout.__name__ for layout in layouts} <= {
        "vhost_features_array"
    }
    for layout in layouts:
        name = layout.__name__
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in layout._fields_:
            field = "iotlb" if field == "payload" else field
            place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/vhost.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, "-o", str(program), str(source)], check=True, timeout=60)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True, timeout=10).stdout
    seen = dict(line.split(" ", 1) for line in output.splitlines())
    for name in there:
        assert int(seen[name]) == NUMBERS[name] & 0xFFFF_FFFF, name
    for layout in layouts:
        name = layout.__name__
        assert ctypes.sizeof(layout) == int(seen[name]), name
        for field, *_ in layout._fields_:
            field = "iotlb" if field == "payload" else field
            descriptor = getattr(layout, field)
            assert seen[f"{name}.{field}"] == f"{descriptor.offset} {descriptor.size}", f"{name}.{field}"

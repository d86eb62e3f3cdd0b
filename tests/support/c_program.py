"""What the compiler of this machine makes of the kernel's headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

Numbers = dict[str, list[int]]


def printed(folder: Path, headers: Iterable[str], lines: Iterable[str]) -> Numbers:
    """Run these statements in C, with <linux/...> of each header; the numbers behind each name that they print.

    Skips where there is no compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler; on Debian: apt-get install gcc")
    includes = [f"#include <{name}>" for name in ("stddef.h", "stdio.h", *(f"linux/{one}" for one in headers))]
    source, program = folder / "printed.c", folder / "printed"
    source.write_text("\n".join([*includes, "int main(void) {", *lines, "return 0; }", ""]))
    built = subprocess.run([compiler, "-o", program, source], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    output = subprocess.run([program], capture_output=True, text=True, timeout=10, check=True).stdout
    return {name: [int(number) for number in numbers] for name, *numbers in map(str.split, output.splitlines())}


def size_of(struct: str) -> str:
    """A statement that prints the size of a structure, under its name."""
    return f'printf("{struct} %zu\\n", sizeof(struct {struct}));'


def place_of(struct: str, field: str, member: str, factor: int = 1) -> str:
    """A statement that prints offset and size of a member, under ``struct.field``; the size times ``factor``."""
    size = f"{factor} * sizeof(((struct {struct} *)0)->{member})"
    return f'printf("{struct}.{field} %zu %zu\\n", offsetof(struct {struct}, {member}), {size});'


def lines_for(layouts: Iterable[type[ctypes.Structure]], instead: Mapping[str, str]) -> list[str]:
    """Statements for the sizes and all fields of structures; ``instead`` of some fields: a member inside them."""
    lines = []
    for layout in layouts:
        lines.append(size_of(layout.__name__))
        members = [instead.get(field, field) for field, *_ in layout._fields_]
        lines += [place_of(layout.__name__, member, member) for member in members]
    return lines


def places_in(layouts: Iterable[type[ctypes.Structure]], instead: Mapping[str, str]) -> Numbers:
    """Offset and size of those fields as ctypes has them, under the names that those statements print."""
    found = {}
    for layout in layouts:
        for field, *_ in layout._fields_:
            member = instead.get(field, field)
            descriptor = getattr(layout, member)
            found[f"{layout.__name__}.{member}"] = [descriptor.offset, descriptor.size]
    return found

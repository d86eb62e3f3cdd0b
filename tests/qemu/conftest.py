"""What holds for the whole floor: the ways in that a test took are in its report; what QEMU lacks is left out."""

from __future__ import annotations

import functools
import re
import subprocess

import pytest

from tests.cells import cells_are_noted  # noqa: F401  # a fixture, found by its name here


@functools.cache
def qemu_version() -> tuple[int, ...]:
    """The version of the QEMU in PATH, which is the one that the tests start."""
    said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=20).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found, said
    return tuple(int(part) for part in found.groups())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked for a newer QEMU than this one."""
    marked = {item: mark for item in items if (mark := item.get_closest_marker("qemu_since")) is not None}
    gone = [item for item, mark in marked.items() if mark.args > qemu_version()]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]

"""What holds for the whole floor: the ways in that a test took are in its report, its QEMU ends with it, and what
QEMU lacks is left out.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.cells import cells_are_noted  # noqa: F401  # a fixture, found by its name here
from tests.left_open import closed_at_the_end, failed, pytest_runtest_makereport  # noqa: F401  # a hook
from tests.qemu import plain_run
from uvirtio.device import Device
from uvirtio.qemu import Machine


@functools.cache
def qemu_version() -> tuple[int, ...]:
    """The version of the QEMU in PATH, which is the one that the tests start."""
    said = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=20).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found, said
    return tuple(int(part) for part in found.groups())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked for a newer QEMU than this one, and what a plain run does without."""
    marked = {item: mark for item in items if (mark := item.get_closest_marker("qemu_since")) is not None}
    gone = [item for item, mark in marked.items() if mark.args > qemu_version()]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
    for item in plain_run.left_out(items):
        item.add_marker(pytest.mark.skip(reason=plain_run.REASON))


@pytest.fixture(autouse=True)
def a_machine_ends_with_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the devices and machines that a failed test leaves open; a test that passed has to do it itself."""
    with closed_at_the_end(Device, Machine) as made:
        yield
        left = [one for one in made if isinstance(one, Machine) and not one._closing]
    if left and not failed(request.node):
        pytest.fail(f"the test left open: {', '.join(f'{one.name} (pid {one.pid})' for one in left)}")

"""Tests that need a real kernel: they run in the lab VM (tools/test --vm), and are skipped elsewhere."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cells import cells_are_noted  # noqa: F401  # a fixture, found by its name here
from tests.conftest import in_lab
from tests.left_open import closed_at_the_end
from tests.vm import plain_run
from tests.vm.commands import commands
from tests.vm.qmp_witness import Witness
from uvirtio.device import Device

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip this floor outside the VM; in it, leave out what belongs to a device of another machine."""
    if not in_lab():
        skip = pytest.mark.skip(reason="needs the lab VM: tools/test --vm")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)
        return
    elsewhere = _devices_of_other_machines()
    gone = [item for item in items if _named(item) & elsewhere or _of_another_machine(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
    for item in items:
        if reason := plain_run.left_out(item):
            item.add_marker(pytest.mark.skip(reason=reason))


def _devices_of_other_machines() -> set[str]:
    """The ids in machines.toml that this machine does not have; empty on a machine that is not in it."""
    table = tomllib.loads((HERE / "machines.toml").read_text())
    ids = {name: set(re.findall(r"\bid=([\w-]+)", " ".join(entry["devices"]))) for name, entry in table.items()}
    here = ids.get(os.environ.get("UVIRTIO_LAB_MACHINE", ""))
    return set() if here is None else set().union(*ids.values()) - here


def _of_another_machine(item: pytest.Item) -> bool:
    """Whether the test's module names the one machine that it is for (``MACHINE``), and this is not it."""
    wanted = getattr(getattr(item, "module", None), "MACHINE", None)
    return wanted is not None and os.environ.get("UVIRTIO_LAB_MACHINE", wanted) != wanted


def _named(item: pytest.Item) -> set[str]:
    """What could be a device's id among the parameters of a test: a string, or the first of a tuple."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec is not None else ()
    firsts = (value[0] if isinstance(value, tuple) and value else value for value in values)
    return {value for value in firsts if isinstance(value, str)}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fork the process that commands are forked from, while nothing is open: it has most of the package by now."""
    if in_lab() and session.items and not session.config.option.collectonly:
        commands()


def pytest_sessionfinish() -> None:
    """End the process that commands were forked from, if one was."""
    if commands.cache_info().currsize:
        commands().close()


@pytest.fixture(autouse=True)
def a_device_is_left_with_its_test() -> Iterator[None]:
    """Close what a failed test leaves open, or every later test of that device would find it taken."""
    with closed_at_the_end(Device):
        yield


@pytest.fixture
def witness() -> Iterator[Witness]:
    """QMP of the QEMU around us."""
    with Witness() as qemu:
        yield qemu


@pytest.fixture(scope="session")
def lab_devices() -> dict[str, str]:
    """The PCI addresses of this machine's devices by their id in machines.toml, as QEMU tells them."""
    with Witness() as qemu:
        addresses = qemu.pci_addresses()
    return {name: where for name, where in addresses.items() if not name.startswith("lab-")}  # the root ports


@pytest.fixture
def lab_address(lab_devices: dict[str, str], request: pytest.FixtureRequest) -> str:
    """The address of the device whose id is the (indirect) parameter; skipped on machines without it."""
    name = request.param
    if name not in lab_devices:
        pytest.skip(f"this machine has no {name}")
    return lab_devices[name]

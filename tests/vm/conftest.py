"""Tests that need a real kernel: they run in the lab VM (tools/test --vm), and are skipped elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import in_lab
from tests.vm.qmp_witness import Witness

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if in_lab():
        return
    skip = pytest.mark.skip(reason="needs the lab VM: tools/test --vm")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


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

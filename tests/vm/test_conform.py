"""``uvirtio conform``, L0 to L2, on vfio-pci: what is not known of this QEMU obeys, and nothing is lost.

L3 and L4 are floor 2's, on devices that are made for the run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm.conforming import Ring, conforms, implementation
from tests.vm.lab_cell import once, thorough
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import given_back, hand_over  # noqa: F401  # one is a fixture

CELLS: list[tuple[str, Ring]] = [
    ("rng-packed", "split"),
    ("rng-packed", "packed"),
    ("rng-legacy", "split"),
    ("keyboard", "split"),
    ("keyboard-packed", "packed"),
    ("balloon", "split"),
    ("balloon-packed", "packed"),
    ("balloon-transitional", "split"),
    ("disk-iova", "split"),
    ("disk-packed", "packed"),
    ("disk-legacy", "split"),
    ("hba", "split"),
    ("hba-packed", "packed"),
    ("hba-legacy", "split"),
    ("nic", "split"),
    ("nic-packed", "packed"),
    ("nic-legacy", "split"),
    ("mem-iova", "split"),
    ("mem-msix", "split"),
    ("mem-msix-packed", "packed"),
]


PLAIN = ("rng-packed", "packed")
"""The one of a plain run."""


@once
@pytest.mark.parametrize(
    ("name", "ring"),
    [pytest.param(*cell, id="-".join(cell), marks=() if cell == PLAIN else thorough) for cell in CELLS],
)
def test_a_device_behind_vfio_pci_obeys_but_for_what_is_known(
    name: str,
    ring: Ring,
    lab_devices: dict[str, str],
    witness: Witness,
    given_back: None,  # noqa: F811
    record_property: Callable[[str, object], None],
) -> None:
    address = lab_devices[name]
    hand_over(address, "vfio-pci")
    conforms(address, implementation(witness), record_property, ring=ring)

"""By which nodes user space opens a function, as the kernel's parts of VFIO are there or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.host.drivers import user_nodes

AT = "0000:03:00.0"


@pytest.mark.parametrize(
    ("group", "own", "groups", "nodes"),
    [
        (7, False, True, ["/dev/vfio/7"]),
        (7, True, True, ["/dev/vfio/7", "/dev/vfio/devices/vfio3"]),
        (7, True, False, ["/dev/vfio/devices/vfio3"]),  # without CONFIG_VFIO_GROUP
        (7, False, False, ["/dev/vfio/7"]),
        (None, True, True, ["/dev/vfio/devices/vfio3"]),
        (None, False, False, []),
    ],
)
def test_nodes_of_vfio(tmp_path: Path, group: int | None, own: bool, groups: bool, nodes: list[str]) -> None:
    fake = FakeSys(tmp_path)
    fake.driver("vfio-pci")
    device = fake.pci(AT, "rng", driver=None, group=group)
    fake.attach(device, "vfio-pci")
    if own:
        fake.child(device, "vfio-dev/vfio3", "vfio-dev", {"dev": "511:3\n"})
    if groups:
        (fake.sys / "class/vfio").mkdir(parents=True)
    assert user_nodes(device, fake.roots) == nodes


def test_other_drivers_have_none(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    assert user_nodes(fake.pci(AT, "rng", group=7), fake.roots) == []

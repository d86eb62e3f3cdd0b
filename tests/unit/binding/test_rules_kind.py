"""The in-use rules about what kind of device it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeSys
from uvirtio.binding import discover
from uvirtio.binding.rules import Finding, check

AT = "0000:03:00.0"


def told(found: discover.DiscoveredDevice, fake: FakeSys) -> list[Finding]:
    return [one for one in check(found, fake.roots).findings if one.rule == "not-virtio"]


@pytest.mark.fault("R12")
def test_a_type_without_a_name_and_a_function_of_another_kind_are_told(tmp_path: Path) -> None:
    fake = FakeSys(tmp_path)
    fake.pci(AT, "rng", group=7, pci_id=(0x1AF4, 0x107F))
    found = discover.find(AT, fake.roots)
    (finding,) = told(found, fake)
    assert (finding.severity, finding.evidence) == ("warn", "device type 63 has no name in virtio 1.4")
    # find() raises NotVirtio for this one; another may have become it since it was found.
    other = found._replace(interface="none", device_id=None, type="unknown", pci_class=0x010601)
    (finding,) = told(other, fake)
    assert (finding.severity, finding.evidence) == ("warn", "PCI id 1af4:107f, class 010601")
    # A transitional function whose registers were not looked at has no type, and is virtio all the same.
    assert told(found._replace(interface="legacy", device_id=None, type="unknown"), fake) == []

"""A device in a guest machine of this process's own: how it is known, and what its driver makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uvirtio import Balloon as Driver
from uvirtio import opening
from uvirtio.errors import Refused
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import ScriptedDevice


class InGuest(ScriptedDevice):
    """A scripted device whose machine has a monitor."""

    id = "dev0"
    ram = 512 << 20

    def qmp(self, command: str, **arguments: Any) -> Any:
        return {"command": command, **arguments}


@pytest.fixture
def full(tmp_path: Path) -> Roots:
    """A machine that has no memory to spare."""
    roots = Roots.under(tmp_path)
    roots.proc.mkdir()
    (roots.proc / "meminfo").write_text("MemTotal: 4096 kB\nMemAvailable: 0 kB\n")
    return roots


def test_a_guest_is_known_by_what_the_back_end_can_and_not_by_a_name(full: Roots):
    function = InGuest(Balloon())
    assert isinstance(function, GuestMachine)
    with opening.identify("0000:00:04.0", function) as device:
        guest = device.guest
        assert guest is function
        assert (guest.id, guest.ram) == ("dev0", 512 << 20)
        assert guest.qmp("query-balloon", at=1) == {"command": "query-balloon", "at": 1}
        with Driver(device, roots=full) as balloon:
            assert balloon.inflate(1) == 1, "no operating system in there needs memory"


@pytest.mark.parametrize("address", ["0000:00:04.0", "qemu:virtio-balloon-pci"])
def test_a_device_of_this_machine_is_in_no_guest_whatever_it_is_called(full: Roots, address: str):
    with opening.identify(address, ScriptedDevice(Balloon())) as device:
        assert device.guest is None
        with Driver(device, roots=full) as balloon, pytest.raises(Refused, match="free-memory"):
            balloon.inflate(1)

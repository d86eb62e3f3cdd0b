"""Hot-unplug of a device that is in use. It does not come back, so that it is there for nothing else."""

from __future__ import annotations

import pytest

from tests.vm.test_commands import PATIENCE, PCI, read_until, running, until, uvirtio


@pytest.mark.fault(10)
def test_a_device_that_is_removed_in_use_goes_at_once(lab_devices, witness):
    address = lab_devices.get("victim") or pytest.skip("this machine has no victim")
    assert uvirtio("bind", address).returncode == 0
    with running("input", "events", address) as child:
        read_until(child, "waiting")
        witness.execute("device_del", id="victim")
        assert child.wait(PATIENCE) == 5
        witness.wait_event("DEVICE_DELETED", PATIENCE)  # QEMU has it back: the function was let go of
    until(lambda: not (PCI / address).exists(), "the function to go")
    done = uvirtio("restore", "--all")
    assert done.returncode == 0, done.stderr
    assert "gone" in done.stdout

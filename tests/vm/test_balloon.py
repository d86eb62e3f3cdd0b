"""Statistics, the floor and page reports on vfio-pci, in a stock kernel; the witness is QMP, from outside."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest

from tests.bodies import adopt, balloon_reports, balloon_stats
from tests.vm import commands
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import cell, given_back, hand_over  # noqa: F401  # two fixtures, found by their names
from uvirtio.interfaces.values import InterruptMode

CELLS: list[Any] = [
    pytest.param((name, mode), id=f"{name}-{mode.value}")
    for name, mode in (
        ("balloon", InterruptMode.INTX),
        ("balloon-iova", InterruptMode.INTX),
        ("balloon-msix", InterruptMode.PER_QUEUE),
    )
]

globals().update(adopt(balloon_stats, CELLS))
# Hints themselves are asked for by migrations, which QEMU refuses with a folder shared over 9p, as the lab's are.
globals().update(adopt(balloon_reports, CELLS))


@pytest.mark.parametrize(
    ("lab_address", "limit", "kept"),
    [("balloon", 8 << 20, {"CAP_IPC_LOCK"}), ("balloon-iova", resource.RLIM_INFINITY, set())],
    indirect=["lab_address"],
)
def test_a_balloon_that_follows_has_given_up_its_rights_and_inflates(
    lab_address: str,
    limit: int,
    kept: set[str],
    witness: Witness,
    given_back: None,  # noqa: F811
) -> None:
    """Frame numbers are read, and more is pinned than an ordinary user may lock, after CAP_SYS_ADMIN is gone."""
    hand_over(lab_address, "vfio-pci")
    full = int(witness.execute("query-balloon")["actual"])
    with commands.running("balloon", "follow", lab_address, "-v") as child:
        resource.prlimit(child.pid, resource.RLIMIT_MEMLOCK, (limit, limit))
        assert "capabilities given up" in commands.read_until(child, "^following")
        assert commands.rights(child.pid) == kept
        witness.execute("balloon", value=full - (64 << 20))
        commands.read_until(child, "^reached: target 64 MiB")
        assert int(witness.execute("query-balloon")["actual"]) == full - (64 << 20)
        assert commands.rights(child.pid) == kept
        child.terminate()
        commands.read_until(child, "cleaned up")
        assert child.wait(commands.PATIENCE) == 143
    assert int(witness.execute("query-balloon")["actual"]) == full
    witness.execute("balloon", value=full)


@pytest.mark.fault(61)
@pytest.mark.parametrize("lab_address", ["balloon", "balloon-iova"], indirect=True)
def test_an_ordinary_user_may_not_know_frames_and_so_inflates_nothing(
    lab_address: str, lab_devices: dict[str, str], witness: Witness
) -> None:
    """The node alone is not enough: pagemap shows zeros without CAP_SYS_ADMIN, and frame 0 is somebody's."""
    full = int(witness.execute("query-balloon")["actual"])
    owned = ("--owner", "1234:1234", "--force", "unsafe-owner")
    hand_over(lab_address, "virtio-pci")
    try:
        done = commands.uvirtio("bind", lab_address, *owned)
        assert done.returncode == 0, done.stderr
        done = commands.program("balloon", "inflate", lab_address, "1M", "--json", prefix=commands.USER)
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        assert (done.returncode, error["code"]) == (4, "UV-ENV-PAGEMAP"), done.stdout
        assert "CAP_SYS_ADMIN" in json.dumps(error)
        assert int(witness.execute("query-balloon")["actual"]) == full
    finally:
        assert commands.uvirtio("restore", "--all").returncode == 0

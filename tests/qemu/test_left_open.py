"""A failed test does not keep its QEMU running, and one that passes closes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.left_open import closed_at_the_end

ROOT = Path(__file__).resolve().parents[2]

INNER = """
import os
from pathlib import Path

import pytest

import uvirtio
from uvirtio.qemu import Machine

running = []


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def machine():
    made = Machine(devices=["virtio-rng-pci"])
    running.append(made.pid)
    return made


def test_a_driven_device_of_a_failed_test():
    device = uvirtio.open("qemu:virtio-rng-pci")
    uvirtio.Rng(device).read(4)
    running.append(device.transport.backend.machine.pid)
    raise ValueError("scripted")


def test_a_machine_of_a_failed_test(machine):
    assert machine.functions == []


def test_a_machine_of_a_test_that_passes(machine):
    assert not ended(machine.pid)


def test_one_that_closes_its_machine(machine):
    machine.close()


def test_none_of_them_runs_any_more():
    assert len(running) == 4
    assert [pid for pid in running if not ended(pid)] == []
"""


def test_a_machine_ends_with_its_test(tmp_path: Path) -> None:
    inner = tmp_path / "test_inner.py"
    inner.write_text(INNER)
    plugins = ("no:cacheprovider", "no:randomly", "tests.conftest", "tests.qemu.conftest")
    options = ["-q", "-c", "/dev/null", *(word for name in plugins for word in ("-p", name))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--basetemp={tmp_path}/t", str(inner)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line.split() for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    assert sorted((words[0], words[1].rpartition("::")[2]) for words in said) == [
        ("ERROR", "test_a_machine_of_a_test_that_passes"),
        ("FAILED", "test_a_driven_device_of_a_failed_test"),
        ("FAILED", "test_a_machine_of_a_failed_test"),
    ], done.stdout
    assert "the test left open: q35 (pid " in done.stdout
    assert "3 passed" in done.stdout, "the last one sees none, and none is left at the end of the session"


def test_what_was_made_before_is_not_closed() -> None:
    class Thing:
        def __init__(self, name: str) -> None:
            self.name, self.closed = name, 0

        def close(self) -> None:
            self.closed += 1
            raise OSError(self.name)

    init = Thing.__init__
    wider = Thing("module's")
    with pytest.raises(ValueError, match="of the test"), closed_at_the_end(Thing):
        own, other = Thing("a"), Thing("b")
        raise ValueError("of the test")
    assert (wider.closed, own.closed, other.closed, Thing.__init__) == (0, 1, 1, init)

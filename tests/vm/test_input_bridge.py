"""The bridge in a real kernel: a clone that python-evdev reads as it reads the kernel's own virtio keyboard."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.polling import readable
from tests.vm.commands import Command, rights, running
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import hand_over
from uvirtio.drivers.input import phys_of

PATIENCE = 60
KEY, LED, REP = 1, 0x11, 0x14
SYN = (0, 0, 0)
TYPED = [("a", 30), ("shift", 42), ("ret", 28), ("f12", 88)]


@pytest.fixture(scope="module")
def evdev() -> Any:
    for module in ("evdev", "uinput"):
        subprocess.run(["modprobe", module], check=True, timeout=PATIENCE)
    return pytest.importorskip("evdev")


@pytest.fixture
def keyboard(lab_devices: dict[str, str]) -> Iterator[str]:
    """The keyboard's address; the kernel has it at the start and at the end."""
    if "keyboard" not in lab_devices:
        pytest.skip("this machine has no keyboard")
    address = lab_devices["keyboard"]
    hand_over(address, "virtio-pci")
    yield address
    hand_over(address, "virtio-pci")


def node_of(address: str) -> str:
    """The event node of the kernel's own input device there."""
    subprocess.run(["modprobe", "virtio_input"], check=True, timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for found in Path("/sys/bus/pci/devices", address).glob("virtio*/input/input*/event*"):
            if Path("/dev/input", found.name).exists():
                return f"/dev/input/{found.name}"
        time.sleep(0.05)
    raise AssertionError("virtio_input made no event node")


def send(witness: Witness, *keys: tuple[str, bool]) -> None:
    """Press or lift keys, all in one frame."""
    events = [{"type": "key", "data": {"down": d, "key": {"type": "qcode", "data": key}}} for key, d in keys]
    witness.execute("input-send-event", events=events)


def take(reader: Any, count: int) -> list[tuple[int, int, int]]:
    """So many events, or those that came in time; without the repeats that the kernel makes itself."""
    found: list[tuple[int, int, int]] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        if readable(reader.fd, 0.2):
            found += [
                (one.type, one.code, one.value) for one in reader.read() if (one.type, one.value) != (KEY, 2)
            ]
    return found


def type_and_read(witness: Witness, reader: Any) -> list[tuple[int, int, int]]:
    found = []
    for key, _ in TYPED:
        for down in (True, False):
            send(witness, (key, down))
            found += take(reader, 2)
    send(witness, ("a", True), ("shift", True))
    found += take(reader, 3)
    send(witness, ("shift", False), ("a", False))
    return found + take(reader, 3)


@contextmanager
def bridge(address: str) -> Iterator[tuple[Command, dict[str, Any]]]:
    """A running bridge, and what it says of its clone."""
    with running("input", "bridge", address, "--json", merged=False) as child:
        yield child, json.loads(child.stdout.readline())


@pytest.mark.spec("INP-08")
def test_a_clone_is_read_like_the_kernels_own_keyboard(evdev: Any, keyboard: str, witness: Witness) -> None:
    own = evdev.InputDevice(node_of(keyboard))
    about = (own.name, tuple(own.info), own.capabilities(), own.input_props())
    typed = type_and_read(witness, own)
    own.close()
    assert typed[:4] == [(KEY, 30, 1), SYN, (KEY, 30, 0), SYN]
    assert len(typed) == 4 * len(TYPED) + 6

    hand_over(keyboard, "vfio-pci")
    with bridge(keyboard) as (child, said):
        assert said["event"] == "cloned", said
        clone = evdev.InputDevice(said["node"])
        assert (clone.name, tuple(clone.info), clone.capabilities(), clone.input_props()) == about
        assert clone.phys == phys_of(keyboard)
        assert rights(child.pid) == set(), "the node and /dev/uinput are open"
        assert type_and_read(witness, clone) == typed

        clone.set_led(1, True)
        clone.set_led(0, True)
        clone.set_led(1, False)

        # Held when the bridge ends. That it is lifted cannot be seen here: evdev gives nothing of a device that is
        # gone, not even what was there before.
        send(witness, ("a", True))
        assert take(clone, 2)[-2:] == [(KEY, 30, 1), SYN]
        child.send_signal(signal.SIGTERM)
        left = json.loads(child.stdout.readline())
        assert child.wait(PATIENCE) == 143
        clone.close()
    send(witness, ("a", False))
    assert left["event"] == "left"
    assert left["brought_back"] == 3
    assert left["ignored"] == left["lost"] == 0
    assert not Path(said["node"]).exists(), "the clone is gone"


@pytest.mark.fault(82, level="K")
def test_a_bridge_that_is_killed_leaves_no_clone_and_no_key(evdev: Any, keyboard: str, witness: Witness) -> None:
    hand_over(keyboard, "vfio-pci")
    with bridge(keyboard) as (child, said):
        clone = evdev.InputDevice(said["node"])
        send(witness, ("a", True))
        assert take(clone, 2)[-2:] == [(KEY, 30, 1), SYN]
        child.kill()
        child.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while Path(said["node"]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        clone.close()
    send(witness, ("a", False))


def test_a_recording_is_played_into_a_clone(evdev: Any, tmp_path: Path) -> None:
    file = tmp_path / "it.evemu"
    file.write_text(
        "N: Recorded\nI: 0003 0001 0002 0003\nB: 01 00 00 00 40 00 00 00 00\n"
        "E: 0.000000 0001 001e 0001\nE: 0.000000 0000 0000 0000\n"
        "E: 1.000000 0001 001e 0000\nE: 1.000000 0000 0000 0000\n"
    )
    with running("input", "replay", "-", str(file), "--json", merged=False) as child:
        said = json.loads(child.stdout.readline())
        reader = evdev.InputDevice(said["node"])
        assert reader.name == "Recorded"
        assert reader.capabilities() == {0: [0, KEY], KEY: [30]}
        # The first frame may have gone before anybody looked; the second comes a second later.
        found = take(reader, 2)
        assert found[-2:] in ([(KEY, 30, 1), SYN], [(KEY, 30, 0), SYN])
        assert child.wait(PATIENCE) == 0
        assert json.loads(child.stdout.readline())["frames"] == 2
        reader.close()

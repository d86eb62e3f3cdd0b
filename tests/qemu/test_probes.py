"""Probes on QEMU's device models, each with a witness that is none of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uvirtio.device.bringup import unobserved
from uvirtio.diag import diagnose
from uvirtio.diag.datapath import for_device
from uvirtio.diag.probes.gpu import GpuPath
from uvirtio.diag.probes.outcome import DataPath
from uvirtio.qemu import Machine

ADDRESSES = {
    "console": ("qemu:virtio-serial-pci", "21 bytes sent and 21 received, the same at both ends; emerg_wr seen"),
    "console, mmio": ("qemu:microvm/virtio-serial-device", "the same at both ends; emerg_wr seen"),
    "console, packed": ("qemu:virtio-serial-pci,packed=on,max_ports=1", "the same at both ends; emerg_wr seen"),
    "9p": ("qemu:virtio-9p-pci", "9P2000.L, messages of 8192 bytes; the root is a directory"),
    "9p, legacy": ("qemu:virtio-9p-pci,disable-modern=on", "the root is a directory"),
    "gpu": ("qemu:virtio-gpu-pci", "enabled: 1280x800; EDID read; a picture of 64x48, which the screen"),
    "gpu, packed": ("qemu:virtio-gpu-pci,packed=on", "a picture of 64x48, which the screen"),
    "crypto": ("qemu:virtio-crypto-pci", "gives 7649abac8119b246cee98e9b12e9197d, and back; two sessions ended"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_device_does_its_work(name: str) -> None:
    address, words = ADDRESSES[name]
    report = diagnose(address)
    steps = {step.name: step for step in report.steps}
    path = steps["data path"]
    if "packed" in address:  # QEMU leaves WRITE out in used slots of packed rings, which is all that is odd
        assert path.cause is None or path.hint.count(";") == path.hint.count("used-length-without-write") - 1, path
    else:
        assert (report.verdict, path.verdict) == ("pass", "pass"), path
    assert words in steps["data path"].detail
    assert steps["interrupt"].verdict == "pass", steps["interrupt"]


@contextmanager
def running(machine: Machine) -> Iterator[DataPath]:
    with machine, machine.open(0) as device:
        path = for_device(device)
        path.start(unobserved)
        yield path


def test_what_a_console_sends_is_in_a_ring_of_qemu() -> None:
    """QEMU's own character device is the witness; uvirtio has no other end here, and says so."""
    port = ["-chardev", "ringbuf,id=seen,size=256", "-device", "virtconsole,bus=here.0,chardev=seen"]
    machine = Machine("q35", ["virtio-serial-pci,id=here"], arguments=port)
    with running(machine) as path:
        assert "no bytes were sent" in path.exercise().detail
        from uvirtio.diag.probes.console import ConsolePath, transmission

        assert isinstance(path, ConsolePath)
        path.ask(transmission(b"seen by QEMU"))
        assert machine.qmp("ringbuf-read", device="seen", size=256, format="utf8") == "seen by QEMU"


def test_the_picture_is_on_the_screen_while_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's screen dump in a file, read here by its bytes."""
    machine = Machine("q35", ["virtio-gpu-pci"])
    file = tmp_path / "screen"

    def look(path: GpuPath) -> str:
        machine.qmp("screendump", filename=str(file))
        return "looked at"

    monkeypatch.setattr(GpuPath, "_seen", look)
    with running(machine) as path:
        assert "looked at" in path.exercise().detail
    head, pixels = file.read_bytes()[:13], file.read_bytes()[13:]
    assert head == b"P6\n64 48\n255\n" and len(pixels) == 3 * 64 * 48
    corners = [pixels[at : at + 3].hex() for at in (0, 3 * 63, 3 * 64 * 47, 3 * (64 * 48 - 1))]
    assert corners == ["e02010", "10c030", "2040f0", "f0f008"]

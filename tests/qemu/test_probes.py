"""Probes on QEMU's device models, each with a witness that is none of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uvirtio.device.bringup import unobserved
from uvirtio.diag import diagnose
from uvirtio.diag.datapath import for_device
from uvirtio.diag.probes.gpu import GpuPath
from uvirtio.diag.probes.iommu import IommuPath, request
from uvirtio.diag.probes.outcome import DataPath
from uvirtio.diag.probes.rtc import RtcPath, reading
from uvirtio.drivers.base import runs, transact
from uvirtio.drivers.rng import Rng
from uvirtio.qemu import Machine
from uvirtio.spec import iommu, rtc
from uvirtio.spec.iommu import Request, Status

ADDRESSES = {
    "console": ("qemu:virtio-serial-pci", "21 bytes sent and 21 received, the same at both ends; emerg_wr seen"),
    "console, mmio": ("qemu:microvm/virtio-serial-device", "the same at both ends; emerg_wr seen"),
    "console, packed": ("qemu:virtio-serial-pci,packed=on,max_ports=1", "the same at both ends; emerg_wr seen"),
    "9p": ("qemu:virtio-9p-pci", "9P2000.L, messages of 8192 bytes; the root is a directory"),
    "9p, legacy": ("qemu:virtio-9p-pci,disable-modern=on", "the root is a directory"),
    "gpu": ("qemu:virtio-gpu-pci", "enabled: 1280x800; EDID read; a picture of 64x48, which the screen"),
    "gpu, packed": ("qemu:virtio-gpu-pci,packed=on", "a picture of 64x48, which the screen"),
    "crypto": ("qemu:virtio-crypto-pci", "gives 7649abac8119b246cee98e9b12e9197d, and back; two sessions ended"),
    "pmem": ("qemu:virtio-pmem-pci", "flushed twice; written in its file and read in the machine, and back"),
    "iommu": ("qemu:virtio-iommu-pci", "1 properties; attached to domain"),
    "sound": ("qemu:virtio-sound-pci", "2 streams: out, in; a period out after"),
    "rtc": ("qemu:virtio-rtc-pci", "1 clock; clock 0, UTC: 20"),
}


NEEDS = {"sound": (8, 2), "rtc": (11, 0)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.qemu_since(*NEEDS[one])] if one in NEEDS else []) for one in ADDRESSES],
)
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


def test_what_an_endpoint_may_reach_is_what_is_mapped() -> None:
    """The witness is another device: an entropy source behind the IOMMU, whose buffer it fills or leaves."""
    behind = "virtio-rng-pci-non-transitional,iommu_platform=on,id=behind"
    machine = Machine("q35", ["virtio-iommu-pci", behind])
    with running(machine) as path, machine.open(1) as device, Rng(device, health=False):
        assert isinstance(path, IommuPath)
        (endpoint,) = (
            one["bus"] << 8 | one["slot"] << 3 | one["function"]
            for bus in machine.qmp("query-pci")
            for one in bus["devices"]
            if one["qdev_id"] == "behind"
        )
        block = device.dma.alloc(4096)
        ((address, _),) = block.segments(0, 4096)
        ends = (0, address, address + 4096, (1 << 39) - 1)

        def mapped(first: int, last: int) -> None:
            body = iommu.MAP.pack(Request.MAP, 1, first, last, first, iommu.READ | iommu.WRITE)
            path.ask(request(Request.MAP, body, Status.OK))

        def filled() -> bool:
            block.view[:64] = bytes(64)
            transact(device, device.queues[0], [], runs(block, 0, 64), timeout=5.0, what="random bytes")
            return any(block.view[:64])

        assert filled(), "bypass"
        faults = path.offer(iommu.EVENTQ, 32, 8)
        path.ask(request(Request.ATTACH, iommu.ATTACH.pack(Request.ATTACH, 1, endpoint, 0), Status.OK))
        for first, last in ((ends[0], ends[1] - 1), (ends[1], ends[2] - 1), (ends[2], ends[3])):
            mapped(first, last)
        assert filled(), "mapped"
        unmap = iommu.UNMAP.pack(Request.UNMAP, 1, ends[1], ends[2] - 1)
        path.ask(request(Request.UNMAP, unmap, Status.OK))
        assert not filled(), "unmapped"
        reason, _, who, where = iommu.FAULT.unpack(faults.take(5.0, "a fault")[0])
        assert (iommu.FAULT_REASONS[reason], who, where & -4096) == ("mapping", endpoint, address)
        path.ask(request(Request.DETACH, iommu.DETACH.pack(Request.DETACH, 1, endpoint), Status.OK))
        assert filled(), "detached: bypass again"
        block.close()


@pytest.mark.qemu_since(11, 0)
def test_a_clock_is_that_of_the_host() -> None:
    with running(Machine("q35", ["virtio-rtc-pci"])) as path:
        assert isinstance(path, RtcPath)
        before = time.time_ns()
        (answer,) = path.ask(reading(0))
        after = time.time_ns()
        shown = rtc.READ.unpack(answer)[1]
        assert before - 1000 <= shown <= after, "in whole microseconds"

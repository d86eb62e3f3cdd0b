"""Machines of n devices, made up in a directory: what ``list`` costs for each device. No device is touched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benches.discovery import virt
from benches.measure import cpu
from uvirtio.binding import api
from uvirtio.host.roots import Roots

SIZES = (10, 30, 100, 300, 1000, 5000)

_FEATURES = "".join(str(int(bit in (32, 33, 34))) for bit in range(64)) + "\n"


class _Machine:
    """The trees below a directory, and the verbs that put devices into them."""

    def __init__(self, top: Path) -> None:
        self.roots = Roots.under(top)
        for directory in (
            *(self.roots.sys / "bus" / bus / "devices" for bus in ("pci", "platform", "vdpa", "virtio")),
            *(self.roots.sys / "class" / name for name in ("block", "net", "vfio", "tty")),
            *(self.roots.proc / "1/fd", self.roots.proc / "net", self.roots.dev / "vfio"),
            *(self.roots.run, self.roots.etc, self.roots.sys / "fs/ext4"),
        ):
            directory.mkdir(parents=True)
        (self.roots.proc / "1/ns").mkdir()
        (self.roots.proc / "1/ns/mnt").symlink_to("mnt:[1]")
        (self.roots.proc / "self").symlink_to("1")
        self.mounts = ["1 0 0:1 / / rw - tmpfs tmpfs rw"]
        self.routes = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask"]

    def device(self, bus: str, name: str, files: Mapping[str, str], driver: str | None) -> Path:
        path = self.roots.sys / "devices" / bus / name
        path.mkdir(parents=True)
        for file, text in files.items():
            (path / file).write_text(text + "\n")
        (self.roots.sys / "bus" / bus / "devices" / name).symlink_to(path)
        if driver is not None:
            self._bind(path, bus, driver)
        return path

    def _bind(self, path: Path, bus: str, driver: str) -> None:
        home = self.roots.sys / "bus" / bus / "drivers" / driver
        home.mkdir(parents=True, exist_ok=True)
        (path / "driver").symlink_to(home)

    def virtio(self, device: Path, number: int, kind: int, driver: str) -> Path:
        path = device / f"virtio{number}"
        path.mkdir()
        (path / "device").write_text(f"0x{kind:04x}\n")
        (path / "features").write_text(_FEATURES)
        (self.roots.sys / "bus/virtio/devices" / path.name).symlink_to(path)
        self._bind(path, "virtio", driver)
        return path

    def below(self, device: Path, kind: str, name: str, files: Mapping[str, str]) -> None:
        """What the kernel makes of a device: a disk, an interface."""
        path, home = device / kind / name, self.roots.sys / "class" / kind
        path.mkdir(parents=True)
        for file, text in files.items():
            (path / file).write_text(text + "\n")
        (path / "subsystem").symlink_to(home)
        (home / name).symlink_to(path)

    def finish(self) -> Roots:
        (self.roots.proc / "1/mountinfo").write_text("".join(f"{line}\n" for line in self.mounts))
        (self.roots.proc / "net/route").write_text("".join(f"{line}\n" for line in self.routes))
        for name in ("swaps", "consoles", "iomem", "modules", "vmstat"):
            (self.roots.proc / name).write_text("")
        return self.roots


def functions(top: Path, count: int) -> Roots:
    """PCI functions: a third disks that are mounted, a third interfaces with routes, a third with VFIO."""
    machine = _Machine(top)
    for number in range(count):
        kind, pci_id, driver = ((2, 0x1042, "virtio_blk"), (1, 0x1041, "virtio_net"), (4, 0x1044, ""))[number % 3]
        name = f"{number >> 13:04x}:{number >> 5 & 255:02x}:{number & 31:02x}.0"
        ids = {"vendor": "0x1af4", "device": f"0x{pci_id:04x}", "class": "0x00ff00", "revision": "0x01"}
        files = {**ids, "subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "driver_override": "(null)"}
        path = machine.device("pci", name, files, "virtio-pci" if driver else "vfio-pci")
        group = machine.roots.sys / "kernel/iommu_groups" / str(number)
        (group / "devices").mkdir(parents=True)
        (group / "devices" / name).symlink_to(path)
        (path / "iommu_group").symlink_to(group)
        if not driver:
            (machine.roots.sys / "class/vfio" / str(number)).mkdir()
            (machine.roots.dev / "vfio" / str(number)).touch()
            continue
        virtio = machine.virtio(path, number, kind, driver)
        if driver == "virtio_blk":
            disk, major = f"vd{number}", f"{254 + (number >> 20)}:{number}"
            machine.below(virtio, "block", disk, {"dev": major, "uevent": f"DEVNAME={disk}"})
            (virtio / "block" / disk / "holders").mkdir()
            (machine.roots.sys / "fs/ext4" / disk).mkdir()
            machine.mounts.append(f"{number + 2} 1 {major} / /mnt/{disk} rw - ext4 /dev/{disk} rw")
        else:
            machine.below(virtio, "net", f"eth{number}", {"flags": "0x1003"})
            machine.routes.append(f"eth{number}\t000010AC\t00000000\t0001\t0\t0\t0\t0000FFFF")
    return machine.finish()


def vdpa(top: Path, count: int) -> Roots:
    """vDPA devices, each on a PCI function of its own."""
    machine = _Machine(top)
    for number in range(count):
        name = f"{number >> 13:04x}:{number >> 5 & 255:02x}:{number & 31:02x}.0"
        files = {"vendor": "0x1af4", "device": "0x1041", "class": "0x020000", "driver_override": "(null)"}
        function = machine.device("pci", name, files, "vp_vdpa")
        path = function / f"vdpa{number}"
        (path / f"vhost-vdpa-{number}").mkdir(parents=True)
        (path / f"vhost-vdpa-{number}/dev").write_text(f"511:{number}\n")
        (path / "driver_override").write_text("(null)\n")
        (function / "subsystem").symlink_to(machine.roots.sys / "bus/pci")
        (machine.roots.sys / "bus/vdpa/devices" / path.name).symlink_to(path)
        machine._bind(path, "vdpa", "vhost_vdpa")
        (machine.roots.dev / f"vhost-vdpa-{number}").touch()
    return machine.finish()


def listed(make: Callable[[Path, int], Roots]) -> Callable[[int, bool], float]:
    """``list`` on a machine of so many devices: seconds of this process for each."""

    def cost(count: int, quick: bool) -> float:
        room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="uvb-", dir=room) as top:
            roots = make(Path(top), count)
            many = 1 if quick else max(1, 300 // count)
            if count == SIZES[0]:
                api.list(roots=roots)  # the imports
            return cpu(lambda: _list(roots, count, many)) / many / count

    return cost


def _list(roots: Roots, count: int, times: int) -> None:
    for _ in range(times):
        found = len(api.list(roots=roots))
        assert found >= count, f"{found} of {count} devices"


KINDS: tuple[tuple[str, Callable[[Path, int], Roots]], ...] = (
    ("PCI functions", functions),
    ("virtio-mmio windows", virt),
    ("vDPA devices", vdpa),
)

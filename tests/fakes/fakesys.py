"""A made-up /sys, /proc, /dev, /run and /etc in a directory, and a kernel that answers what is written to it."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from uvirtio.host.roots import Roots

IDS = {"net": 1, "blk": 2, "console": 3, "rng": 4, "balloon": 5, "scsi": 8, "9p": 9, "gpu": 16, "input": 18,
       "vsock": 19, "crypto": 20, "iommu": 23, "mem": 24, "sound": 25, "fs": 26, "pmem": 27}  # fmt: skip
KERNEL = {"net": "virtio_net", "blk": "virtio_blk", "console": "virtio_console", "rng": "virtio_rng",
          "balloon": "virtio_balloon", "9p": "9pnet_virtio", "gpu": "virtio_gpu", "input": "virtio_input",
          "crypto": "virtio_crypto", "iommu": "virtio_iommu", "mem": "virtio_mem", "fs": "virtiofs",
          "scsi": "virtio_scsi"}  # fmt: skip

RESOURCE = ["0x0 0x0 0x0"] * 17
RESOURCE[0] = "0x000000000000c000 0x000000000000c03f 0x0000000000040101"
RESOURCE[1] = "0x00000000febd1000 0x00000000febd1fff 0x0000000000040200"
RESOURCE[4] = "0x00000000fe000000 0x00000000fe003fff 0x000000000014220c"


def config_space(pci_id: tuple[int, int], modern: bool = True) -> bytes:
    """256 bytes as QEMU's devices have them: MSI-X, then five virtio capabilities in BAR 4."""
    config = bytearray(256)
    struct.pack_into("<HHHH", config, 0, *pci_id, 0x0007, 0x0010)
    config[0x34] = 0x98
    config[0x98 : 0x98 + 12] = bytes([0x11, 0, 1, 0]) + bytes(8)
    if modern:
        config[0x99] = 0x84
        at, nxt = [0x84, 0x70, 0x60, 0x50, 0x40], [0x70, 0x60, 0x50, 0x40, 0]
        kinds = [(5, 0, 0, 0, 20), (2, 4, 0x3000, 0x1000, 20), (4, 4, 0x2000, 0x1000, 16),
                 (3, 4, 0x1000, 0x1000, 16), (1, 4, 0, 0x1000, 16)]  # fmt: skip
        for here, then, (kind, bar, offset, length, size) in zip(at, nxt, kinds, strict=True):
            struct.pack_into("<BBBBBBxxII", config, here, 9, then, size, kind, bar, 0, offset, length)
        struct.pack_into("<I", config, 0x70 + 16, 4)
        struct.pack_into("<I", config, 0x84 + 16, 0xDEADBEEF)
    return bytes(config)


class FakeSys:
    """The five trees below ``top``, and the verbs that fill them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.roots = Roots.under(top)
        for bus in ("pci", "platform", "vdpa", "virtio"):
            for part in ("devices", "drivers"):
                (self.sys / "bus" / bus / part).mkdir(parents=True)
            self.text(self.sys / "bus" / bus / "drivers_probe", "")
        for path in (self.sys / "class", self.sys / "kernel/iommu_groups", self.roots.run, self.roots.etc):
            path.mkdir(parents=True)
        (self.roots.dev / "vfio").mkdir(parents=True)
        for name in ("pci", "platform"):
            self.driver({"pci": "virtio-pci", "platform": "virtio-mmio"}[name], bus=name)
        proc = self.roots.proc
        self.text(proc / "sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
        self.text(proc / "sys/kernel/osrelease", "6.1.0-test\n")
        for pid in (1, os.getpid()):
            self.text(proc / f"{pid}/mountinfo", "")
            self.text(proc / f"{pid}/cmdline", "process\0")
            (proc / f"{pid}/fd").mkdir()
            (proc / f"{pid}/ns").mkdir()
            (proc / f"{pid}/ns/mnt").symlink_to("mnt:[1]")
        (proc / "self").symlink_to(str(os.getpid()))
        self.mountinfo([])
        for name in ("swaps", "consoles", "fb", "iomem", "crypto", "modules", "cmdline", "vmstat"):
            self.text(proc / name, "")
        self.text(proc / "net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n")
        self.text(proc / "net/ipv6_route", "")

    @property
    def sys(self) -> Path:
        return self.roots.sys

    def text(self, path: Path, text: str | bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def link(self, path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def driver(self, name: str, bus: str = "pci") -> Path:
        path = self.sys / "bus" / bus / "drivers" / name
        if not path.exists():
            path.mkdir(parents=True)
            self.text(path / "unbind", "")
            self.text(path / "bind", "")
        return path

    # --- devices ---

    def pci(
        self,
        address: str,
        kind: str | None = "rng",
        *,
        pci_id: tuple[int, int] | None = None,
        driver: str | None = "virtio-pci",
        virtio: str | None = None,
        group: int | None = None,
        config: bytes | None = None,
        pci_class: int = 0x00FF00,
        features: int = 1 << 32,
        transitional: bool = False,
    ) -> Path:
        number = IDS.get(kind or "", 0)
        old = {1: 0x1000, 2: 0x1001, 5: 0x1002, 3: 0x1003, 8: 0x1004, 4: 0x1005, 9: 0x1009}
        if pci_id is None:
            pci_id = (0x1AF4, old[number] if transitional else 0x1040 + number)
        path = self.sys / "devices/pci0000:00" / address
        path.mkdir(parents=True)
        for name, value in (("vendor", pci_id[0]), ("device", pci_id[1]), ("subsystem_vendor", 0x1AF4),
                            ("subsystem_device", number if transitional else 0x1100)):  # fmt: skip
            self.text(path / name, f"0x{value:04x}\n")
        self.text(path / "class", f"0x{pci_class:06x}\n")
        self.text(path / "revision", "0x01\n")
        self.text(path / "numa_node", "-1\n")
        self.text(path / "driver_override", "(null)\n")
        self.text(path / "resource", "\n".join(RESOURCE) + "\n")
        self.text(path / "config", config if config is not None else config_space(pci_id))
        self.link(path / "subsystem", self.sys / "bus/pci")
        self.link(self.sys / "bus/pci/devices" / address, path)
        if group is not None:
            self.group(path, group)
        if driver is not None:
            self.attach(path, driver)
            if driver == "virtio-pci" and kind is not None:
                self.virtio(path, virtio or self.next_virtio(), kind, features)
        return path

    def group(self, device: Path, number: int) -> None:
        directory = self.sys / "kernel/iommu_groups" / str(number)
        (directory / "devices").mkdir(parents=True, exist_ok=True)
        self.link(device / "iommu_group", directory)
        self.link(directory / "devices" / device.name, device)

    def vfio(self, device: Path, number: int | None = None, driver: str | None = "vfio-pci") -> None:
        """What VFIO makes of a function that ``driver`` has: its group's node, and with a number its own."""
        if driver is not None:
            self.attach(device, driver)
        group = (device / "iommu_group").readlink().name
        (self.sys / "class/vfio" / group).mkdir(parents=True, exist_ok=True)
        self.text(self.roots.dev / "vfio" / group, "").chmod(0o600)
        if number is not None:
            name = f"vfio{number}"
            uevent = f"DEVNAME=vfio/devices/{name}\n"
            self.child(device, f"vfio-dev/{name}", "vfio-dev", {"dev": f"511:{number}\n", "uevent": uevent})
            self.text(self.roots.dev / "vfio/devices" / name, "").chmod(0o600)

    def mmio(
        self,
        name: str,
        kind: str | None = None,
        *,
        compatible: bytes | None = None,
        reg: tuple[int, int] | None = None,
    ) -> Path:
        """A window; with ``compatible`` one of a device tree, whose node has ``reg`` in cells of 2 and 2."""
        path = self.sys / "devices/platform" / name
        path.mkdir(parents=True)
        self.text(path / "driver_override", "(null)\n")
        if compatible is not None:
            address, _, what = name.partition(".")
            words = {} if reg is None else {"reg": b"".join(number.to_bytes(8, "big") for number in reg)}
            self.link(path / "of_node", self.node(f"{what}@{address}", {"compatible": compatible, **words}))
        self.link(self.sys / "bus/platform/devices" / name, path)
        if kind is not None:
            self.attach(path, "virtio-mmio", bus="platform")
            self.virtio(path, self.next_virtio(), kind, 1 << 32)
        return path

    def node(self, where: str, properties: Mapping[str, bytes]) -> Path:
        """A node of the device tree, by its path; the root has 2 cells of address and 2 of size, as on virt."""
        tree = self.sys / "firmware/devicetree/base"
        for name in ("#address-cells", "#size-cells"):
            self.text(tree / name, (2).to_bytes(4, "big"))
        (tree / where).mkdir(parents=True, exist_ok=True)
        for name, value in properties.items():
            self.text(tree / where / name, value)
        return tree / where

    def sub_function(self, function: Path, name: str = "mlx5_core.sf.4") -> Path:
        """A device on the auxiliary bus, below a PCI function."""
        path = function / name
        path.mkdir()
        self.link(path / "subsystem", self.sys / "bus/auxiliary")
        return path

    def vdpa(
        self,
        name: str,
        *,
        driver: str | None = "vhost_vdpa",
        index: int = 0,
        kind: str = "blk",
        on: Path | None = None,
        dma: Path | None = None,
    ) -> Path:
        """A vDPA device below ``on``; ``dma`` does its DMA, and has the virtio device that virtio_vdpa makes."""
        path = (self.sys / "devices/virtual/vdpa" if on is None else on) / name
        path.mkdir(parents=True)
        self.text(path / "driver_override", "(null)\n")
        self.link(self.sys / "bus/vdpa/devices" / name, path)
        for known in ("vhost_vdpa", "virtio_vdpa"):
            self.driver(known, bus="vdpa")
        if driver is not None:
            self.attach(path, driver, bus="vdpa")
        if driver == "vhost_vdpa":
            self.vhost_vdpa(path, index)
        elif driver == "virtio_vdpa":
            self.virtio(path if dma is None else dma, self.next_virtio(), kind, 1 << 32)
        return path

    def vhost_vdpa(self, device: Path, index: int = 0) -> None:
        """What vhost_vdpa makes of a device: a child in sysfs, and the node."""
        self.text(device / f"vhost-vdpa-{index}/dev", "511:0\n")
        self.text(self.roots.dev / f"vhost-vdpa-{index}", "").chmod(0o600)

    def next_virtio(self) -> str:
        taken = {p.name for p in (self.sys / "bus/virtio/devices").iterdir()}
        return next(name for n in range(1000) if (name := f"virtio{n}") not in taken)

    def virtio(self, device: Path, name: str, kind: str, features: int) -> Path:
        path = device / name
        path.mkdir()
        self.text(path / "device", f"0x{IDS[kind]:04x}\n")
        self.text(path / "vendor", "0x1af4\n")
        self.text(path / "features", "".join(str(features >> bit & 1) for bit in range(64)) + "\n")
        self.link(self.sys / "bus/virtio/devices" / name, path)
        if kind in KERNEL:
            self.attach(path, KERNEL[kind], bus="virtio")
        return path

    def attach(self, device: Path, driver: str, bus: str = "pci") -> None:
        home = self.driver(driver, bus)
        self.link(device / "driver", home)
        self.link(home / device.name, device)

    def child(self, device: Path, where: str, subsystem: str, files: Mapping[str, str] | None = None) -> Path:
        """A class device below a bus device: ``child(dev, "virtio0/block/vda", "block", {"dev": "254:0"})``."""
        path = device / where
        path.mkdir(parents=True, exist_ok=True)
        home = self.sys / "class" / subsystem
        home.mkdir(parents=True, exist_ok=True)
        if not (path / "subsystem").is_symlink():
            self.link(path / "subsystem", home)
            self.link(home / path.name, path)
        for name, text in (files or {}).items():
            self.text(path / name, text)
        return path

    # --- proc ---

    def mountinfo(self, lines: list[str], pid: int | None = None) -> None:
        for each in (1, os.getpid()) if pid is None else (pid,):
            self.text(self.roots.proc / f"{each}/mountinfo", "".join(line + "\n" for line in lines))

    def opened(self, path: str, pid: int = 4242, fd: int = 3) -> None:
        """Process ``pid`` has ``path`` open."""
        directory = self.roots.proc / str(pid) / "fd"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(fd)).symlink_to(path)
        self.text(self.roots.proc / str(pid) / "cmdline", "holder\0--run\0")
        if not (self.roots.proc / str(pid) / "ns").exists():
            (self.roots.proc / str(pid) / "ns").mkdir()
            (self.roots.proc / str(pid) / "ns/mnt").symlink_to("mnt:[1]")

    # --- looking at the whole ---

    def snapshot(self) -> dict[str, tuple[str, bytes | str, int]]:
        """Everything in /sys, /dev: kind, content or target, and mode with owner."""
        made: dict[str, tuple[str, bytes | str, int]] = {}
        for root in (self.sys, self.roots.dev):
            for path in sorted(root.rglob("*")):
                key, mode = str(path.relative_to(self.top)), path.lstat().st_mode
                if path.is_symlink():
                    made[key] = ("link", str(path.readlink()), 0)
                elif path.is_dir():
                    made[key] = ("dir", "", mode)
                else:
                    made[key] = ("file", path.read_bytes(), mode)
        return made


class FakeKernel:
    """The writer that bind and restore use, answering as the kernel does; and where it may fail or die.

    ``die_at`` ends the process at the n-th change (0 is the first), before or after it is made: nothing
    that runs afterwards, no handler and no clean-up, can help. ``fail`` maps a file's name to an errno.
    """

    def __init__(self, fake: FakeSys, *, die_at: int | None = None, die_after: bool = False) -> None:
        self.fake = fake
        self.die_at, self.die_after = die_at, die_after
        self.count = 0
        self.log: list[tuple[str, str]] = []
        self.fail: dict[str, int] = {}
        self.refuses: set[str] = set()
        """Drivers whose probe fails without a word."""
        self.slow_probes = 0
        """So many probes do nothing at first."""
        self.forget_override = False

    def _change(self, make: Callable[[], None]) -> None:
        here = self.count == self.die_at
        self.count += 1
        if here and not self.die_after:
            os._exit(9)
        make()
        if here:
            os._exit(9)

    def write(self, path: Path, text: str, timeout: float) -> None:
        del timeout
        self.log.append((str(path.relative_to(self.fake.sys)), text))
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory")
        if path.name in self.fail:
            raise OSError(self.fail[path.name], os.strerror(self.fail[path.name]))
        self._change(lambda: self._answer(path, text))

    def own(self, path: Path, uid: int, gid: int, mode: int | None) -> None:
        self.log.append((str(path.relative_to(self.fake.top)), f"{uid}:{gid}"))

        def change() -> None:
            if mode is not None:
                path.chmod(mode)
            elif not path.is_symlink():
                path.chmod(0o660)  # an ordinary user cannot chown; the mode shows that it happened

        self._change(change)

    def _answer(self, path: Path, text: str) -> None:
        if path.name == "driver_override":
            if not self.forget_override:
                name = text.strip("\n")
                path.write_text(f"{name}\n" if name else "(null)\n")
        elif path.name == "unbind":
            self._unbind(path.parent, text)
        elif path.name == "drivers_probe":
            self._probe(path.parent, text)
        else:
            raise PermissionError(13, "Permission denied")

    def _unbind(self, driver: Path, name: str) -> None:
        link = driver / name
        if not link.is_symlink():
            raise OSError(19, "No such device")
        device = link.resolve()
        link.unlink()
        (device / "driver").unlink()
        for child in list(device.iterdir()):
            if child.name.startswith("virtio") and child.is_dir() and not child.is_symlink():
                (self.fake.sys / "bus/virtio/devices" / child.name).unlink()
                holder = (child / "driver").resolve() if (child / "driver").is_symlink() else None
                if holder is not None:
                    (holder / child.name).unlink()
                shutil.rmtree(child)
            elif child.name.startswith("vhost-vdpa-"):
                shutil.rmtree(child)
                (self.fake.roots.dev / child.name).unlink()
        for own in (device / "vfio-dev").glob("vfio*"):
            (self.fake.sys / "class/vfio-dev" / own.name).unlink()
            (self.fake.roots.dev / "vfio/devices" / own.name).unlink()
            shutil.rmtree(own.parent)
        if driver.name == "vfio-pci":
            group = device / "iommu_group"
            mates = [m.resolve() for m in (group / "devices").iterdir()] if group.is_symlink() else []
            if group.is_symlink() and not any(self._has(m, "vfio-pci") for m in mates):
                (self.fake.roots.dev / "vfio" / group.readlink().name).unlink(missing_ok=True)

    @staticmethod
    def _has(device: Path, driver: str) -> bool:
        return (device / "driver").is_symlink() and (device / "driver").readlink().name == driver

    def _probe(self, bus: Path, name: str) -> None:
        device = (bus / "devices" / name).resolve(strict=True)
        if (device / "driver").is_symlink():
            return
        if self.slow_probes:
            self.slow_probes -= 1
            return
        override = (device / "driver_override").read_text().strip()
        own = {"pci": "virtio-pci", "platform": "virtio-mmio", "vdpa": "virtio_vdpa"}[bus.name]
        driver = own if override in ("", "(null)") else override
        if driver in self.refuses or not (bus / "drivers" / driver).is_dir():
            return
        if driver == "vfio-pci" and not (device / "iommu_group").is_symlink():
            return
        self.fake.attach(device, driver, bus=bus.name)
        if driver == "vfio-pci":
            node = self.fake.roots.dev / "vfio" / (device / "iommu_group").readlink().name
            if not node.exists():
                node.write_text("")
                node.chmod(0o600)
        elif driver == "vhost_vdpa":
            self.fake.vhost_vdpa(device)
        elif driver in ("virtio-pci", "virtio-mmio", "virtio_vdpa"):
            kind = self.kind(device, bus.name)
            if kind is not None:
                self.fake.virtio(device, self.fake.next_virtio(), kind, 1 << 32)

    def kind(self, device: Path, bus: str) -> str | None:
        if bus != "pci":
            return "blk" if bus == "vdpa" else "rng"
        number = int((device / "device").read_text(), 0) - 0x1040
        return next((name for name, value in IDS.items() if value == number), None)

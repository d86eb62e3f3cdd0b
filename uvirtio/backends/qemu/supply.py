"""What a device needs beside itself, supplied unless its ``-device`` argument names its own.

Memory and disks are memfds of this process: nothing is left behind, and a test can look into them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from uvirtio.errors import NotSupported
from uvirtio.memory.window import FileWindow

DISK_SIZE = 64 << 20
PLUGGABLE_SIZE = 1 << 30

_OPTION = re.compile(r",([^=,]+)=((?:[^,]|,,)*)")


@dataclass
class Supply:
    """The arguments, descriptors and memory slots that the devices of one machine need."""

    arguments: list[str] = field(default_factory=list)
    devices: list[tuple[str, str]] = field(default_factory=list)
    """(id, complete ``-device`` argument), in the order asked for."""
    files: dict[str, int] = field(default_factory=dict)
    """The memfd behind a device, by the device's id: a disk, or memory to plug."""
    slots: int = 0
    hotplug: int = 0
    """Bytes of memory that may be plugged, for ``-m maxmem``."""

    def add(self, device: str) -> None:
        """Take in one device: give it an id if it has none, and what it lacks."""
        name, options = take_apart(device)
        if "id" not in options:
            number = len(self.devices)
            taken = {known for known, _ in self.devices}
            while f"dev{number}" in taken:
                number += 1
            options["id"] = f"dev{number}"
            device += f",id={options['id']}"
        ident = options["id"]
        if name.startswith("virtio-blk") and "drive" not in options:
            path = self._file(ident, DISK_SIZE)
            self.arguments += ["-drive", f"if=none,id={ident}-disk,format=raw,file={path},file.locking=off"]
            device += f",drive={ident}-disk"
        elif name.startswith(("virtio-mem", "virtio-pmem")) and "memdev" not in options:
            path = self._file(ident, PLUGGABLE_SIZE)
            backend = f"memory-backend-file,id={ident}-memory,size={PLUGGABLE_SIZE},mem-path={path},share=on"
            self.arguments += ["-object", backend]
            device += f",memdev={ident}-memory"
            self.slots += 1
            self.hotplug += PLUGGABLE_SIZE
        elif name.startswith("virtio-crypto") and "cryptodev" not in options:
            self.arguments += ["-object", f"cryptodev-backend-builtin,id={ident}-crypto"]
            device += f",cryptodev={ident}-crypto"
        elif name.startswith("virtio-net") and "romfile" not in options:
            # The boot ROM is in a package of its own, and there is nobody to boot.
            device += ",romfile="
        if "iothread" in options:
            self.arguments += ["-object", f"iothread,id={options['iothread']}"]
        # virtio-rng makes its own entropy source (rng-builtin).
        self.devices.append((ident, device))

    def _file(self, ident: str, size: int) -> str:
        fd = os.memfd_create(f"uvirtio-{ident}", os.MFD_CLOEXEC)
        self.files[ident] = fd
        os.ftruncate(fd, size)
        return f"/proc/self/fd/{fd}"

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        while self.files:
            os.close(self.files.popitem()[1])


def take_apart(device: str) -> tuple[str, dict[str, str]]:
    """The driver's name and the options of a ``-device`` argument; ``,,`` is a comma in a value."""
    name = device.partition(",")[0]
    options = {key: value.replace(",,", ",") for key, value in _OPTION.findall(device[len(name) :])}
    return name, options


def memory_of(files: Mapping[str, int], ident: str, address: str) -> FileWindow:
    """The memory that the device ``ident`` plugs, by the memfd that it was supplied with.

    Raises NotSupported where the memory backend is not ours: the device was given its own ``memdev``.
    """
    fd = files.get(ident)
    if fd is None:
        raise NotSupported(
            f"the memory behind {address} is no file of this process",
            seen="a memory backend of the caller's",
            expected="the one that is supplied",
            remedy="leave memdev= out of the device's options",
        )
    return FileWindow(os.dup(fd), 0, os.fstat(fd).st_size, what=f"the memory behind {address}")

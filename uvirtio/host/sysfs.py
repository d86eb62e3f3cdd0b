"""Reading sysfs: files, links and directories in general first, then those that several packages need.

A file that is missing, unreadable, malformed or gone between two reads is None (or empty): devices come and go
meanwhile, and an ordinary user sees less than root. Nothing here writes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from uvirtio.host import addresses
from uvirtio.host.digits import decimal
from uvirtio.host.roots import Roots

_LIMIT = 1 << 20
"""Bytes. No attribute file is longer; of a longer one the rest is ignored."""


def unwaiting(path: str, flags: int) -> int:
    """An opener for ``open``: in a foreign tree a file may be a pipe, and opening one waits for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def read(path: Path, limit: int = _LIMIT) -> str | None:
    """The text of a file, stripped of white space and NULs at its ends; None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=unwaiting) as file:
            pieces = []
            left = limit
            while left > 0 and (piece := file.read(min(left, 65536))):
                pieces.append(piece)
                left -= len(piece)
    except (OSError, ValueError):
        return None
    return b"".join(pieces).decode("utf-8", errors="replace").strip(" \t\r\n\0")


def exists(path: Path) -> bool:
    """Whether a file is there, and this user may see it.

    ``Path.exists`` raises PermissionError where a directory on the way is closed, up to Python 3.13.
    """
    try:
        return path.exists()
    except OSError:
        return False


def is_dir(path: Path) -> bool:
    """Whether a directory is there, and this user may see it."""
    try:
        return path.is_dir()
    except OSError:
        return False


def gone(path: Path) -> bool:
    """Whether a file is not there; one that this user may not see is not gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def lines(path: Path) -> list[str] | None:
    """The lines of a file; None where it cannot be read."""
    text = read(path, 16 * _LIMIT)
    return None if text is None else text.splitlines()


def number(path: Path) -> int | None:
    """A number as sysfs writes it (``0x1af4``, ``-1``, ``12``); None for anything else."""
    text = read(path, 64)
    if not text:
        return None
    try:
        return int(text, 0)
    except ValueError:
        return None


def link_name(path: Path) -> str | None:
    """The last part of what a link points to: the name of a driver, a group, a subsystem."""
    try:
        target = path.readlink()
    except (OSError, ValueError):
        return None
    return target.name or None


def listed(path: Path) -> list[str] | None:
    """The names in a directory, sorted; none where there is no directory, None where it cannot be listed."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError):
        return None


def names(path: Path) -> list[str]:
    """The names in a directory, sorted; none where it cannot be listed, for questions where that means no harm."""
    return listed(path) or []


def override(directory: Path) -> str | None:
    """``driver_override`` of a device; None where none is set (the kernel then shows ``(null)``)."""
    text = read(directory / "driver_override", 4096)
    return None if not text or text == "(null)" else text


def real(path: Path) -> Path:
    """The path with all links resolved; the path itself where that fails."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return path


DIRECTORIES_MAX = 50_000
"""Directories that ``below`` returns. A SCSI host has some sixty for each of its disks."""

DEPTH_MAX = 12
"""Levels that ``below`` goes down; a partition of a SCSI disk is eight below its PCI function."""


def below(top: Path, unreadable: list[Path] | None = None) -> list[Path]:
    """Every directory at or below ``top``; links are not followed.

    Args:
        top: Where to begin.
        unreadable: Takes the directories that cannot be listed, or are beyond a limit.
    """
    found: list[Path] = []
    pending = [(top, 0)]
    while pending and len(found) < DIRECTORIES_MAX:
        here, level = pending.pop()
        found.append(here)
        try:
            with os.scandir(here) as entries:
                children = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            continue
        except OSError:
            if unreadable is not None:
                unreadable.append(here)
            continue
        if level < DEPTH_MAX:
            pending.extend((here / name, level + 1) for name in reversed(children))
        elif children and unreadable is not None:
            unreadable.append(here / children[0])
    if pending and unreadable is not None:
        unreadable.append(pending[-1][0])
    return found


# --- buses and drivers --------------------------------------------------------------------------------------


def there(roots: Roots) -> bool:
    """Whether sysfs is mounted."""
    return is_dir(roots.sys / "bus")


def bus(name: str, roots: Roots) -> Path:
    """The directory of a bus: ``pci``, ``platform``, ``vdpa``, ``virtio``, ``dax``."""
    return roots.sys / "bus" / name


def device(bus_name: str, name: str, roots: Roots) -> Path:
    """The directory of a device by its name on the bus; it need not exist."""
    return bus(bus_name, roots) / "devices" / name


def device_names(bus_name: str, roots: Roots) -> list[str]:
    """The devices on a bus, sorted by name; none where there is no such bus."""
    return names(bus(bus_name, roots) / "devices")


def driver_of(directory: Path) -> str | None:
    """The driver that is bound to a device; None where none is."""
    return link_name(directory / "driver")


class Resource(NamedTuple):
    """A line of a PCI function's ``resource`` file: first address, last address, flags (<linux/ioport.h>)."""

    start: int
    last: int
    flags: int

    @property
    def is_io(self) -> bool:
        """Whether it is in I/O ports."""
        return bool(self.flags & 0x100)

    @property
    def prefetchable(self) -> bool:
        """Whether it is memory whose reads have no effects (IORESOURCE_PREFETCH)."""
        return bool(self.flags & 0x2000)

    @property
    def is_64_bit(self) -> bool:
        """Whether its register has 64 bits (IORESOURCE_MEM_64)."""
        return bool(self.flags & 0x100000)

    @property
    def used(self) -> bool:
        """Whether the line has a resource: I/O ports or memory, with a size."""
        return bool(self.flags & 0x300) and self.last > self.start

    @property
    def size(self) -> int:
        """Its length, in bytes."""
        return self.last - self.start + 1


def resources(directory: Path) -> list[Resource | None] | None:
    """The BARs, the ROM and the windows of a PCI function, as the kernel placed them.

    Returns:
        Each line of ``resource``, None for a malformed one; None where the file cannot be read.
    """
    text = lines(directory / "resource")
    return None if text is None else parse_resources(text)


def parse_resources(text: list[str]) -> list[Resource | None]:
    """The same for the lines of such a file, which may come from a recording."""
    made: list[Resource | None] = []
    for line in text:
        try:
            start, last, flags = (int(word, 16) for word in line.split())
            made.append(Resource(start, last, flags))
        except ValueError:
            made.append(None)
    return made


def above(directory: Path) -> list[Path]:
    """The devices that a device stands on, the nearest first, up to a PCI function: no bridges above that.

    A vDPA device may stand on a function itself (vp_vdpa), or on a sub-function, which is on the auxiliary bus.
    """
    found = []
    for place in real(directory).parents:
        is_function = addresses.is_pci(place.name)
        if is_function or link_name(place / "subsystem") is not None:
            found.append(place)
        if is_function:
            break
    return found


def function_below(directory: Path) -> Path | None:
    """The PCI function that a device stands on; None: it stands on none (VDUSE, a simulator)."""
    return next((place for place in above(directory) if addresses.is_pci(place.name)), None)


def vdpa_node(directory: Path) -> str | None:
    """The node that vhost_vdpa made for a vDPA device, ``/dev/vhost-vdpa-0``; None where it has none."""
    children = (f"/dev/{child}" for child in names(directory))
    return next((node for node in children if addresses.is_vhost_vdpa_node(node)), None)


def uio_nodes(directory: Path) -> list[str]:
    """The character devices that UIO made for a device, ``uio0``, by their names below /dev."""
    return [name for name in names(directory / "uio") if re.fullmatch(r"uio[0-9]+", name, re.ASCII)]


def vfio_devices(directory: Path) -> list[str]:
    """What VFIO registered of a device, ``vfio3``: a class device below it, since Linux 6.1."""
    return [name for name in names(directory / "vfio-dev") if re.fullmatch(r"vfio[0-9]+", name, re.ASCII)]


def vfio_nodes(directory: Path) -> list[str]:
    """The character devices that VFIO made for a device, ``/dev/vfio/devices/vfio3``: since Linux 6.6."""
    made = directory / "vfio-dev"
    return [f"/dev/vfio/devices/{name}" for name in vfio_devices(directory) if exists(made / name / "dev")]


def physical_function(directory: Path) -> str | None:
    """The physical function of an SR-IOV virtual function; None for all other functions."""
    return link_name(directory / "physfn")


def is_physical_function(directory: Path) -> bool:
    """Whether a PCI function has the SR-IOV capability."""
    return exists(directory / "sriov_totalvfs")


# --- IOMMU --------------------------------------------------------------------------------------------------


def iommu_group(directory: Path) -> int | None:
    """The number of a device's IOMMU group; None where it is in none."""
    name = link_name(directory / "iommu_group")
    return None if name is None else decimal(name)


def is_noiommu(directory: Path) -> bool:
    """Whether a device's group is VFIO's substitute for an IOMMU group where there is no IOMMU."""
    return read(directory / "iommu_group/name", 64) == _NOIOMMU


def iommu_groups(roots: Roots) -> list[str] | None:
    """The groups of a real IOMMU; None where they cannot be listed."""
    top = roots.sys / "kernel/iommu_groups"
    found = listed(top)
    return None if found is None else [name for name in found if read(top / name / "name", 64) != _NOIOMMU]


def iommu_group_folder(group: int, roots: Roots) -> Path:
    """The directory with the members of an IOMMU group."""
    return roots.sys / "kernel/iommu_groups" / str(group) / "devices"


def iommu_group_members(group: int, roots: Roots) -> list[str]:
    """The devices of an IOMMU group by their names; none where it cannot be read."""
    return names(iommu_group_folder(group, roots))


_NOIOMMU = "vfio-noiommu"


def noiommu_switch(roots: Roots) -> Path:
    """The parameter of the vfio module that allows VFIO without an IOMMU."""
    return roots.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"


def noiommu_mode(roots: Roots) -> bool | None:
    """Whether VFIO may be used without an IOMMU; None where the kernel has no such mode, or no vfio yet."""
    text = read(noiommu_switch(roots), 16)
    return None if text is None else text in ("Y", "1")


def unsafe_interrupts_allowed(roots: Roots) -> bool:
    """Whether VFIO may use an IOMMU that does not isolate interrupts."""
    names = ("vfio_iommu_type1", "iommufd")
    parameters = (roots.sys / "module" / name / "parameters/allow_unsafe_interrupts" for name in names)
    return any(read(path, 16) in ("Y", "1") for path in parameters)


# --- security -----------------------------------------------------------------------------------------------


def lockdown(roots: Roots) -> str | None:
    """The kernel's lockdown mode: ``none``, ``integrity`` or ``confidentiality``; None if unknown."""
    match = re.search(r"\[(\w+)\]", read(roots.sys / "kernel/security/lockdown", 256) or "")
    return match[1] if match else None


def locked_down(roots: Roots) -> str | None:
    """The lockdown mode where the kernel is locked down; None where it is not."""
    mode = lockdown(roots)
    return mode if mode in ("integrity", "confidentiality") else None


# --- uevents ------------------------------------------------------------------------------------------------


def uevent_seqnum(roots: Roots) -> int:
    """SEQNUM of the last uevent that the kernel has sent; 0 where it cannot be read."""
    return number(roots.sys / "kernel/uevent_seqnum") or 0


def devpath(directory: Path, roots: Roots) -> str:
    """The DEVPATH of a device in uevents: its path below sysfs with all links resolved, with a slash before it."""
    try:
        return "/" + str(real(directory).relative_to(real(roots.sys)))
    except ValueError:
        return str(directory)

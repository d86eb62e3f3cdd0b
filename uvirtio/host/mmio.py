"""The virtio-mmio windows of this machine, and the check that an address is one.

A window is a platform device of ACPI, of a device tree or of the kernel's command line. /dev/mem reaches
everything, RAM and other drivers' devices included, so each address is compared with ``/proc/iomem`` first. Linux
lists there what ACPI and its command line name, but the windows of a device tree only while a driver holds them:
for these the node in sysfs is the evidence (``devicetree``), which every user may read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from uvirtio.errors import ForeignWindow
from uvirtio.host import addresses, devicetree, proc, sysfs
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.pattern import Pattern
from uvirtio.host.proc import IoRange
from uvirtio.host.roots import Roots

# Lines that only say that firmware or a bus has the addresses, not that a driver uses them.
_PASSIVE = Pattern(r"reserved|PCI Bus .*|pnp [0-9a-f:]+", re.ASCII | re.IGNORECASE)


class Window(NamedTuple):
    """A virtio-mmio window: its platform device, and where its registers are."""

    name: str
    """Its name on the platform bus."""
    base: int | None
    """Its first physical address; None where this user may not know it."""
    length: int
    """Bytes; 0 where it is not known."""
    registered: bool = True
    """Whether the kernel has the device; without VIRTIO_MMIO_CMDLINE_DEVICES it ignores its command line."""

    @property
    def range(self) -> IoRange | None:
        """Its addresses as a line of ``/proc/iomem``; None where the base or the length is not known."""
        if self.base is None or not self.length:
            return None
        return IoRange(self.base, self.base + self.length, self.name)


def windows(roots: Roots, only: str | None = None) -> list[Window]:
    """Every window that the platform bus or the kernel's command line has, sorted by name.

    Args:
        roots: Where to look.
        only: A name on the platform bus; other devices are not looked at.
    """
    shown: dict[str, IoRange] = {}
    for line in proc.iomem(roots) or []:
        if not line.hidden and (name := _device_of(line)) is not None:
            shown.setdefault(name, line)
    given = {one.name: one for one in _on_the_command_line(roots)}
    found = []
    for name in sysfs.device_names("platform", roots) if only is None else [only]:
        if only is not None and sysfs.gone(sysfs.device("platform", name, roots)):
            continue
        node = sysfs.device("platform", name, roots) / "of_node"
        if name not in given and not _is_window(name, node):
            continue
        if name in shown:
            found.append(Window(name, shown[name].start, shown[name].size))
        elif name in given:
            found.append(given.pop(name))
        else:
            base, length = devicetree.registers(node, roots) or (addresses.mmio_base(name), 0)
            found.append(Window(name, base, length))
        given.pop(name, None)
    # A kernel without VIRTIO_MMIO_CMDLINE_DEVICES ignores these, but the windows exist.
    known = {window.base for window in found}
    for window in given.values():
        if window.base not in known:
            known.add(window.base)
            found.append(Window(window.name, window.base, window.length, registered=False))
    return sorted((one for one in found if only in (None, one.name)), key=lambda window: window.name)


def _is_window(name: str, node: Path) -> bool:
    """Whether a platform device is a window, by its node of the device tree; by its name where it has none."""
    models = devicetree.compatible(node)
    return addresses.is_mmio_platform_name(name) if models is None else "virtio,mmio" in models


def pages(base: int, length: int) -> range:
    """The pages of the CPU, by number, that a window is in: they are mapped whole, or not at all."""
    return range(base // CPU_PAGE, -(-(base + max(length, 1)) // CPU_PAGE))


def _device_of(line: IoRange) -> str | None:
    """The platform device that a line of /proc/iomem may name.

    A driver's own line has the name of its device, and behind that the one of the resource, which a device tree
    calls ``NODE@ADDRESS`` (devm_ioremap_resource of Linux).
    """
    words = line.name.split()
    return words[0] if 1 <= len(words) <= 2 else None


# --- the kernel's command line ------------------------------------------------------------------------------

_NUMBER = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*"  # as simple_strtoull takes it with base 0
_SIZE = Pattern(rf"({_NUMBER})?([kKmMgGtTpPeE]?)", re.ASCII)  # memparse
_PLACE = Pattern(rf"@\s*(-?)({_NUMBER}):\s*([0-9]+)", re.ASCII)
_ID = Pattern(r":\s*(-?[0-9]+)", re.ASCII)
_SHIFT = {letter: 10 * (index + 1) for index, letter in enumerate("kmgtpe")}


def _on_the_command_line(roots: Roots) -> Iterator[Window]:
    """The windows that Linux makes of ``virtio_mmio.device=SIZE@BASE:IRQ[:ID]`` (vm_cmdline_set, virtio_mmio.c).

    A device without an id gets the one after the last that was used or given. A value that is refused makes no
    device, but its id, where it had one, still counts as used.
    """
    next_id = 0
    for name, value in proc.parameters(proc.command_line(roots)):
        if name.replace("-", "_") != "virtio_mmio.device" or value is None:
            continue
        size = _SIZE.match(value)
        assert size is not None  # it matches nothing, too
        length = _integer(size[1] or "0") << _SHIFT.get(size[2].lower(), 0)
        place = _PLACE.match(value, size.end())
        if place is None:
            continue
        end = place.end()
        if (explicit := _ID.match(value, end)) is not None:
            next_id = _signed32(int(explicit[1][:32]))
            end = explicit.end()
        if end != len(value) or int(place[3][-32:]) % (1 << 32) == 0:
            continue  # EINVAL: something behind it, or no interrupt
        device = "virtio-mmio" if next_id == -1 else f"virtio-mmio.{next_id}"  # PLATFORM_DEVID_NONE
        next_id = _signed32(next_id + 1)
        base = _integer(place[2])
        if not place[1] and length > 0 and base + length <= 1 << 64:
            yield Window(device, base, length)


def _integer(text: str) -> int:
    """The value of a C literal, modulo 2^64."""
    base = 16 if text[:2].lower() == "0x" else 8 if text[0] == "0" else 10
    return int(text[:64], base) % (1 << 64)


def _signed32(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


# --- may it be mapped? --------------------------------------------------------------------------------------


def check_window(base: int, length: int, roots: Roots, *, address: str, named_only: bool = False) -> list[str]:
    """Check that a range of physical addresses, and the CPU pages around it, are a virtio-mmio window or unused.

    Args:
        base: The first address.
        length: Bytes.
        roots: Where to look.
        address: Its name in errors.
        named_only: Whether it must be a window that the kernel knows, and not unused addresses.

    Returns:
        The names of the windows in these pages.

    Raises:
        ForeignWindow: Other things have the addresses, or it is not a whole window.
        PermissionLack: ``/proc/iomem`` hides the addresses from this user.
    """
    start, end = base & -CPU_PAGE, (base + length + CPU_PAGE - 1) & -CPU_PAGE
    known = windows(roots)
    names = {window.name for window in known}
    ours: list[IoRange] = []
    for line in proc.iomem_addresses(roots):
        if not line.overlaps(start, end):
            continue
        device = _device_of(line)
        if device is not None and (device in names or addresses.is_mmio_platform_name(device)):
            ours.append(IoRange(line.start, line.end, device))
        elif not (_PASSIVE.fullmatch(line.name) and line.covers(start, end)):
            inside = line.overlaps(base, base + length)
            raise ForeignWindow(
                f"{address} is not mapped: "
                + ("it is" if inside else "its page has")
                + " memory of another device",
                seen=str(line),
                expected="a virtio-mmio window",
                remedy="uvirtio list shows the windows of this machine; compare the address with /proc/iomem",
            )
    # A window of a device tree is in that list only while a driver has it.
    listed = {line.name for line in ours}
    ours += [
        window.range or IoRange(window.base, window.base + 1, window.name)
        for window in known
        if window.registered and window.base is not None and window.name not in listed
    ]
    here = [line for line in ours if line.overlaps(start, end)]
    _check_whole(base, length, here, address, named_only)
    return list(dict.fromkeys(line.name for line in here))


def _check_whole(base: int, length: int, here: Sequence[IoRange], address: str, named_only: bool) -> None:
    touched = [line for line in here if line.overlaps(base, base + length)]
    for line in touched:
        if base != line.start or (line.size > 1 and line.end < base + length):
            raise ForeignWindow(
                f"{address} is not mapped: it is no whole window",
                seen=f"{base:#x}-{base + length - 1:#x} across {line}",
                expected="the beginning of a window",
                remedy=f"write mmio:{line.start:#x}",
            )
    if named_only and not touched:
        # On x86 a read where nothing is gives all ones; elsewhere it is a bus error, which ends this process.
        raise ForeignWindow(
            f"{address} is not mapped: the kernel knows of no window there",
            seen="no line of a virtio-mmio device in /proc/iomem, and none in sysfs",
            expected="one: on this CPU a read of nothing is fatal",
            remedy="uvirtio list shows the windows of this machine",
        )

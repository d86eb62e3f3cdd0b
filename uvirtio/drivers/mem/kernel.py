"""What this machine's kernel has of a memory device's region: it must not be unplugged under it."""

from __future__ import annotations

import re

from uvirtio.drivers.mem.block_table import Use
from uvirtio.drivers.mem.driver import Mem
from uvirtio.errors import ConfigError
from uvirtio.host.roots import Roots

_LINE = re.compile(r"\s*([0-9a-f]+)-([0-9a-f]+) : (.*)")
_BLOCK = re.compile(r"memory([0-9]{1,9})")
_RAM = "System RAM"


def system_ram(roots: Roots) -> list[tuple[int, int, str]]:
    """The kernel's memory as (first address, bytes, name), from /proc/iomem.

    Without CAP_SYS_ADMIN that file shows zeros; then it is the memory blocks in sysfs, which everybody may see,
    whatever their state. Empty where neither is there.
    """
    try:
        text = (roots.proc / "iomem").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None and match[3].startswith(_RAM):
            first, last = int(match[1], 16), int(match[2], 16)
            if 0 < first <= last:
                found.append((first, last - first + 1, match[3]))
    return found or _memory_blocks(roots)


def _memory_blocks(roots: Roots) -> list[tuple[int, int, str]]:
    folder = roots.sys / "devices/system/memory"
    try:
        size = int((folder / "block_size_bytes").read_text(), 16)
        names = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return []
    numbers = (int(match[1]) for name in names if (match := _BLOCK.fullmatch(name)))
    return [(number * size, size, f"{_RAM}, memory{number}") for number in sorted(numbers)]


def note_kernel_use(mem: Mem, roots: Roots) -> list[Use]:
    """Pin what the kernel uses of this device's plugged memory, so that nothing unplugs it; the pins.

    For a device of this machine, not of a ``qemu:`` one. Raises ConfigError where the kernel has memory in the
    region that is not plugged: then this is no region of the device's.
    """
    config = mem.config()
    end = config.addr + config.region_size
    pins: list[Use] = []
    for first, size, name in system_ram(roots):
        low, high = max(first, config.addr), min(first + size, end)
        if low >= high:
            continue
        offset = low - config.addr
        if not mem.block_table.plugged.covers(*mem.block_table.blocks_of(offset, high - low)):
            raise ConfigError(
                f"the region of {mem.device.address} lies over memory that the kernel has",
                seen=f"{name} at {low:#x}..{high:#x}, and not all of it is plugged",
                expected="a region of its own (5.15.4)",
                remedy="leave this device alone and look at /proc/iomem",
            )
        pins.append(mem.block_table.pin(offset, high - low, f"the kernel ({name})"))
    return pins

"""The memory of a memory device that this machine's kernel uses, which must not be unplugged."""

from __future__ import annotations

from uvirtio.device import Device
from uvirtio.drivers.mem.block_table import Use
from uvirtio.drivers.mem.driver import Mem
from uvirtio.errors import ConfigError
from uvirtio.host.memory import system_ram
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import ProvidesMemory


def of_this_machine(device: Device) -> bool:
    """Return whether the region is memory of this machine, and not of a ``qemu:``, scripted or vhost-user device.

    Args:
        device: The memory device.
    """
    backend = device.transport.backend
    return not isinstance(backend, ProvidesMemory) and backend.bus != "vhost-user"


def note_kernel_use(mem: Mem, roots: Roots) -> list[Use]:
    """Pin the plugged memory that this machine's kernel uses, so that it is not unplugged.

    Args:
        mem: A device of this machine (``of_this_machine``).
        roots: Whose /proc/iomem to read.

    Returns:
        The pins.

    Raises:
        ConfigError: The kernel has memory in the region that is not plugged, so the region is not the device's.
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

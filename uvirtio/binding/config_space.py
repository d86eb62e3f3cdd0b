"""PCI configuration space as sysfs has it, read without touching the device behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from uvirtio.errors import DeviceGone, PermissionLack
from uvirtio.host import privilege
from uvirtio.interfaces.values import BarInfo
from uvirtio.spec import pci
from uvirtio.transports.pci_caps import VirtioCapability, copied, pci_cfg_data, walk_capabilities


class ConfigSpace(NamedTuple):
    """The first 256 bytes of PCI configuration space, and the virtio capabilities in them."""

    data: bytes
    capabilities: tuple[VirtioCapability, ...]
    hidden: tuple[tuple[int, int], ...]
    """Ranges that were not read, as (offset, length) in bytes: they are zero in ``data``."""


def config_bytes_at(path: Path, bar_list: list[BarInfo | None] | None = None) -> ConfigSpace:
    """Configuration space by its ``config`` file; pci_cfg_data (4.1.4.9) is not read.

    Args:
        path: The file.
        bar_list: The BARs that capabilities are checked against; None: they are not.

    Raises:
        PermissionLack: This user may read only the first 64 bytes; the rest takes CAP_SYS_ADMIN.
        DeviceGone: The file is not there or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise _hidden(path) from error
    except OSError as error:
        raise DeviceGone(f"{path} cannot be opened", seen=error.strerror, expected="a PCI function") from error
    try:
        read = _config_reader(fd, path)
        caps = walk_capabilities(read, None if bar_list is None else lambda index: _pick(bar_list, index))
        hidden = pci_cfg_data(caps)
        data = copied(read, pci.CONFIG_SIZE, hidden)
    finally:
        os.close(fd)
    return ConfigSpace(data, tuple(caps), hidden)


def config_edges(path: Path) -> tuple[bytes, bytes]:
    """What ``config_bytes_at`` leaves out: the header for a user who may read no more, and what is beyond 256.

    Args:
        path: The file.

    Returns:
        The first 64 bytes, and those from 256 to 4096 of a PCI Express function; empty where they cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b"", b""
    try:
        extended = os.pread(fd, pci.EXPRESS_CONFIG_SIZE - pci.CONFIG_SIZE, pci.CONFIG_SIZE)
        return os.pread(fd, pci.STANDARD_CONFIG_SIZE, 0), extended
    except OSError:
        return b"", b""
    finally:
        os.close(fd)


def _config_reader(fd: int, path: Path) -> Callable[[int, int], int]:
    def read(offset: int, width: int) -> int:
        try:
            data = os.pread(fd, width, offset)
        except OSError as error:
            raise DeviceGone(f"{path} cannot be read", seen=error.strerror, expected="a PCI function") from error
        if len(data) != width:
            if offset >= pci.STANDARD_CONFIG_SIZE:
                raise _hidden(path)
            raise DeviceGone(f"{path} is cut short", seen=f"{len(data)} bytes", expected=f"{width} bytes")
        return int.from_bytes(data, "little")

    return read


def _hidden(path: Path) -> PermissionLack:
    return PermissionLack(
        "the capabilities are hidden: configuration space beyond byte 64 needs CAP_SYS_ADMIN",
        seen=f"a short {path}",
        expected="256 bytes",
        remedy=privilege.remedy(
            "run this as root", path=path, also="bind the function to vfio-pci and use its node"
        ),
    )


def _pick(bar_list: list[BarInfo | None], index: int) -> BarInfo | None:
    return bar_list[index] if 0 <= index < len(bar_list) else None

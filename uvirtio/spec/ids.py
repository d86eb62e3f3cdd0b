"""Device types, their names and their PCI ids (5, 4.1.2.1).

Names are those that QEMU and Linux use; a type without one here is ``unknown(N)``.
"""

from __future__ import annotations

import re

from uvirtio.errors import UsageError
from uvirtio.spec.pci import DEVICE_FIRST, DEVICE_LAST, DEVICE_MODERN, VIRTIO_VENDOR
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Final

VENDOR: Final = VIRTIO_VENDOR


class DeviceType(NamedTuple):
    """One line of the table in chapter 5."""

    id: int
    name: str
    section: str = ""
    """The section about the type; empty where the standard has only its id."""
    kernel_driver: str | None = None
    """The name of Linux's driver in /sys/bus/virtio/drivers, if it has one."""


TYPES: Final[tuple[DeviceType, ...]] = (
    DeviceType(1, "net", "5.1", "virtio_net"),
    DeviceType(2, "blk", "5.2", "virtio_blk"),
    DeviceType(3, "console", "5.3", "virtio_console"),
    DeviceType(4, "rng", "5.4", "virtio_rng"),
    DeviceType(5, "balloon", "5.5", "virtio_balloon"),
    DeviceType(6, "iomem"),
    DeviceType(7, "rpmsg", "", "virtio_rpmsg_bus"),
    DeviceType(8, "scsi", "5.6", "virtio_scsi"),
    DeviceType(9, "9p", "", "9pnet_virtio"),
    DeviceType(10, "mac80211-wlan"),
    DeviceType(11, "rproc-serial", "", "virtio_rproc_serial"),
    DeviceType(12, "caif", "", "caif-virtio"),
    DeviceType(13, "memory-balloon"),
    DeviceType(16, "gpu", "5.7", "virtio_gpu"),
    DeviceType(17, "rtc", "5.23", "virtio_rtc"),
    DeviceType(18, "input", "5.8", "virtio_input"),
    DeviceType(19, "vsock", "5.10", "vmw_vsock_virtio_transport"),
    DeviceType(20, "crypto", "5.9", "virtio_crypto"),
    DeviceType(21, "signal-dist"),
    DeviceType(22, "pstore"),
    DeviceType(23, "iommu", "5.13", "virtio_iommu"),
    DeviceType(24, "mem", "5.15", "virtio_mem"),
    DeviceType(25, "sound", "5.14", "virtio_snd"),
    DeviceType(26, "fs", "5.11", "virtiofs"),
    DeviceType(27, "pmem", "5.19", "virtio_pmem"),
    DeviceType(28, "rpmb", "5.12"),
    DeviceType(29, "mac80211-hwsim", "", "mac80211_hwsim"),
    DeviceType(30, "video-encoder"),
    DeviceType(31, "video-decoder"),
    DeviceType(32, "scmi", "5.17", "scmi-virtio"),
    DeviceType(33, "nitro-sec-mod", "", "nsm"),
    DeviceType(34, "i2c", "5.16", "i2c_virtio"),
    DeviceType(35, "watchdog"),
    DeviceType(36, "can", "5.20", "virtio_can"),
    DeviceType(37, "dmabuf"),
    DeviceType(38, "param-serv"),
    DeviceType(39, "audio-policy"),
    DeviceType(40, "bt", "", "virtio_bt"),
    DeviceType(41, "gpio", "5.18", "gpio-virtio"),
    DeviceType(42, "rdma"),
    DeviceType(43, "camera"),
    DeviceType(44, "ism"),
    DeviceType(45, "spi", "5.21", "spi-virtio"),
    DeviceType(46, "tee"),
    DeviceType(47, "cpu-balloon"),
    DeviceType(48, "media", "5.22", "virtio_media"),
)

_BY_ID: Final = {entry.id: entry for entry in TYPES}
_BY_NAME: Final = {entry.name: entry for entry in TYPES}

# Other common names, accepted but never printed.
_ALIASES: Final = {"block": "blk", "entropy": "rng", "memory": "mem", "network": "net", "snd": "sound"}

# Transitional PCI device ids (4.1.2.1), assigned before the rule 0x1040 + type.
TRANSITIONAL: Final[dict[int, int]] = {
    0x1000: 1,  # net
    0x1001: 2,  # blk
    0x1002: 5,  # balloon
    0x1003: 3,  # console
    0x1004: 8,  # scsi
    0x1005: 4,  # rng
    0x1009: 9,  # 9p
}


def type_name(device_id: int) -> str:
    """Return the name of a device type: ``balloon`` for 5; ``unknown(N)`` where there is none.

    0 means no device (4.2.2.2).
    """
    entry = _BY_ID.get(device_id)
    return entry.name if entry else f"unknown({device_id})"


def type_id(name: str) -> int | None:
    """Return the id of a device type: 5 for ``balloon`` and ``virtio-balloon``, N for ``unknown(N)``.

    Args:
        name: The name, in upper or lower case.

    Returns:
        The id; None where there is no such name.
    """
    plain = name.lower().removeprefix("virtio-").removeprefix("virtio_")
    entry = _BY_NAME.get(_ALIASES.get(plain, plain))
    if entry is not None:
        return entry.id
    match = re.fullmatch(r"unknown\((\d{1,5})\)", plain, re.ASCII)
    return int(match[1]) if match else None


def require_type(name: str) -> int:
    """The device id of a type name, as ``type_id`` knows it.

    Raises:
        UsageError: There is no such type; ``expected`` has all of them.
    """
    device_id = type_id(name)
    if device_id is None:
        raise UsageError(
            f"{name!r} is not a type of virtio device",
            seen=name,
            expected=", ".join(entry.name for entry in TYPES),
        )
    return device_id


def section(device_id: int) -> str:
    """Return the section of the standard about a device type; an empty string if there is none."""
    entry = _BY_ID.get(device_id)
    return entry.section if entry else ""


def kernel_driver(device_id: int) -> str | None:
    """Return the name of Linux's driver for a type in /sys/bus/virtio/drivers; None if it has none."""
    entry = _BY_ID.get(device_id)
    return entry.kernel_driver if entry else None


def is_virtio_pci(vendor: int, device: int) -> bool:
    """Return whether PCI vendor and device ids are in virtio's range, for any revision (4.1.2, 4.1.2.2)."""
    return vendor == VENDOR and DEVICE_FIRST <= device <= DEVICE_LAST


def device_id_of_pci(vendor: int, device: int) -> int | None:
    """Return the virtio device type for PCI vendor and device ids.

    A legacy or transitional device with an id of the old range that is not in ``TRANSITIONAL`` has its type in the
    subsystem id (4.1.2.3), which has to be read from the device.

    Returns:
        The type; None where the ids are not virtio's, or do not tell.
    """
    if not is_virtio_pci(vendor, device):
        return None
    if device > DEVICE_MODERN:
        return device - DEVICE_MODERN
    return TRANSITIONAL.get(device)


def is_transitional_pci(vendor: int, device: int) -> bool:
    """Return whether PCI ids are of the old range: a transitional or a legacy device (4.1.2.1)."""
    return vendor == VENDOR and DEVICE_FIRST <= device < DEVICE_MODERN

"""Virtio over MMIO (4.2): the registers, all 32 bits wide. Offsets and widths in bytes."""

from __future__ import annotations

from enum import Enum, IntFlag

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

MAGIC: Final = 0x74726976  # "virt"
VERSION: Final = 2
VERSION_LEGACY: Final = 1  # 4.2.4
PLACEHOLDER: Final = 0  # DeviceID of an empty window (4.2.2.2)

MAGIC_VALUE_REG: Final = 0x000
VERSION_REG: Final = 0x004
DEVICE_ID: Final = 0x008
VENDOR_ID: Final = 0x00C
DEVICE_FEATURES: Final = 0x010
DEVICE_FEATURES_SEL: Final = 0x014
DRIVER_FEATURES: Final = 0x020
DRIVER_FEATURES_SEL: Final = 0x024
QUEUE_SEL: Final = 0x030
QUEUE_SIZE_MAX: Final = 0x034
QUEUE_SIZE: Final = 0x038
QUEUE_READY: Final = 0x044
QUEUE_NOTIFY: Final = 0x050
INTERRUPT_STATUS: Final = 0x060
INTERRUPT_ACK: Final = 0x064
STATUS: Final = 0x070
QUEUE_DESC_LOW: Final = 0x080
QUEUE_DESC_HIGH: Final = 0x084
QUEUE_DRIVER_LOW: Final = 0x090
QUEUE_DRIVER_HIGH: Final = 0x094
QUEUE_DEVICE_LOW: Final = 0x0A0
QUEUE_DEVICE_HIGH: Final = 0x0A4
SHM_SEL: Final = 0x0AC
SHM_LEN_LOW: Final = 0x0B0
SHM_LEN_HIGH: Final = 0x0B4
SHM_BASE_LOW: Final = 0x0B8
SHM_BASE_HIGH: Final = 0x0BC
QUEUE_RESET: Final = 0x0C0
CONFIG_GENERATION: Final = 0x0FC
CONFIG: Final = 0x100

# Legacy (4.2.4).
GUEST_PAGE_SIZE: Final = 0x028
QUEUE_ALIGN: Final = 0x03C
QUEUE_PFN: Final = 0x040

NO_SHM: Final = 0xFFFFFFFFFFFFFFFF  # SHMLen of a region that does not exist (4.2.2)
CONTROL_SIZE: Final = 0x100  # everything before the device's configuration
WINDOW_MIN_SIZE: Final = 0x100
WINDOW_SIZE: Final = 0x200  # what QEMU gives each device


class Interrupt(IntFlag):
    """InterruptStatus and InterruptACK (4.2.2); other bits are masked off."""

    USED_BUFFER = 0x1
    CONFIG_CHANGE = 0x2


class Way(Enum):
    """Access rights of a register: read, write or both; other accesses are forbidden (4.2.2.2)."""

    R = "R"
    W = "W"
    RW = "RW"


REGISTERS: Final[tuple[tuple[F, Way], ...]] = (
    (F("MagicValue", 0x000, 4), Way.R),
    (F("Version", 0x004, 4), Way.R),
    (F("DeviceID", 0x008, 4), Way.R),
    (F("VendorID", 0x00C, 4), Way.R),
    (F("DeviceFeatures", 0x010, 4), Way.R),
    (F("DeviceFeaturesSel", 0x014, 4), Way.W),
    (F("DriverFeatures", 0x020, 4), Way.W),
    (F("DriverFeaturesSel", 0x024, 4), Way.W),
    (F("QueueSel", 0x030, 4), Way.W),
    (F("QueueSizeMax", 0x034, 4), Way.R),
    (F("QueueSize", 0x038, 4), Way.W),
    (F("QueueReady", 0x044, 4), Way.RW),
    (F("QueueNotify", 0x050, 4), Way.W),
    (F("InterruptStatus", 0x060, 4), Way.R),
    (F("InterruptACK", 0x064, 4), Way.W),
    (F("Status", 0x070, 4), Way.RW),
    (F("QueueDescLow", 0x080, 4), Way.W),
    (F("QueueDescHigh", 0x084, 4), Way.W),
    (F("QueueDriverLow", 0x090, 4), Way.W),
    (F("QueueDriverHigh", 0x094, 4), Way.W),
    (F("QueueDeviceLow", 0x0A0, 4), Way.W),
    (F("QueueDeviceHigh", 0x0A4, 4), Way.W),
    (F("SHMSel", 0x0AC, 4), Way.W),
    (F("SHMLenLow", 0x0B0, 4), Way.R),
    (F("SHMLenHigh", 0x0B4, 4), Way.R),
    (F("SHMBaseLow", 0x0B8, 4), Way.R),
    (F("SHMBaseHigh", 0x0BC, 4), Way.R),
    (F("QueueReset", 0x0C0, 4), Way.RW),
    (F("ConfigGeneration", 0x0FC, 4), Way.R),
)
"""The registers of version 2 (4.2.2); nothing else below CONFIG may be touched (4.2.2.2)."""

LEGACY_REGISTERS: Final[tuple[tuple[F, Way], ...]] = (
    (F("MagicValue", 0x000, 4), Way.R),
    (F("Version", 0x004, 4), Way.R),
    (F("DeviceID", 0x008, 4), Way.R),
    (F("VendorID", 0x00C, 4), Way.R),
    (F("HostFeatures", 0x010, 4), Way.R),
    (F("HostFeaturesSel", 0x014, 4), Way.W),
    (F("GuestFeatures", 0x020, 4), Way.W),
    (F("GuestFeaturesSel", 0x024, 4), Way.W),
    (F("GuestPageSize", 0x028, 4), Way.W),
    (F("QueueSel", 0x030, 4), Way.W),
    (F("QueueSizeMax", 0x034, 4), Way.R),
    (F("QueueSize", 0x038, 4), Way.W),
    (F("QueueAlign", 0x03C, 4), Way.W),
    (F("QueuePFN", 0x040, 4), Way.RW),
    (F("QueueNotify", 0x050, 4), Way.W),
    (F("InterruptStatus", 0x060, 4), Way.R),
    (F("InterruptACK", 0x064, 4), Way.W),
    (F("Status", 0x070, 4), Way.RW),
)
"""The registers of version 1 (4.2.4)."""


def layout(legacy: bool = False) -> Layout:
    """Return the registers as fields, without their access rights.

    Args:
        legacy: Those of version 1 (4.2.4), else of version 2 (4.2.2).
    """
    return tuple(field for field, _ in (LEGACY_REGISTERS if legacy else REGISTERS))

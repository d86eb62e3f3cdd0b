"""Virtio over PCI (4.1), and the parts of PCI itself that it uses.

Numbers of PCI proper are those of the PCI Local Bus Specification 3.0 (chapter 6) and of <linux/pci_regs.h>.
Offsets and widths in bytes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout
from uvirtio.spec.page import PFN_SHIFT, VIRTIO_PAGE
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

# --- PCI configuration space (PCI 3.0, 6.1) ---------------------------------------------------------------

CFG_VENDOR_ID: Final = 0x00  # 2 bytes
CFG_DEVICE_ID: Final = 0x02  # 2 bytes
CFG_COMMAND: Final = 0x04  # 2 bytes
CFG_STATUS: Final = 0x06  # 2 bytes
CFG_REVISION_ID: Final = 0x08  # 1 byte; a driver puts no condition on it (4.1.2.2)
CFG_CLASS_CODE: Final = 0x09  # 3 bytes: programming interface, subclass, class
CFG_HEADER_TYPE: Final = 0x0E  # 1 byte
CFG_BAR0: Final = 0x10  # 4 bytes each
CFG_SUBSYSTEM_VENDOR_ID: Final = 0x2C  # 2 bytes
CFG_SUBSYSTEM_ID: Final = 0x2E  # 2 bytes; a legacy device has its virtio type here (4.1.2.3)
CFG_CAPABILITIES_POINTER: Final = 0x34  # 1 byte
CFG_INTERRUPT_LINE: Final = 0x3C  # 1 byte
CFG_INTERRUPT_PIN: Final = 0x3D  # 1 byte; 0: no INTx

CFG_HEADER: Final[Layout] = (
    F("vendor_id", 0x00, 2),
    F("device_id", 0x02, 2),
    F("command", 0x04, 2),
    F("status", 0x06, 2),
    F("revision_id", 0x08, 1),
    F("class_code", 0x09, 3),
    F("cache_line_size", 0x0C, 1),
    F("latency_timer", 0x0D, 1),
    F("header_type", 0x0E, 1),
    F("bist", 0x0F, 1),
    *(F(f"bar{number}", 0x10 + 4 * number, 4) for number in range(6)),
    F("cardbus_cis_pointer", 0x28, 4),
    F("subsystem_vendor_id", 0x2C, 2),
    F("subsystem_id", 0x2E, 2),
    F("expansion_rom", 0x30, 4),
    F("capabilities_pointer", 0x34, 1),
    F("interrupt_line", 0x3C, 1),
    F("interrupt_pin", 0x3D, 1),
    F("min_gnt", 0x3E, 1),
    F("max_lat", 0x3F, 1),
)
"""The header of a function that is no bridge (PCI 3.0, 6.1)."""

STANDARD_CONFIG_SIZE: Final = 0x40
CONFIG_SIZE: Final = 0x100
EXPRESS_CONFIG_SIZE: Final = 0x1000

BARS: Final = 6
MAX_BAR: Final = 5  # larger values of virtio_pci_cap.bar are reserved (4.1.4)


class Command(IntFlag):
    """The command register (PCI 3.0, 6.2.2)."""

    IO = 0x1
    MEMORY = 0x2
    MASTER = 0x4
    INTX_DISABLE = 0x400


STATUS_INTERRUPT: Final = 0x08  # INTx is asserted (PCI 3.0, 6.2.3)
STATUS_CAP_LIST: Final = 0x10  # there is a capability list

HEADER_TYPE_MASK: Final = 0x7F
HEADER_MULTI_FUNCTION: Final = 0x80

BAR_IO: Final = 0x1  # bit 0: an I/O BAR (PCI 3.0, 6.2.5.1)
BAR_IO_MASK: Final = 0xFFFFFFFC
BAR_TYPE_MASK: Final = 0x6
BAR_TYPE_64: Final = 0x4  # the next BAR holds the upper half
BAR_PREFETCH: Final = 0x8
BAR_MEMORY_MASK: Final = 0xFFFFFFF0

# --- the capability list (PCI 3.0, 6.7) -------------------------------------------------------------------

CAP_ID: Final = 0  # 1 byte
CAP_NEXT: Final = 1  # 1 byte; the two low bits are reserved, mask them off
CAP_NEXT_MASK: Final = 0xFC
CAP_FIRST: Final = 0x40  # a pointer below lies in the header and is a broken list
MAX_CAPABILITIES: Final = (CONFIG_SIZE - STANDARD_CONFIG_SIZE) // 4  # a longer walk is a loop


class CapId(IntEnum):
    """Standard capability ids (PCI Code and ID Assignment, 2)."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOT_ID = 0x04
    MSI = 0x05
    HOT_SWAP = 0x06
    PCIX = 0x07
    HYPERTRANSPORT = 0x08
    VENDOR = 0x09  # virtio_pci_cap is one of these (4.1.4)
    DEBUG = 0x0A
    CPCI = 0x0B
    HOT_PLUG = 0x0C
    BRIDGE_SSVID = 0x0D
    AGP8 = 0x0E
    SECURE_DEVICE = 0x0F
    EXPRESS = 0x10
    MSIX = 0x11
    SATA = 0x12
    AF = 0x13
    EA = 0x14


EXT_CAP_SRIOV: Final = 0x0010  # an extended capability, from offset 0x100 of PCI Express

# Power management: a function that is not in D0 does not answer.
PM_CONTROL: Final = 4  # 2 bytes
PM_CONTROL_STATE_MASK: Final = 0x3
PM_CONTROL_NO_SOFT_RESET: Final = 0x8

# PCI Express capability: whether a function level reset is possible.
EXPRESS_DEVICE_CAP: Final = 4  # 4 bytes
EXPRESS_DEVICE_CAP_FLR: Final = 1 << 28
AF_CAP: Final = 3  # 1 byte
AF_CAP_FLR: Final = 0x2

# --- MSI-X (PCI 3.0, 6.8.2) -------------------------------------------------------------------------------

MSIX_CONTROL: Final = 2  # 2 bytes
MSIX_CONTROL_SIZE_MASK: Final = 0x7FF  # table size, less one
MSIX_CONTROL_MASK_ALL: Final = 0x4000
MSIX_CONTROL_ENABLE: Final = 0x8000
MSIX_TABLE: Final = 4  # 4 bytes: BAR in bits 0-2, offset above
MSIX_PBA: Final = 8  # 4 bytes: the same for the pending bits
MSIX_BIR_MASK: Final = 0x7
MSIX_OFFSET_MASK: Final = 0xFFFFFFF8
MSIX_CAP_SIZE: Final = 12
MSIX_MAX_VECTORS: Final = 2048

MSIX_ENTRY_SIZE: Final = 16
MSIX_ENTRY: Final[Layout] = (
    F("address_low", 0, 4),
    F("address_high", 4, 4),
    F("data", 8, 4),
    F("vector_control", 12, 4),
)
MSIX_ENTRY_MASKED: Final = 0x1  # bit 0 of vector_control

# --- ids (4.1.2) ------------------------------------------------------------------------------------------

VIRTIO_VENDOR: Final = 0x1AF4
DEVICE_FIRST: Final = 0x1000
DEVICE_MODERN: Final = 0x1040  # plus the device type (4.1.2.1)
DEVICE_LAST: Final = 0x107F

# --- virtio_pci_cap (4.1.4) -------------------------------------------------------------------------------


class CfgType(IntEnum):
    """What a virtio vendor capability describes; other values are reserved and skipped (4.1.4.1)."""

    COMMON = 1  # VIRTIO_PCI_CAP_COMMON_CFG, 4.1.4.3
    NOTIFY = 2  # VIRTIO_PCI_CAP_NOTIFY_CFG, 4.1.4.4
    ISR = 3  # VIRTIO_PCI_CAP_ISR_CFG, 4.1.4.5
    DEVICE = 4  # VIRTIO_PCI_CAP_DEVICE_CFG, 4.1.4.6
    PCI_CFG = 5  # VIRTIO_PCI_CAP_PCI_CFG, 4.1.4.9
    SHARED_MEMORY = 8  # VIRTIO_PCI_CAP_SHARED_MEMORY_CFG, 4.1.4.7
    VENDOR = 9  # VIRTIO_PCI_CAP_VENDOR_CFG, 4.1.4.8


CFG_TYPE_NAMES: Final[dict[int, str]] = {
    CfgType.COMMON: "common",
    CfgType.NOTIFY: "notify",
    CfgType.ISR: "isr",
    CfgType.DEVICE: "device",
    CfgType.PCI_CFG: "pci_cfg",
    CfgType.SHARED_MEMORY: "shared_memory",
    CfgType.VENDOR: "vendor",
}


def cfg_type_name(cfg_type: int) -> str:
    """Return the name of a cfg_type: ``common``, ``notify`` and so on; ``unknown`` for a reserved one."""
    return CFG_TYPE_NAMES.get(cfg_type, "unknown")


CAP: Final[Layout] = (
    F("cap_vndr", 0, 1),  # CapId.VENDOR
    F("cap_next", 1, 1),
    F("cap_len", 2, 1),  # may be larger than what is defined (4.1.4.1)
    F("cfg_type", 3, 1),
    F("bar", 4, 1),
    F("id", 5, 1),  # shmid of a shared memory region
    F("padding", 6, 2),
    F("offset", 8, 4),
    F("length", 12, 4),
)
CAP_SIZE: Final = 16
CAP_LEN: Final = 2
CAP_CFG_TYPE: Final = 3
CAP_BAR: Final = 4
CAP_SHMID: Final = 5
CAP_OFFSET: Final = 8
CAP_LENGTH: Final = 12

NOTIFY_CAP_MULTIPLIER: Final = 16  # 4 bytes: notify_off_multiplier (4.1.4.4)
NOTIFY_CAP_SIZE: Final = 20
PCI_CFG_CAP_DATA: Final = 16  # 4 bytes: the window (4.1.4.9)
PCI_CFG_CAP_SIZE: Final = 20
CAP64_OFFSET_HIGH: Final = 16  # 4 bytes: virtio_pci_cap64 (4.1.4.7)
CAP64_LENGTH_HIGH: Final = 20  # 4 bytes
CAP64_SIZE: Final = 24
VENDOR_CAP_VENDOR_ID: Final = 4  # 2 bytes, where others have bar and id (4.1.4.8)
VENDOR_CAP_SIZE: Final = 6

CAP_SIZES: Final[dict[int, int]] = {
    CfgType.COMMON: CAP_SIZE,
    CfgType.NOTIFY: NOTIFY_CAP_SIZE,
    CfgType.ISR: CAP_SIZE,
    CfgType.DEVICE: CAP_SIZE,
    CfgType.PCI_CFG: PCI_CFG_CAP_SIZE,
    CfgType.SHARED_MEMORY: CAP64_SIZE,
    CfgType.VENDOR: VENDOR_CAP_SIZE,
}
"""The smallest ``cap_len`` of a usable capability of each type."""

CAP_ALIGNMENT: Final[dict[int, int]] = {
    CfgType.COMMON: 4,  # 4.1.4.3.1
    CfgType.NOTIFY: 2,  # 4.1.4.4.1; 4 with NOTIFICATION_DATA
    CfgType.ISR: 1,  # 4.1.4.5.1
    CfgType.DEVICE: 4,  # 4.1.4.6.1
}
"""The alignment of ``offset`` in a capability of each type, in bytes."""

# --- virtio_pci_common_cfg (4.1.4.3) ----------------------------------------------------------------------

COMMON_CFG: Final[Layout] = (
    F("device_feature_select", 0x00, 4),
    F("device_feature", 0x04, 4),
    F("driver_feature_select", 0x08, 4),
    F("driver_feature", 0x0C, 4),
    F("config_msix_vector", 0x10, 2),
    F("num_queues", 0x12, 2),
    F("device_status", 0x14, 1),
    F("config_generation", 0x15, 1),
    F("queue_select", 0x16, 2),
    F("queue_size", 0x18, 2),
    F("queue_msix_vector", 0x1A, 2),
    F("queue_enable", 0x1C, 2),
    F("queue_notify_off", 0x1E, 2),
    F("queue_desc", 0x20, 8),
    F("queue_driver", 0x28, 8),
    F("queue_device", 0x30, 8),
    F("queue_notif_config_data", 0x38, 2),  # with NOTIF_CONFIG_DATA
    F("queue_reset", 0x3A, 2),  # with RING_RESET
    F("admin_queue_index", 0x3C, 2),  # with ADMIN_VQ
    F("admin_queue_num", 0x3E, 2),  # with ADMIN_VQ
)
COMMON_CFG_READ_ONLY: Final = frozenset(
    {
        "device_feature",
        "num_queues",
        "config_generation",
        "queue_notify_off",
        "queue_notif_config_data",
        "admin_queue_index",
        "admin_queue_num",
    }
)
"""Fields that a driver never writes (4.1.4.3.2)."""

COMMON_DEVICE_FEATURE_SELECT: Final = 0x00
COMMON_DEVICE_FEATURE: Final = 0x04
COMMON_DRIVER_FEATURE_SELECT: Final = 0x08
COMMON_DRIVER_FEATURE: Final = 0x0C
COMMON_CONFIG_MSIX_VECTOR: Final = 0x10
COMMON_NUM_QUEUES: Final = 0x12
COMMON_DEVICE_STATUS: Final = 0x14
COMMON_CONFIG_GENERATION: Final = 0x15
COMMON_QUEUE_SELECT: Final = 0x16
COMMON_QUEUE_SIZE: Final = 0x18
COMMON_QUEUE_MSIX_VECTOR: Final = 0x1A
COMMON_QUEUE_ENABLE: Final = 0x1C
COMMON_QUEUE_NOTIFY_OFF: Final = 0x1E
COMMON_QUEUE_DESC: Final = 0x20
COMMON_QUEUE_DRIVER: Final = 0x28
COMMON_QUEUE_DEVICE: Final = 0x30
COMMON_QUEUE_NOTIF_CONFIG_DATA: Final = 0x38
COMMON_QUEUE_RESET: Final = 0x3A
COMMON_ADMIN_QUEUE_INDEX: Final = 0x3C
COMMON_ADMIN_QUEUE_NUM: Final = 0x3E

COMMON_CFG_MIN_SIZE: Final = 0x38  # everything that does not depend on a feature (4.1.4.3)
COMMON_CFG_SIZE: Final = 0x40  # with all the fields above
FEATURE_WORDS: Final = 4  # 128 bits; net defines bits up to 69 (5.1.3)

NO_VECTOR: Final = 0xFFFF  # VIRTIO_MSI_NO_VECTOR (4.1.5.1.2)


class Isr(IntFlag):
    """The ISR byte; reading it clears it and drops INTx (4.1.4.5)."""

    QUEUE = 0x1
    CONFIG = 0x2


ISR_QUEUE: Final = Isr.QUEUE
ISR_CONFIG: Final = Isr.CONFIG
ISR_SIZE: Final = 1

NOTIFY_WIDTH: Final = 2  # 4.1.5.2
NOTIFY_DATA_WIDTH: Final = 4  # with NOTIFICATION_DATA


# --- the legacy interface (4.1.4.10) ----------------------------------------------------------------------

LEGACY_BAR: Final = 0
LEGACY_DEVICE_FEATURES: Final = 0  # 4 bytes
LEGACY_DRIVER_FEATURES: Final = 4  # 4 bytes
LEGACY_QUEUE_ADDRESS: Final = 8  # 4 bytes: physical address / 4096
LEGACY_QUEUE_SIZE: Final = 12  # 2 bytes, read only
LEGACY_QUEUE_SELECT: Final = 14  # 2 bytes
LEGACY_QUEUE_NOTIFY: Final = 16  # 2 bytes
LEGACY_DEVICE_STATUS: Final = 18  # 1 byte
LEGACY_ISR: Final = 19  # 1 byte
LEGACY_CONFIG_VECTOR: Final = 20  # 2 bytes, only while MSI-X is on
LEGACY_QUEUE_VECTOR: Final = 22  # 2 bytes, only while MSI-X is on
LEGACY_HEADER: Final[Layout] = (
    F("device_features", LEGACY_DEVICE_FEATURES, 4),
    F("driver_features", LEGACY_DRIVER_FEATURES, 4),
    F("queue_address", LEGACY_QUEUE_ADDRESS, 4),
    F("queue_size", LEGACY_QUEUE_SIZE, 2),
    F("queue_select", LEGACY_QUEUE_SELECT, 2),
    F("queue_notify", LEGACY_QUEUE_NOTIFY, 2),
    F("device_status", LEGACY_DEVICE_STATUS, 1),
    F("isr_status", LEGACY_ISR, 1),
    F("config_msix_vector", LEGACY_CONFIG_VECTOR, 2),
    F("queue_msix_vector", LEGACY_QUEUE_VECTOR, 2),
)
"""The header in BAR 0; the two vectors are there only while MSI-X is on."""
LEGACY_QUEUE_ADDRESS_SHIFT: Final = PFN_SHIFT  # 4.1.5.1.3.1
LEGACY_QUEUE_ALIGN: Final = VIRTIO_PAGE


def legacy_config_offset(msix_enabled: bool) -> int:
    """Return the offset of the device configuration in BAR 0, which depends on MSI-X (4.1.4.10)."""
    return 24 if msix_enabled else 20

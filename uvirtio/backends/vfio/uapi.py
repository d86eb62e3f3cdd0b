"""``<linux/vfio.h>`` as ctypes: the ioctl numbers, flags and structures that this binding uses.

The names are the kernel's, without a prefix. ``tests/unit/backends/test_vfio_uapi.py`` compares every number,
size and offset with the header of the machine it runs on. ctypes is used for ioctl arguments and nothing else.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint16, c_uint32, c_uint64

VFIO_API_VERSION = 0

_VFIO_TYPE = ord(";") << 8
_VFIO_BASE = 100


def _io(number: int) -> int:
    """``_IO(VFIO_TYPE, VFIO_BASE + number)``: VFIO encodes neither size nor direction; ``argsz`` does that."""
    return _VFIO_TYPE | (_VFIO_BASE + number)


# --- IOMMU types and extensions (VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU) --------------------------------------

VFIO_TYPE1_IOMMU = 1
VFIO_TYPE1v2_IOMMU = 3
VFIO_NOIOMMU_IOMMU = 8
VFIO_UNMAP_ALL = 9

# --- ioctls ---------------------------------------------------------------------------------------------------

VFIO_GET_API_VERSION = _io(0)
VFIO_CHECK_EXTENSION = _io(1)
VFIO_SET_IOMMU = _io(2)
VFIO_GROUP_GET_STATUS = _io(3)
VFIO_GROUP_SET_CONTAINER = _io(4)
VFIO_GROUP_UNSET_CONTAINER = _io(5)
VFIO_GROUP_GET_DEVICE_FD = _io(6)
VFIO_DEVICE_GET_INFO = _io(7)
VFIO_DEVICE_GET_REGION_INFO = _io(8)
VFIO_DEVICE_GET_IRQ_INFO = _io(9)
VFIO_DEVICE_SET_IRQS = _io(10)
VFIO_DEVICE_RESET = _io(11)
VFIO_IOMMU_GET_INFO = _io(12)
VFIO_IOMMU_MAP_DMA = _io(13)
VFIO_IOMMU_UNMAP_DMA = _io(14)
VFIO_DEVICE_FEATURE = _io(17)

# --- flags ----------------------------------------------------------------------------------------------------

VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1

VFIO_DEVICE_FLAGS_RESET = 1 << 0
VFIO_DEVICE_FLAGS_PCI = 1 << 1
VFIO_DEVICE_FLAGS_CAPS = 1 << 7

VFIO_DEVICE_FEATURE_SET = 1 << 17
VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0

VFIO_REGION_INFO_FLAG_READ = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS = 1 << 3

VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3

VFIO_IRQ_INFO_EVENTFD = 1 << 0
VFIO_IRQ_INFO_MASKABLE = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED = 1 << 2
VFIO_IRQ_INFO_NORESIZE = 1 << 3

VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_BOOL = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_MASK = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5

VFIO_IOMMU_INFO_PGSIZES = 1 << 0
VFIO_IOMMU_INFO_CAPS = 1 << 1

VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1
VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3

VFIO_DMA_MAP_FLAG_READ = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1

VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1

# --- the regions and interrupts of a PCI device -----------------------------------------------------------------

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_BAR5_REGION_INDEX = 5
VFIO_PCI_ROM_REGION_INDEX = 6
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_VGA_REGION_INDEX = 8
VFIO_PCI_NUM_REGIONS = 9

VFIO_PCI_INTX_IRQ_INDEX = 0
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2
VFIO_PCI_ERR_IRQ_INDEX = 3
VFIO_PCI_REQ_IRQ_INDEX = 4
VFIO_PCI_NUM_IRQS = 5


# --- structures -------------------------------------------------------------------------------------------------


class vfio_info_cap_header(ctypes.Structure):
    """Head of a capability. ``next`` is the offset of the next one in the info structure; 0 ends the chain."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


class vfio_group_status(ctypes.Structure):
    """Argument of VFIO_GROUP_GET_STATUS."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class vfio_device_info(ctypes.Structure):
    """Argument of VFIO_DEVICE_GET_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
    )


class vfio_region_info(ctypes.Structure):
    """Argument of VFIO_DEVICE_GET_REGION_INFO."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


class vfio_region_sparse_mmap_area(ctypes.Structure):
    """A part of a region that may be mapped."""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))


class vfio_region_info_cap_sparse_mmap(ctypes.Structure):
    """Followed by ``nr_areas`` of ``vfio_region_sparse_mmap_area``."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_areas", c_uint32), ("reserved", c_uint32))


class vfio_irq_info(ctypes.Structure):
    """Argument of VFIO_DEVICE_GET_IRQ_INFO."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32))


class vfio_irq_set(ctypes.Structure):
    """Argument of VFIO_DEVICE_SET_IRQS.

    Followed by ``count`` data items: none, bytes, or signed 32-bit descriptors, according to the flags.
    """

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class vfio_iommu_type1_info(ctypes.Structure):
    """Argument of VFIO_IOMMU_GET_INFO since Linux 5.4; older kernels fill in the bytes before ``cap_offset``."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova_pgsizes", c_uint64),
        ("cap_offset", c_uint32),
    )


class vfio_iova_range(ctypes.Structure):
    """A range of device addresses. ``end`` is its last byte."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))


class vfio_iommu_type1_info_cap_iova_range(ctypes.Structure):
    """Followed by ``nr_iovas`` of ``vfio_iova_range``."""

    _fields_ = (("header", vfio_info_cap_header), ("nr_iovas", c_uint32), ("reserved", c_uint32))


class vfio_iommu_type1_info_dma_avail(ctypes.Structure):
    """Capability with the number of maps that are left."""

    _fields_ = (("header", vfio_info_cap_header), ("avail", c_uint32))


class vfio_iommu_type1_dma_map(ctypes.Structure):
    """Argument of VFIO_IOMMU_MAP_DMA."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class vfio_iommu_type1_dma_unmap(ctypes.Structure):
    """Argument of VFIO_IOMMU_UNMAP_DMA. ``size`` is overwritten with the number of bytes that were unmapped."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iova", c_uint64), ("size", c_uint64))


vfio_fd = c_int32
"""What VFIO_GROUP_SET_CONTAINER points to, and an item of VFIO_IRQ_SET_DATA_EVENTFD."""

"""``<linux/vhost.h>`` and ``<linux/vhost_types.h>`` as ctypes: what vhost-vdpa needs of them.

The names are the kernel's, without a prefix. ``tests/unit/backends/test_vhost_vdpa_uapi.py`` compares every
number, size and offset with the headers of the machine it runs on. ctypes is used for arguments of ioctls and
for the messages that are written to the node, and for nothing else.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_uint, c_uint8, c_uint16, c_uint32, c_uint64

VHOST_VIRTIO = 0xAF

_WRITE, _READ = 1, 2
"""As ``_IOC_WRITE`` and ``_IOC_READ`` are on x86, arm and RISC-V: seen from user space."""


# --- structures -------------------------------------------------------------------------------------------------


class vhost_vring_state(ctypes.Structure):
    """Argument of the VRING ioctls with one number: size, base or enable."""

    _fields_ = (("index", c_uint), ("num", c_uint))


class vhost_vring_file(ctypes.Structure):
    """Argument of VHOST_SET_VRING_KICK and _CALL. ``fd`` VHOST_FILE_UNBIND removes the eventfd."""

    _fields_ = (("index", c_uint), ("fd", c_int))


class vhost_vring_addr(ctypes.Structure):
    """Argument of VHOST_SET_VRING_ADDR. For vDPA the "user addresses" are device addresses (IOVAs)."""

    _fields_ = (
        ("index", c_uint),
        ("flags", c_uint),
        ("desc_user_addr", c_uint64),
        ("used_user_addr", c_uint64),
        ("avail_user_addr", c_uint64),
        ("log_guest_addr", c_uint64),
    )


class vhost_iotlb_msg(ctypes.Structure):
    """A map of the IOTLB: ``size`` bytes at the virtual address ``uaddr``, for the device at ``iova``."""

    _fields_ = (("iova", c_uint64), ("size", c_uint64), ("uaddr", c_uint64), ("perm", c_uint8), ("type", c_uint8))


class _payload(ctypes.Union):
    _fields_ = (("iotlb", vhost_iotlb_msg), ("padding", c_uint8 * 64))


class vhost_msg(ctypes.Structure):
    """A message without VHOST_BACKEND_F_IOTLB_MSG_V2."""

    _anonymous_ = ("payload",)
    _fields_ = (("type", c_int), ("payload", _payload))


class vhost_msg_v2(ctypes.Structure):
    """A message with VHOST_BACKEND_F_IOTLB_MSG_V2.

    ``asid`` is the address space: 0, unless VHOST_BACKEND_F_IOTLB_ASID was accepted.
    """

    _anonymous_ = ("payload",)
    _fields_ = (("type", c_uint32), ("asid", c_uint32), ("payload", _payload))


class vhost_vdpa_config(ctypes.Structure):
    """Argument of VHOST_VDPA_GET_CONFIG and _SET_CONFIG; followed by ``len`` bytes of configuration."""

    _fields_ = (("off", c_uint32), ("len", c_uint32))


class vhost_vdpa_iova_range(ctypes.Structure):
    """Argument of VHOST_VDPA_GET_IOVA_RANGE. ``last`` is the last byte of the range."""

    _fields_ = (("first", c_uint64), ("last", c_uint64))


class vhost_features_array(ctypes.Structure):
    """Argument of the FEATURES_ARRAY ioctls: followed by ``count`` words of 64 bits."""

    _fields_ = (("count", c_uint64),)


# --- ioctls -----------------------------------------------------------------------------------------------------


def _ioc(direction: int, number: int, size: int) -> int:
    """``_IOC(direction, VHOST_VIRTIO, number, size)``."""
    return direction << 30 | size << 16 | VHOST_VIRTIO << 8 | number


def _io(number: int) -> int:
    return _ioc(0, number, 0)


def _ior(number: int, kind: type[ctypes.Structure] | type[ctypes._SimpleCData[int]]) -> int:
    return _ioc(_READ, number, ctypes.sizeof(kind))


def _iow(number: int, kind: type[ctypes.Structure] | type[ctypes._SimpleCData[int]]) -> int:
    return _ioc(_WRITE, number, ctypes.sizeof(kind))


def _iowr(number: int, kind: type[ctypes.Structure]) -> int:
    return _ioc(_READ | _WRITE, number, ctypes.sizeof(kind))


VHOST_GET_FEATURES = _ior(0x00, c_uint64)
VHOST_SET_FEATURES = _iow(0x00, c_uint64)
VHOST_SET_OWNER = _io(0x01)
VHOST_SET_VRING_NUM = _iow(0x10, vhost_vring_state)
VHOST_SET_VRING_ADDR = _iow(0x11, vhost_vring_addr)
VHOST_SET_VRING_BASE = _iow(0x12, vhost_vring_state)
VHOST_GET_VRING_BASE = _iowr(0x12, vhost_vring_state)
VHOST_SET_VRING_KICK = _iow(0x20, vhost_vring_file)
VHOST_SET_VRING_CALL = _iow(0x21, vhost_vring_file)
VHOST_SET_BACKEND_FEATURES = _iow(0x25, c_uint64)
VHOST_GET_BACKEND_FEATURES = _ior(0x26, c_uint64)

VHOST_VDPA_GET_DEVICE_ID = _ior(0x70, c_uint32)
VHOST_VDPA_GET_STATUS = _ior(0x71, c_uint8)
VHOST_VDPA_SET_STATUS = _iow(0x72, c_uint8)
VHOST_VDPA_GET_CONFIG = _ior(0x73, vhost_vdpa_config)
VHOST_VDPA_SET_CONFIG = _iow(0x74, vhost_vdpa_config)
VHOST_VDPA_SET_VRING_ENABLE = _iow(0x75, vhost_vring_state)
VHOST_VDPA_GET_VRING_NUM = _ior(0x76, c_uint16)
VHOST_VDPA_SET_CONFIG_CALL = _iow(0x77, c_int)
VHOST_VDPA_GET_IOVA_RANGE = _ior(0x78, vhost_vdpa_iova_range)
VHOST_VDPA_GET_CONFIG_SIZE = _ior(0x79, c_uint32)
VHOST_VDPA_SUSPEND = _io(0x7D)
VHOST_VDPA_RESUME = _io(0x7E)  # 6.4
VHOST_VDPA_GET_VQS_COUNT = _ior(0x80, c_uint32)
VHOST_VDPA_GET_VRING_SIZE = _iowr(0x82, vhost_vring_state)  # 6.9; other numbers before it was released
VHOST_GET_FEATURES_ARRAY = _ior(0x83, vhost_features_array)  # 6.18
VHOST_SET_FEATURES_ARRAY = _iow(0x83, vhost_features_array)

# --- values -----------------------------------------------------------------------------------------------------

VHOST_FILE_UNBIND = -1

VHOST_BACKEND_F_IOTLB_MSG_V2 = 0x1
VHOST_BACKEND_F_IOTLB_BATCH = 0x2
VHOST_BACKEND_F_IOTLB_ASID = 0x3
VHOST_BACKEND_F_SUSPEND = 0x4
VHOST_BACKEND_F_RESUME = 0x5
VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK = 0x6
VHOST_BACKEND_F_DESC_ASID = 0x7
VHOST_BACKEND_F_IOTLB_PERSIST = 0x8
"""Numbers of bits in the word of VHOST_GET_BACKEND_FEATURES. The last four are younger than Linux 6.1."""

VHOST_IOTLB_MSG = 0x1
VHOST_IOTLB_MSG_V2 = 0x2

VHOST_ACCESS_RO = 0x1
VHOST_ACCESS_WO = 0x2
VHOST_ACCESS_RW = 0x3

VHOST_IOTLB_UPDATE = 2
VHOST_IOTLB_INVALIDATE = 3
VHOST_IOTLB_BATCH_BEGIN = 5
VHOST_IOTLB_BATCH_END = 6

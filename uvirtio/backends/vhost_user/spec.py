"""Numbers and layouts of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst), under the names it has.

Only what this front end uses. All integers are of the host's byte order, which is little-endian here; sizes are in
bytes.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

HEADER: Final = Struct("<III")
"""Header of every message: request, flags, size of the payload in bytes."""

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

PAYLOAD_MAX: Final = 4096
"""Largest payload that is accepted, in bytes. The longest reply that is asked for has 12 + 136."""

DESCRIPTORS_MAX: Final = 8
"""VHOST_MEMORY_BASELINE_NREGIONS: no message carries more file descriptors."""


class Request(IntEnum):
    """Messages of the front end, VHOST_USER_<name>."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """Messages of the back end, VHOST_USER_BACKEND_<name>."""

    CONFIG_CHANGE_MSG = 2


class ProtocolFeature(IntEnum):
    """Bits of GET_PROTOCOL_FEATURES, VHOST_USER_PROTOCOL_F_<name>."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    NET_MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19


F_NOTIFY_ON_EMPTY: Final = 24
"""VIRTIO_F_NOTIFY_ON_EMPTY of the legacy interface: a bit among the features that is none of a modern device's."""

F_LOG_ALL: Final = 26
"""VHOST_F_LOG_ALL, a bit of vhost's among the features."""

F_PROTOCOL_FEATURES: Final = 30
"""VHOST_USER_F_PROTOCOL_FEATURES, a bit of vhost-user's among the features."""

U64: Final = Struct("<Q")

VRING_STATE: Final = Struct("<II")
"""Vring state description: index, num."""

VRING_ADDRESS: Final = Struct("<IIQQQQ")
"""Vring address description: index, flags, descriptor, used, available, log; user addresses."""

VRING_INDEX_MASK: Final = 0xFF
"""VHOST_USER_VRING_IDX_MASK: the index in the payload of SET_VRING_KICK and SET_VRING_CALL."""

VRING_NOFD: Final = 1 << 8
"""VHOST_USER_VRING_NOFD_MASK: the message carries no descriptor."""

QUEUES_MAX: Final = VRING_INDEX_MASK + 1

MEMORY_TABLE: Final = Struct("<II")
"""Memory regions description: number of regions, padding."""

MEMORY_REGION: Final = Struct("<QQQQ")
"""Memory region description: guest address, size, user address, mmap offset."""

CONFIG: Final = Struct("<III")
"""Virtio device config space: offset, size, flags; the bytes follow."""

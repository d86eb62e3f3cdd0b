"""Administration commands (2.12, 2.13). Offsets, widths and sizes in bytes, all little-endian."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

# The readable part of a command, then its data; the writable part, then its result (2.12.1).
COMMAND: Final[Layout] = (
    F("opcode", 0, 2),
    F("group_type", 2, 2),
    F("reserved", 4, 12),
    F("group_member_id", 16, 8),
)
COMMAND_SIZE: Final = 24
ANSWER: Final[Layout] = (F("status", 0, 2), F("status_qualifier", 2, 2), F("reserved", 4, 4))
ANSWER_SIZE: Final = 8
PART_ALIGN: Final = 8  # 2.13.2


class Group(IntEnum):
    """Group types (2.12)."""

    SELF = 0
    SR_IOV = 1


class Opcode(IntEnum):
    """Commands (2.12.1). Where table and text of the standard disagree (0xb, 0xc), the table counts."""

    LIST_QUERY = 0x0
    LIST_USE = 0x1
    LEGACY_COMMON_CFG_WRITE = 0x2
    LEGACY_COMMON_CFG_READ = 0x3
    LEGACY_DEV_CFG_WRITE = 0x4
    LEGACY_DEV_CFG_READ = 0x5
    LEGACY_NOTIFY_INFO = 0x6
    CAP_ID_LIST_QUERY = 0x7
    DEVICE_CAP_GET = 0x8
    DRIVER_CAP_SET = 0x9
    RESOURCE_OBJ_CREATE = 0xA
    RESOURCE_OBJ_QUERY = 0xB
    RESOURCE_OBJ_MODIFY = 0xC
    RESOURCE_OBJ_DESTROY = 0xD
    DEV_PARTS_METADATA_GET = 0xE
    DEV_PARTS_GET = 0xF
    DEV_PARTS_SET = 0x10
    DEV_MODE_SET = 0x11


class AdminStatus(IntEnum):
    """Status of a command; any other value means EINVAL (2.12.1.6)."""

    OK = 0
    ENXIO = 6
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EINVAL = 22
    ENOSPC = 28


class Qualifier(IntEnum):
    """Status qualifier: what is wrong in detail; any other value means INVALID_COMMAND (2.12.1.6)."""

    OK = 0
    INVALID_COMMAND = 1
    INVALID_OPCODE = 2
    INVALID_FIELD = 3
    INVALID_GROUP = 4
    INVALID_MEMBER = 5
    NORESOURCE = 6
    TRYAGAIN = 7


def status_of(value: int) -> AdminStatus:
    """Return the status of a command; EINVAL for a value that is not defined (2.12.1.6)."""
    return AdminStatus(value) if value in set(AdminStatus) else AdminStatus.EINVAL


def qualifier_of(value: int) -> Qualifier:
    """Return the qualifier of a status; INVALID_COMMAND for a value that is not defined (2.12.1.6)."""
    return Qualifier(value) if value in set(Qualifier) else Qualifier.INVALID_COMMAND

"""The numbers and the ranges of feature bits (2.2, 6), and words of them: what ``spec.features`` begins with."""

from __future__ import annotations

from enum import Enum, IntEnum

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

MAX_BITS: Final = 128  # what the transports carry today: four words of 32 bits (2.2, 4.1.4.3)
ALL: Final = (1 << MAX_BITS) - 1
LEGACY_MASK: Final = 0xFFFFFFFF  # a legacy interface has bits 0 to 31 only (4.1.4.10)


class Reserved(IntEnum):
    """The device-independent bits (6), and those of the legacy interface (6.3)."""

    NOTIFY_ON_EMPTY = 24  # 6.3, legacy only
    ANY_LAYOUT = 27  # 6.3, legacy only
    INDIRECT_DESC = 28  # 6
    EVENT_IDX = 29  # 6
    UNUSED = 30  # 6.3: QEMU's probe for broken drivers, not to be negotiated
    VERSION_1 = 32  # 6
    ACCESS_PLATFORM = 33  # 6
    RING_PACKED = 34  # 6
    IN_ORDER = 35  # 6
    ORDER_PLATFORM = 36  # 6
    SR_IOV = 37  # 6
    NOTIFICATION_DATA = 38  # 6
    NOTIF_CONFIG_DATA = 39  # 6
    RING_RESET = 40  # 6
    ADMIN_VQ = 41  # 6
    SUSPEND = 43  # 6


NOTIFY_ON_EMPTY: Final = Reserved.NOTIFY_ON_EMPTY
ANY_LAYOUT: Final = Reserved.ANY_LAYOUT
INDIRECT_DESC: Final = Reserved.INDIRECT_DESC
EVENT_IDX: Final = Reserved.EVENT_IDX
VERSION_1: Final = Reserved.VERSION_1
ACCESS_PLATFORM: Final = Reserved.ACCESS_PLATFORM
RING_PACKED: Final = Reserved.RING_PACKED
IN_ORDER: Final = Reserved.IN_ORDER
ORDER_PLATFORM: Final = Reserved.ORDER_PLATFORM
SR_IOV: Final = Reserved.SR_IOV
NOTIFICATION_DATA: Final = Reserved.NOTIFICATION_DATA
NOTIF_CONFIG_DATA: Final = Reserved.NOTIF_CONFIG_DATA
RING_RESET: Final = Reserved.RING_RESET
ADMIN_VQ: Final = Reserved.ADMIN_VQ
SUSPEND: Final = Reserved.SUSPEND

LEGACY_ONLY: Final = frozenset({NOTIFY_ON_EMPTY, ANY_LAYOUT, Reserved.UNUSED})
"""Bits that have a meaning on a legacy interface alone (6.3)."""


def bit(number: int) -> int:
    """Return the mask with only bit ``number`` set."""
    return 1 << number


def mask(*numbers: int) -> int:
    """Return the word in which exactly the bits ``numbers`` are set."""
    word = 0
    for number in numbers:
        word |= 1 << number
    return word


def has(word: int, number: int) -> bool:
    """Return whether bit ``number`` is set in ``word``."""
    return bool(word >> number & 1)


def bits(word: int) -> list[int]:
    """Return the numbers of the bits set in ``word``, lowest first."""
    return [number for number in range(word.bit_length()) if word >> number & 1]


class Kind(Enum):
    """The ranges of feature bits (2.2)."""

    DEVICE = "device"  # 0 to 23, 41, 42, 50 to 127: the device type's
    RING = "ring"  # 24 to 40, 43: queues and negotiation
    FUTURE = "future"  # 44 to 49, 128 and up: reserved


def kind(number: int) -> Kind:
    """Return the range of bit ``number`` (2.2).

    ADMIN_VQ is 41, which 2.2 counts among the device types' bits; chapter 6 defines it for all types, so it is
    a ring bit here.
    """
    if number == ADMIN_VQ:
        return Kind.RING
    if number <= 23 or number == 42 or 50 <= number < MAX_BITS:
        return Kind.DEVICE
    if number <= 40 or number == 43:
        return Kind.RING
    return Kind.FUTURE


DEVICE_TYPE_MASK: Final = mask(*(number for number in range(MAX_BITS) if kind(number) is Kind.DEVICE))
"""The bits that belong to the device type, whatever the type."""

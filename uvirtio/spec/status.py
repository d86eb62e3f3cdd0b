"""The device status field (2.1)."""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    """The bits of the status byte. A driver only ever adds bits, or writes 0 to reset (2.1.1)."""

    ACKNOWLEDGE = 1  # 2.1: somebody found the device
    DRIVER = 2  # 2.1: somebody knows how to drive it
    DRIVER_OK = 4  # 2.1: the driver is ready
    FEATURES_OK = 8  # 2.1: negotiation is over
    SUSPEND = 16  # 2.1, 3.4: suspended, or to be suspended
    DEVICE_NEEDS_RESET = 64  # 2.1: the device gave up
    FAILED = 128  # 2.1: the driver gave up

    @staticmethod
    def describe(value: int) -> str:
        """The same as the function of this name below."""
        return describe(value)


RESET = 0
"""What is written to reset the device, and what reads back when that is done (2.4)."""

ACKNOWLEDGE = Status.ACKNOWLEDGE
DRIVER = Status.DRIVER
DRIVER_OK = Status.DRIVER_OK
FEATURES_OK = Status.FEATURES_OK
SUSPEND = Status.SUSPEND
DEVICE_NEEDS_RESET = Status.DEVICE_NEEDS_RESET
FAILED = Status.FAILED


def names(value: int) -> list[str]:
    """The names of the bits in ``value``, lowest first; a bit without a name is given as ``0x20``."""
    known = {int(bit): bit.name or "" for bit in Status}
    found = []
    for shift in range(value.bit_length()):
        bit = 1 << shift
        if value & bit:
            found.append(known.get(bit, hex(bit)))
    return found


def describe(value: int) -> str:
    """``ACKNOWLEDGE|DRIVER``; 0, which a device reads after its reset, is ``0 (reset)``."""
    return "|".join(names(value)) or "0 (reset)"

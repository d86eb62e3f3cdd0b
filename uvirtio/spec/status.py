"""The device status field (2.1)."""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    """The bits of the status byte. A driver only adds bits, or writes 0 to reset (2.1.1)."""

    ACKNOWLEDGE = 1  # 2.1: the device was found
    DRIVER = 2  # 2.1: there is a driver for it
    DRIVER_OK = 4  # 2.1: the driver is ready
    FEATURES_OK = 8  # 2.1: negotiation is complete
    SUSPEND = 16  # 2.1, 3.4: suspended, or to be suspended
    DEVICE_NEEDS_RESET = 64  # 2.1: the device failed
    FAILED = 128  # 2.1: the driver gave up

    @staticmethod
    def describe(value: int) -> str:
        """Return the names of the bits in ``value``; see the function ``describe``."""
        return describe(value)


RESET = 0
"""Written to reset the device, and read back once that is complete (2.4)."""

ACKNOWLEDGE = Status.ACKNOWLEDGE
DRIVER = Status.DRIVER
DRIVER_OK = Status.DRIVER_OK
FEATURES_OK = Status.FEATURES_OK
SUSPEND = Status.SUSPEND
DEVICE_NEEDS_RESET = Status.DEVICE_NEEDS_RESET
FAILED = Status.FAILED


def names(value: int) -> list[str]:
    """Return the names of the bits in ``value``, lowest first; ``0x20`` and so on for a bit without a name."""
    known = {int(bit): bit.name or "" for bit in Status}
    found = []
    for shift in range(value.bit_length()):
        bit = 1 << shift
        if value & bit:
            found.append(known.get(bit, hex(bit)))
    return found


def describe(value: int) -> str:
    """Return the names of the bits in ``value`` as ``ACKNOWLEDGE|DRIVER``; ``0 (reset)`` for 0 (2.4)."""
    return "|".join(names(value)) or "0 (reset)"

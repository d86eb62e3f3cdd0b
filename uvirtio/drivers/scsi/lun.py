"""Which logical unit: a target and a number, in the 8 bytes of a request and in those of REPORT LUNS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import index

from uvirtio.errors import UsageError

TARGETS = 256
LUNS = 16384
"""LUNs of one target (5.6.6.1: a single level LUN structure has 14 bits)."""

_TEXT = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,5})")
_PERIPHERAL = 0x00  # SAM-5, 4.7.7: the addressing method, in the two highest bits
_FLAT = 0x40


@dataclass(frozen=True, slots=True, order=True)
class Lun:
    """A logical unit of the device's SCSI domain: a target, and the number of the unit there."""

    target: int
    lun: int = 0

    def __post_init__(self) -> None:
        if not (0 <= index(self.target) < TARGETS and 0 <= index(self.lun) < LUNS):
            raise UsageError(
                f"there cannot be a logical unit {self.target}:{self.lun}",
                seen=f"{self.target}:{self.lun}",
                expected=f"TARGET:LUN, 0:0 to {TARGETS - 1}:{LUNS - 1} (5.6.6.1)",
                remedy="uvirtio scsi list DEV, or Scsi.scan(), shows what is there",
            )

    @classmethod
    def parse(cls, text: str) -> Lun:
        """Return what ``TARGET:LUN`` names, or ``LUN`` of target 0.

        Raises:
            UsageError: The text names no logical unit.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} names no logical unit",
                seen=text,
                expected="TARGET:LUN, or LUN of target 0; for example 0:0",
                remedy="uvirtio scsi list DEV, or Scsi.scan(), shows what is there",
            )
        return cls(int(match[1] or 0), int(match[2]))

    def encode(self) -> bytes:
        """Return the 8 bytes of a request (5.6.6.1): 1, the target, a single level LUN structure, four zeros.

        The structure is that of peripheral addressing below 256, and of flat space addressing from there on, as
        Linux and QEMU have it.
        """
        high, low = divmod(self.lun, 256)
        return bytes([1, self.target, _FLAT | high if high else _PERIPHERAL, low, 0, 0, 0, 0])

    @classmethod
    def decode(cls, data: bytes) -> Lun | None:
        """Return what 8 bytes of a request or an event name (5.6.6.1).

        Both encodings of a number below 256 are the same unit. None: they name no unit of a target.
        """
        if len(data) < 8 or data[0] != 1:
            return None
        number = single_level(data[2:])
        return None if number is None else cls(data[1], number)

    def __str__(self) -> str:
        return f"{self.target}:{self.lun}"


def single_level(data: bytes) -> int | None:
    """Return the number in a single level LUN structure of 2 bytes; what follows it has to be zero (SAM-5, 4.7.4).

    None: another addressing method, or more than one level.
    """
    method, high = data[0] & 0xC0, data[0] & 0x3F
    if any(data[2:]) or method not in (_PERIPHERAL, _FLAT) or (method == _PERIPHERAL and high):
        return None  # 4.7.7.2: with peripheral addressing the low bits of the first byte are a bus
    return high << 8 | data[1]

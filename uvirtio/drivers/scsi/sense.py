"""Sense data (SPC-5, 4.4): why a command ended with CHECK CONDITION, by name."""

from __future__ import annotations

from dataclasses import dataclass

from uvirtio.spec.scsi import ASC, Key

_FIXED = (0x70, 0x71)
_DESCRIPTOR = (0x72, 0x73)


@dataclass(frozen=True, slots=True)
class Sense:
    """What sense data say."""

    key: int
    """The sense key; a ``Key``."""
    asc: int = 0
    """Additional sense code."""
    ascq: int = 0
    """Its qualifier."""
    deferred: bool = False
    """Whether an earlier command failed, not this one."""
    raw: bytes = b""

    @property
    def name(self) -> str:
        """The name of the key and of what is added to it."""
        key = Key(self.key & 0xF).name.replace("_", " ")
        if not (self.asc or self.ascq):
            return key
        return f"{key}: {ASC.get((self.asc, self.ascq)) or ASC.get((self.asc, 0)) or 'no name is known'}"

    @property
    def code(self) -> str:
        """Key, code and qualifier in hexadecimal, as ``6/29/00``."""
        return f"{self.key:x}/{self.asc:02x}/{self.ascq:02x}"

    def __str__(self) -> str:
        return f"{self.name} ({self.code})"


def decode(data: bytes) -> Sense | None:
    """Decode sense data in fixed or descriptor format.

    Returns:
        What they say; codes that are cut off are 0. None: there is no key in them.
    """
    kind = data[0] & 0x7F if data else 0
    if kind in _FIXED and len(data) >= 3:
        # 4.4.3: key at 2, the additional length at 7, ASC and ASCQ at 12 and 13 where it reaches them.
        end = min(len(data), 8 + data[7]) if len(data) > 7 else len(data)
        asc, ascq = (data[at] if at < end else 0 for at in (12, 13))
        return Sense(data[2] & 0xF, asc, ascq, kind == 0x71, bytes(data))
    if kind in _DESCRIPTOR and len(data) >= 2:
        asc, ascq = (data[at] if at < len(data) else 0 for at in (2, 3))
        return Sense(data[1] & 0xF, asc, ascq, kind == 0x73, bytes(data))
    return None

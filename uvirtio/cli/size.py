"""Sizes as users type them: ``64M``, ``1GiB``, ``4096K``, plain bytes, ``25%``."""

from __future__ import annotations

import re
from fractions import Fraction

from uvirtio.errors import BadSize

_SYNTAX = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,9}))?(?:([KMGT])(?:IB)?|B|(%))?", re.ASCII)
_UNIT = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SECTOR = 512
_SECTORS = re.compile(r"([0-9]{1,18})s", re.ASCII)
_EXPECTED = "bytes, or a number with K, M, G or T (KiB, MiB, GiB, TiB)"
_EXAMPLE = "write 64M, 1GiB or 67108864"
_DEVICE_FIRST = "the device comes first, and sizes after it"


def parse_size(text: str, *, total: int | None = None, multiple: int = 1) -> int:
    """The number of bytes that a text means.

    Units are powers of 1024; ``MB`` and the like are refused because they are ambiguous.

    Args:
        text: The size.
        total: Bytes that a percentage refers to; None: no percentages.
        multiple: Bytes; a percentage is rounded down to a multiple of it, every other size must be one.

    Raises:
        BadSize: The text is no size, no whole number of bytes, or no multiple.
    """
    match = _SYNTAX.fullmatch(text.strip().upper())
    if match is None:
        remedy = _DEVICE_FIRST if ":" in text else _EXAMPLE
        raise BadSize(f"{text!r} is not a size", seen=text, expected=_EXPECTED, remedy=remedy)
    number = Fraction(f"{match[1]}.{match[2] or '0'}")
    if match[4]:
        return _share(text, number, total, multiple)
    size = number * _UNIT[match[3]]
    if size.denominator != 1:
        raise BadSize(f"{text!r} is not a whole number of bytes", seen=text, expected=_EXPECTED, remedy=_EXAMPLE)
    whole = int(size)
    if whole % multiple:
        below = whole // multiple * multiple
        nearest = [below, below + multiple] if below else [multiple]
        raise BadSize(
            f"{text!r} is not a multiple of {multiple} bytes",
            seen=whole,
            expected=f"a multiple of {multiple}",
            remedy=f"nearest valid size{'s' * (len(nearest) > 1)}: " + " and ".join(str(one) for one in nearest),
        )
    return whole


def parse_sectors(text: str, what: str) -> int:
    """The number of sectors of 512 bytes that a text means.

    Args:
        text: ``8s``, or a size that is a multiple of 512 bytes.
        what: The name of the argument, for the message.

    Raises:
        BadSize: It is neither.
    """
    match = _SECTORS.fullmatch(text.strip().lower())
    if match is not None:
        return int(match[1])
    try:
        return parse_size(text, multiple=SECTOR) // SECTOR
    except BadSize as error:
        raise BadSize(
            f"{what}: {error.message}", seen=error.seen, expected=error.expected, remedy=error.remedy
        ) from error


def _share(text: str, percent: Fraction, total: int | None, multiple: int) -> int:
    if total is None:
        raise BadSize(
            f"{text!r}: a percentage is not accepted here", seen=text, expected=_EXPECTED, remedy=_EXAMPLE
        )
    if not 0 < percent <= 100:
        raise BadSize(f"{text!r} is out of range", seen=text, expected="above 0%, at most 100%")
    return int(percent * total / 100) // multiple * multiple


def human(size: int) -> str:
    """``64 MiB``: the largest unit that leaves a number of at least 1, with one decimal where it is not whole."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}" if size % unit == 0 else f"{size / unit:.1f} {name}"
    return f"{size} B"

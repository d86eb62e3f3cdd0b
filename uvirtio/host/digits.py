"""Decimal numbers in files and in the output of programs."""

from __future__ import annotations

_MOST = 20
"""Digits of 2^64 - 1: the kernel prints no longer number."""


def decimal(text: str) -> int | None:
    """A number in ASCII digits of at most 64 bits' length; None for anything else.

    ``int`` takes the digits of every script, and raises ValueError for more than 4300 of them; ``str.isdigit`` is
    true of superscripts, which ``int`` refuses.
    """
    return int(text) if len(text) <= _MOST and text.isascii() and text.isdecimal() else None

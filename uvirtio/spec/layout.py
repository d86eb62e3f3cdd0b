"""Fields of the structures in a device's registers and configuration: name, offset, width."""

from __future__ import annotations

from uvirtio.typed import NamedTuple


class Field(NamedTuple):
    """A field; ``offset`` and ``width`` in bytes, all fields little-endian (1.4).

    A width above 4 is read and written in 32-bit pieces, or it is an array of bytes: no register is wider
    than 32 bits (2.5.1, 4.1.3.1).
    """

    name: str
    offset: int
    width: int

    @property
    def end(self) -> int:
        """The first byte after the field."""
        return self.offset + self.width


Layout = tuple[Field, ...]
"""The fields of one structure, in ascending order of their offsets."""


def by_name(layout: Layout) -> dict[str, Field]:
    """Return the fields of ``layout`` by name."""
    return {field.name: field for field in layout}


def size(layout: Layout) -> int:
    """Return the bytes from the start of the structure to the end of its last field."""
    return max((field.end for field in layout), default=0)

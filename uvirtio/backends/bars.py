"""The bounds of the base address registers of a PCI function, for every back end."""

from __future__ import annotations

from collections.abc import Mapping

from uvirtio.errors import CapabilityError
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    class _Sized(Protocol):
        @property
        def size(self) -> int:
            """Length in bytes."""
            ...

    AnyBar = TypeVar("AnyBar", bound=_Sized)


def bar_of(
    bars: Mapping[int, AnyBar],
    index: int,
    offset: int,
    length: int,
    *,
    address: str,
    look: str = "uvirtio inspect",
) -> AnyBar:
    """Return the BAR that contains a window.

    Args:
        bars: The BARs of the function, by number.
        index: Number of the BAR.
        offset: Start of the window in the BAR, in bytes.
        length: Length of the window, in bytes.
        address: The function, for errors.
        look: The command that shows more of this function, for errors.

    Raises:
        CapabilityError: The BAR is absent or too small.
    """
    bar = bars.get(index)
    if bar is None or offset < 0 or length < 0 or offset + length > bar.size:
        raise CapabilityError(
            f"{address} has no {length} bytes at {offset:#x} of BAR {index}",
            seen="no such BAR" if bar is None else f"{bar.size} bytes",
            expected=f"at least {offset + length} bytes",
            remedy=f"look at the capabilities: {look}",
        )
    return bar

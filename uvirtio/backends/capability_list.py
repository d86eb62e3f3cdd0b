"""The list of capabilities of a PCI function, for back ends; ``transports.pci_caps`` judges what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from uvirtio.spec import pci


def capabilities(read: Callable[[int, int], int]) -> Iterator[tuple[int, int]]:
    """Yield the place and the id of each standard capability (PCI 3.0, 6.7); the walk is bounded.

    Only the heads are read: the data register of the PCI configuration access capability is a window into a BAR
    (4.1.4.9).

    Args:
        read: Reads a field of configuration space, at an offset and of a width in bytes.
    """
    if not read(pci.CFG_STATUS, 2) & pci.STATUS_CAP_LIST:
        return
    at = read(pci.CFG_CAPABILITIES_POINTER, 1) & pci.CAP_NEXT_MASK
    for _ in range(pci.MAX_CAPABILITIES):
        if at < pci.CAP_FIRST:
            return
        head = read(at, 2)  # id and link
        yield at, head & 0xFF
        at = head >> 8 & pci.CAP_NEXT_MASK

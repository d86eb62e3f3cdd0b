"""Nodes of the device tree (Devicetree Specification 0.4), as sysfs shows them to every user: ``of_node``.

Properties are files of big-endian cells of 32 bits. Where the tree is not there (a container, an ACPI machine) or
a property is malformed, the answer is None.
"""

from __future__ import annotations

from pathlib import Path

from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

_CELL = 4
_LIMIT = 1 << 16  # bytes; `ranges` of the largest PCI bridges have some hundreds
_DEPTH = 32


def compatible(node: Path) -> list[str] | None:
    """The programming models of a node, the most specific one first (2.3.1); None where it cannot be read."""
    text = sysfs.read(node / "compatible", 4096)
    return None if text is None else text.split("\0")


def registers(node: Path, roots: Roots) -> tuple[int, int] | None:
    """The first range of ``reg`` (2.3.6), at its physical address: translated by the ``ranges`` of each bus above.

    Args:
        node: The node; a link to it will do.
        roots: Where the tree is.

    Returns:
        (Physical address, length) in bytes; None where the node is not in the tree, or a property is missing or
        too short.
    """
    tree = sysfs.real(roots.sys / "firmware/devicetree/base")
    here = sysfs.real(node)
    if tree not in here.parents:
        return None
    bus = here.parent
    address_cells, size_cells = _cells(bus, tree)
    found = _property(here, "reg")
    if found is None or not address_cells or len(found) < (address_cells + size_cells) * _CELL:
        return None
    address, length = _numbers(found, address_cells, size_cells)
    for _ in range(_DEPTH):
        if bus == tree:
            return address, length
        above = _translated(address, bus, tree)
        if above is None:
            return None
        address, bus = above, bus.parent
    return None


def _translated(address: int, bus: Path, tree: Path) -> int | None:
    """An address on ``bus`` as one on the bus above (2.3.8); None: it is in no range, or nothing is mapped."""
    ranges = _property(bus, "ranges")
    if not ranges:
        return None if ranges is None else address
    child, size = _cells(bus, tree)
    parent, _ = _cells(bus.parent, tree)
    entry = (child + parent + size) * _CELL
    for at in range(0, len(ranges) - entry + 1, entry):
        first, to, length = _numbers(ranges[at : at + entry], child, parent, size)
        if first <= address < first + length:
            return to + address - first
    return None


def _cells(bus: Path, tree: Path) -> tuple[int, int]:
    """``#address-cells`` and ``#size-cells`` of the children of a node, as Linux takes them (of_bus_n_addr_cells).

    A bus without them has those of the nearest bus above, which the specification does not allow (2.3.5) and
    trees in use rely on; 1 where none has them.
    """
    return _inherited(bus, tree, "#address-cells"), _inherited(bus, tree, "#size-cells")


def _inherited(bus: Path, tree: Path, name: str) -> int:
    for node in (bus, *bus.parents):
        value = _property(node, name)
        if value is not None and len(value) == _CELL:
            return min(int.from_bytes(value, "big"), 4)
        if node == tree:
            break
    return 1


def _numbers(data: bytes, *cells: int) -> tuple[int, ...]:
    """Numbers of so many cells each, from the start of ``data``."""
    found, at = [], 0
    for count in cells:
        found.append(int.from_bytes(data[at : at + count * _CELL], "big"))
        at += count * _CELL
    return tuple(found)


def _property(node: Path, name: str) -> bytes | None:
    try:
        with open(node / name, "rb", buffering=0, opener=sysfs.unwaiting) as file:
            return file.read(_LIMIT)
    except OSError:
        return None

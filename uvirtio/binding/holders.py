"""The processes that drive a device from user space, whichever way they have it open.

A function under VFIO can be opened by the node of its IOMMU group, which it shares with the others there, or by
a character device of its own (``/dev/vfio/devices/vfioN``); the kernel lets one kind be open at a time. Whoever
takes the driver away waits until the other process closes it, and a VMM that is asked to takes the device from its
guest.
"""

from __future__ import annotations

from collections.abc import Iterator

from uvirtio.binding.discover import DiscoveredDevice, pci_functions
from uvirtio.binding.facts import Facts
from uvirtio.host import sysfs
from uvirtio.host.process import Holder
from uvirtio.host.roots import Roots


def _nodes(found: DiscoveredDevice, roots: Roots) -> list[str]:
    """The nodes by which user space can have a device open, those of the other functions of its group included.

    While one of them is open in another process, no driver of the kernel can be bound in the group.
    """
    nodes = list(found.nodes)
    if found.vfio and found.iommu_group is not None:
        nodes += [node for mate in pci_functions(roots, found.iommu_group) for node in mate.nodes]
    return list(dict.fromkeys(nodes))


def drivers_of(found: DiscoveredDevice, facts: Facts) -> Iterator[tuple[str, Holder]]:
    """The processes that have a device open, each with what it has open: a node, or the device in sysfs."""
    places = _nodes(found, facts.roots)
    if found.vfio and found.iommu_group is not None:
        facts.names(sysfs.iommu_group_folder(found.iommu_group, facts.roots))  # is it known who is in the group?
    if found.vfio:
        places.append("/sys" + sysfs.devpath(found.path, facts.roots))
    seen = set()
    for place in places:
        for process in facts.holders(place):
            if process not in seen:
                seen.add(process)
                yield place, process

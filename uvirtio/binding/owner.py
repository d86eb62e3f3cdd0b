"""Who may be given the device node of a bound device (``--owner``)."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Collection, Sequence

from uvirtio.binding.discover import DiscoveredDevice, negotiated_features
from uvirtio.binding.plan import Plan
from uvirtio.errors import Refused, UsageError
from uvirtio.host import sysfs
from uvirtio.host.drivers import UIO
from uvirtio.spec import features


def owner_ids(text: str) -> tuple[int, int]:
    """The user and group ids of ``USER[:GROUP]``.

    Args:
        text: Names or numbers; without a group, the user's own group.

    Returns:
        (uid, gid).

    Raises:
        UsageError: There is no such user or group.
    """
    user, _, group_name = text.partition(":")
    try:
        if _is_number(user) and group_name:
            uid = _number(user)  # as for chown, a number with a group need not be in the user database
        else:
            entry = pwd.getpwuid(_number(user)) if _is_number(user) else pwd.getpwnam(user)
            if not group_name:
                return entry.pw_uid, entry.pw_gid
            uid = entry.pw_uid
        return uid, _number(group_name) if _is_number(group_name) else grp.getgrnam(group_name).gr_gid
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(f"there is no owner {text!r}", seen=text, expected="USER or USER:GROUP") from error


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii()  # int() takes the digits of every script


def _number(text: str) -> int:
    number = int(text)
    if number >= (1 << 32) - 1:  # uid_t and gid_t, whose last value means "leave it"
        raise ValueError(text)
    return number


def check_owner_allowed(made: Sequence[Plan], force: Collection[str]) -> None:
    """Refuse ``--owner`` for devices whose node would let its owner reach all of memory.

    Where no IOMMU restricts a device, a user who may open its node may write anywhere in memory. VFIO restricts a
    function only as far as the function uses addresses that the IOMMU translates: with ACCESS_PLATFORM. And a
    balloon or virtio-mem device takes memory from the guest by its physical address, whatever the IOMMU.

    Args:
        made: The plans of one bind.
        force: Names of rules to override; ``unsafe-owner`` is the one that counts here.

    Raises:
        Refused: The node of a device would be useless to an ordinary user (uio), or unsafe in their hands.
    """
    for plan in made:
        if plan.driver == UIO:
            # The node alone would give interrupts; BARs, configuration space and frame numbers are root's.
            raise Refused(
                f"the node of {plan.found.address} would be of no use to an ordinary user",
                seen=f"--owner with {UIO}",
                expected="a driver that hands out a whole device by its node: vfio-pci",
                remedy="drive it as root, without --owner; or give the machine an IOMMU and take vfio-pci",
            )
    if "unsafe-owner" in force:
        return
    for plan in made:
        for member in plan.members:
            found = member.found
            negotiated = negotiated_features(found)
            if found.type in ("balloon", "memory-balloon", "mem"):
                why = f"a {found.type} device takes memory of the whole guest by its physical address"
            elif not member.hands_out_a_node or _unheld(found):
                why = f"{member.target or 'an mmio window'} lets the device write anywhere in memory"
            elif _vduse(found):
                continue
            elif found.device_id is None:
                why = "its type is not known, so it may be a balloon, which takes memory of the whole guest"
            elif negotiated is None or not negotiated >> features.ACCESS_PLATFORM & 1:
                why = "it is not known to have ACCESS_PLATFORM, so it may go round the IOMMU"
            else:
                continue
            raise Refused(
                f"{found.address} is not given to an ordinary user",
                seen=why,
                expected="a device that the IOMMU holds",
                remedy="leave its node to root; or, knowing what it means, --force unsafe-owner",
            )


def _vduse(found: DiscoveredDevice) -> bool:
    """Whether a process of this machine is the device: VDUSE takes none that lacks ACCESS_PLATFORM."""
    places = sysfs.above(found.path) if found.bus == "vdpa" else []
    return any(sysfs.link_name(place / "subsystem") == "vduse" for place in places)


def _unheld(found: DiscoveredDevice) -> bool:
    """Whether no IOMMU restricts the function; in VFIO's no-IOMMU mode it gets a group only once it is bound."""
    return found.noiommu or (found.bus == "pci" and found.iommu_group is None)

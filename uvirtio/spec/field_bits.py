"""Feature bits that devices in the field offer, and that are **not in the standard**.

A driver here never accepts one (2.2.1). This is so that a person who meets such a bit learns what it is; each has
the source that says so. The standard may give the number another meaning at any time: a name here counts only
where ``features`` has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uvirtio.spec import features as f


@dataclass(frozen=True, slots=True)
class FieldBit:
    """What is known of a feature bit that the standard does not define."""

    name: str
    """The name that those who offer it use, without the prefix."""

    about: str
    """One sentence: what it is for, and who offers it."""

    source: str
    """Where that is said."""

    def as_dict(self) -> dict[str, object]:
        """The bit as a member of a JSON document."""
        return {"name": self.name, "about": self.about, "source": self.source, "standard": False}


_LOG_ALL: Final = FieldBit(
    "VHOST_F_LOG_ALL",
    "vhost's own, to log writes during migration; no device should show it to a driver",
    "<linux/vhost_types.h>",
)

FIELD_BITS: Final[dict[tuple[str, int], FieldBit]] = {
    ("balloon", 6): FieldBit(
        "HINT_WAIT_ON_ACK",
        "a driver waits until the device has taken a hint: Amazon's proposal of January 2026; forks of "
        "Firecracker offer it",
        "linux-kernel list, 19 January 2026; e2b-dev/firecracker, pull request 14",
    ),
    ("balloon", 8): FieldBit(
        "WS_REPORTING",
        "crosvm's working set reporting, with two queues of its own",
        "google/crosvm, devices/src/virtio/balloon.rs",
    ),
    ("gpu", 6): FieldBit(
        "CREATE_GUEST_HANDLE",
        "blob resources with a handle of the guest's; crosvm and libkrun offer it",
        "google/crosvm, devices/src/virtio/gpu/protocol.rs; containers/libkrun, the file of that name",
    ),
    ("vsock", 3): FieldBit(
        "DGRAM",
        "datagram sockets: a proposal that was not taken up; libkrun offers it",
        "netdev list, series vsock-dgram v5, patch 10, 2023; containers/libkrun, "
        "src/devices/src/virtio/vsock/device.rs",
    ),
}
"""The bits by device type and number. Reserved numbers, which mean the same for each type, are in ``lookup``."""


def lookup(type_name: str, number: int) -> FieldBit | None:
    """Look up a bit that the standard does not define.

    Args:
        type_name: The device type, as ``ids.type_name`` returns it.
        number: The bit.

    Returns:
        What is known of it; None: nothing, or the standard defines it.
    """
    if f.feature(type_name, number).known:
        return None
    return _LOG_ALL if number == 26 else FIELD_BITS.get((type_name, number))


def described(type_name: str, number: int) -> str:
    """Return a bit that the standard does not define, in words: ``bit 6 (NAME, not in the standard)``."""
    found = lookup(type_name, number)
    return f"bit {number}" if found is None else f"bit {number} ({found.name}, not in the standard)"

"""What a step is called, and what to try, by the way in: registers, ioctls of vhost-vdpa, messages of vhost-user.

Sections of chapter 4 say how PCI and MMIO carry a step. Over vhost the same step is a message or an ioctl, which
no section has: it stands in the section's place, under its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from uvirtio.host import addresses
from uvirtio.host.addresses import VHOST_USER


@dataclass(frozen=True, slots=True)
class Words:
    """The words for one way in."""

    places: Mapping[str, str] = field(default_factory=dict)
    """What stands in the place of a section, by step; the sections of ``STEPS`` for all others."""
    vectors: str = ""
    """How interrupts are set up, for people; empty: their mode says it."""
    reset: str = ""
    """What a reset does."""
    leave: str = "bus master off, interrupts off, memory freed, function closed"
    """What is done at the end."""
    interrupts: str = "check MSI-X, INTx routing and interrupt remapping"
    """What to try where no interrupt arrives."""
    storm: str = "spurious interrupts do not stop: check the interrupt line, and what shares it"
    """What is wrong where they do not end."""
    untaken: str = "is the doorbell at that place decoded, and does the device read the ring at these addresses?"
    """What to try where a kick is not followed."""


_REGISTERS: Final = Words()

_MMIO: Final = Words(
    leave="memory freed, window closed",  # no bus master here, and no vectors
    interrupts="check the interrupt line of the window, and what InterruptStatus reads (4.2.2)",
)

_VHOST_USER: Final = Words(
    places={
        "discover": "vhost-user: GET_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER",
        "capabilities": "vhost-user: GET_QUEUE_NUM, GET_CONFIG",
        "reset": "2.4; vhost-user: GET_VRING_BASE",
        "features": "3.1.1 (4), 2.2; vhost-user: GET_FEATURES",
        "features_ok": "3.1.1 (5, 6); vhost-user: SET_FEATURES",
        "vectors": "2.3; vhost-user: SET_VRING_CALL",
        "queue_enable": "2.6; vhost-user: SET_MEM_TABLE, SET_VRING_*",
        "driver_ok": "3.1.1 (8); vhost-user: SET_STATUS, where negotiated",
        "interrupt": "2.3; vhost-user: SET_VRING_CALL",
        "configuration change": "2.5; vhost-user: CONFIG_CHANGE_MSG",
        "reset again": "2.4.2; vhost-user: GET_VRING_BASE",
    },
    vectors="an eventfd for the calls of each queue",
    reset="each started ring is disabled and stopped",
    leave="rings stopped, connection closed, memory freed",
    interrupts="does the back end write the eventfd of SET_VRING_CALL, and read used_event before it does?",
    storm="calls without a cause do not stop: the back end writes the eventfd for nothing",
    untaken="does the back end read the eventfd of SET_VRING_KICK, and the ring at these addresses?",
)

_VDPA: Final = Words(
    places={
        "discover": "vhost-vdpa: VHOST_VDPA_GET_DEVICE_ID",
        "capabilities": "vhost-vdpa: VHOST_VDPA_GET_VQS_COUNT, VHOST_VDPA_GET_CONFIG_SIZE",
        "vectors": "2.3; vhost-vdpa: VHOST_SET_VRING_CALL, VHOST_VDPA_SET_CONFIG_CALL",
        "queue_enable": "2.6; vhost-vdpa: VHOST_VDPA_SET_VRING_ENABLE",
        "interrupt": "2.3; vhost-vdpa: VHOST_SET_VRING_CALL",
        "configuration change": "2.5; vhost-vdpa: VHOST_VDPA_SET_CONFIG_CALL",
    },
    vectors="an eventfd for the calls of each queue",
    leave="calls off, IOVAs unmapped, memory freed, node closed",
    interrupts="does the parent driver signal the eventfd of VHOST_SET_VRING_CALL?",
    storm="calls without a cause do not stop: the parent driver signals the eventfd for nothing",
    untaken="does the parent driver hear the eventfd of VHOST_SET_VRING_KICK, and the device read the ring?",
)

_BY_BUS: Final = {"mmio": _MMIO, "vdpa": _VDPA, "vhost-user": _VHOST_USER}


def of(bus: str) -> Words:
    """The words for what a back end opened, by its ``bus``."""
    return _BY_BUS.get(bus, _REGISTERS)


def of_address(address: str) -> Words:
    """The words for an address, before it is open."""
    if address.startswith(VHOST_USER):
        return _VHOST_USER
    return _VDPA if address.startswith("vdpa:") or addresses.is_vhost_vdpa_node(address) else _REGISTERS

"""Cases of hostile devices: every fault that a ``scripted:`` address can have, with a value that shows it."""

from __future__ import annotations

from typing import Final

from uvirtio.scripted.address import PREFIX, switches

BUILT: Final = ("transport", "features", "packed", "access-platform", "vectors", "no-intx")
"""Switches for how the device is built, which is no fault."""

VALUES: Final = {
    "power-state": "3",
    "refuse-with": "EVENT_IDX+INDIRECT_DESC",
    "refuse-without": "SR_IOV",
    "features-later": "0x100000000",
    "status-or": "0x40",
    "needs-reset-at": "kick",
    "reset-reads": "-1",
    "reset-seconds": "5",
    "generation-bumps": "-1",
    "num-queues": "0",
    "queue-size": "0:0",
    "address-mask": "0xffff",
    "queue-reset-reads": "-1",
    "no-vectors": "0+1",
    "silent-queues": "0+1",
    "silent-with": "EVENT_IDX",
    "used-id": "+1",
    "used-len": "-1",
    "used-idx": "7",
    "avail-event": "0",
    "used-flags": "1",
    "at-most": "5",
    "status": "1",
    "answer": "3",
    "response": "9",
    "residual": "0xffffff00",
    "sense-len": "4096",
    "luns": "0xfffffff8",
    "written": "1",
    "size-lie": "4096",
    "actual": "7",
    "size": "129",
    "stuck": "1:0",
    "num-buffers": "0",
    "header-flags": "2",
    "ack": "1",
}
"""A value with which each switch is a fault that shows."""


def faults(type_name: str) -> list[str]:
    """The switches of a device type that are faults, as they are typed.

    Args:
        type_name: ``rng``, ``blk``, ``balloon``, ``mem``, ``input``, ``scsi`` or ``net``.
    """
    known = switches(type_name).values()
    return [f"{one.name}={VALUES[one.name]}" if one.value else one.name for one in known if one.name not in BUILT]


def hostile_cases(type_name: str) -> list[str]:
    """Addresses of devices with one fault each, for a test that is to run on all of them.

    A driver should give a result or raise a ``UvirtioError`` with each; some of the faults are harmless to it.

    Args:
        type_name: ``rng``, ``blk``, ``balloon``, ``mem``, ``input``, ``scsi`` or ``net``.

    Returns:
        ``scripted:`` addresses, in the order of a device's life: reset, negotiation, queues, kicks, ring, type.
    """
    return [f"{PREFIX}{type_name},{one}" for one in faults(type_name)]

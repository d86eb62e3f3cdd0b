"""What a QEMU tells of its virtio devices, by QMP, asked for in a way that fits its version and its device.

The status is asked for from this file alone, and of the versions with which that has been tried for every device:
up to 10.0. A queue that vhost serves is not asked for its indices, since the question is more to a back end than a
look. An element is asked for where QEMU itself serves a split ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from uvirtio.errors import QemuFailed

Qmp = Callable[..., Any]
"""``qmp(command, **arguments)`` of one QEMU."""

Answer = dict[str, Any]

STATUS_BEFORE: Final = (10, 1)
"""The first version with which the query of the status has not been tried for every device."""
_STATUS: Final = "x-query-virtio-status"
_LEAST: Final = "QEMU 7.2 or later"


def version(qmp: Qmp) -> tuple[int, int, int]:
    """The version of this QEMU: major, minor, micro.

    Raises:
        QemuFailed: It does not say.
    """
    told: Any = _object(qmp("query-version"), "query-version").get("qemu")
    try:
        return int(told["major"]), int(told["minor"]), int(told["micro"])
    except (KeyError, TypeError, ValueError) as error:
        raise _nonsense("query-version", told) from error


def tells_status(qmp: Qmp) -> bool:
    """Whether this QEMU may be asked for the status of a device."""
    return version(qmp) < STATUS_BEFORE


def status(qmp: Qmp, path: str) -> Answer | None:
    """The status, features and flags of a device; None where this QEMU is not asked for them.

    Args:
        qmp: The QEMU.
        path: The QOM path of the virtio device.
    """
    return _object(qmp(_STATUS, path=path), _STATUS) if tells_status(qmp) else None


def devices(qmp: Qmp) -> list[Answer]:
    """All virtio devices: ``path`` in the object tree, and ``name`` of the type, as in ``virtio-rng``.

    Raises:
        QemuFailed: This QEMU has no such query.
    """
    try:
        told = qmp("x-query-virtio")
    except QemuFailed as error:
        if error.seen == "CommandNotFound":
            raise QemuFailed(
                "this QEMU does not tell of its virtio devices",
                seen="no x-query-virtio in QEMU " + ".".join(map(str, version(qmp))),
                expected=_LEAST,
                remedy="leave --qmp out",
            ) from error
        if error.seen == "GenericError":  # "No virtio devices found"
            return []
        raise
    if not isinstance(told, list) or not all(
        isinstance(one, dict) and isinstance(one.get("path"), str) and isinstance(one.get("name"), str)
        for one in told
    ):
        raise _nonsense("x-query-virtio", told)
    return told


def vhost_queue(qmp: Qmp, path: str, index: int) -> Answer | None:
    """A queue that vhost serves, as QEMU has told vhost; None where QEMU serves it itself.

    Args:
        qmp: The QEMU.
        path: The QOM path of the virtio device.
        index: The queue.
    """
    try:
        return _object(qmp("x-query-virtio-vhost-queue-status", path=path, queue=index), "a queue of vhost")
    except QemuFailed as error:
        if error.seen == "GenericError":  # "vhost device has not started yet", or it does not have this queue
            return None
        raise


def queue(qmp: Qmp, path: str, index: int) -> Answer:
    """A queue that QEMU serves itself: addresses, size, indices. Only where ``vhost_queue`` is None.

    Args:
        qmp: The QEMU.
        path: The QOM path of the virtio device.
        index: The queue.
    """
    return _object(qmp("x-query-virtio-queue-status", path=path, queue=index), "a queue")


def element(qmp: Qmp, path: str, index: int) -> Answer | None:
    """What QEMU reads at its place in a split ring that it serves itself; None where it does not say.

    Args:
        qmp: The QEMU.
        path: The QOM path of the virtio device.
        index: The queue, which is enabled.
    """
    try:
        return _object(qmp("x-query-virtio-queue-element", path=path, queue=index), "an element")
    except QemuFailed as error:
        if error.seen in ("GenericError", "CommandNotFound"):
            return None
        raise


def running(qmp: Qmp) -> tuple[bool, str]:
    """Whether the machine runs, and the state that it is in: ``running``, ``paused`` ..."""
    told = _object(qmp("query-status"), "query-status")
    return bool(told.get("running")), str(told.get("status"))


def functions(qmp: Qmp) -> list[Answer]:
    """All PCI functions, those behind bridges too: ``bus``, ``slot``, ``function``, ``qdev_id``."""
    told = qmp("query-pci")
    found: list[Answer] = []
    try:
        waiting = [one for bus in told for one in bus["devices"]]
        while waiting:
            one = waiting.pop()
            found.append({name: one[name] for name in ("bus", "slot", "function", "qdev_id")})
            waiting += one.get("pci_bridge", {}).get("devices", [])
    except (KeyError, TypeError, AttributeError) as error:
        raise _nonsense("query-pci", told) from error
    return found


def _object(told: Any, what: str) -> Answer:
    if not isinstance(told, dict):
        raise _nonsense(what, told)
    return told


def _nonsense(what: str, told: Any) -> QemuFailed:
    return QemuFailed(
        f"QEMU's answer for {what} is not as its QMP schema has it",
        seen=repr(told)[:80],
        expected=_LEAST,
        remedy="is the socket QEMU's own, and not a proxy's?",
    )

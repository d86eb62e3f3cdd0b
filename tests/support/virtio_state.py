"""What QEMU says of the state of a virtio device, asked for in a way that fits its version.

The query of the status tells most. It is sent to the versions with which it has been tried for every device, up to
10.0, and only by ``uvirtio/backends/qemu/queries.py``. A newer QEMU is asked for the queues
(``x-query-virtio-queue-status``), and for the registers by its monitor's ``xp`` and ``i``, which read memory and
I/O ports as the guest's CPU would, past the driver.

Nothing else of the package is used, since this bears witness about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvirtio.backends.qemu import queries

# virtio 1.4, 2.1 and 6: what tests ask for.
_STATUS = {0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "NEEDS_RESET", 7: "FAILED"}
FEATURES = {32: "VERSION_1", 33: "ACCESS_PLATFORM", 34: "RING_PACKED", 35: "IN_ORDER"}
_OTHER_NAMES = {"IOMMU_PLATFORM": "ACCESS_PLATFORM"}
# Where QEMU has them: the common configuration begins BAR 4, which a function without the modern interface lacks.
_MODERN_BAR, _COMMON_STATUS = 4, 0x14
_LEGACY_BAR, _HEADER_STATUS = 0, 0x12
_MMIO_STATUS = 0x70

Qmp = Callable[..., Any]
"""``qmp(command, **arguments)``."""


@dataclass(frozen=True, slots=True)
class State:
    """A device's state, by the names of the standard without their prefixes."""

    status: frozenset[str]
    """The names of the bits in the device status."""
    broken: bool
    features: frozenset[str] | None
    """The names of the transport's features that the driver has accepted; None where that is not told."""


def started(qmp: Qmp, path: str) -> bool:
    """Whether a driver has brought up the device at the QOM ``path``; its registers need not be in reach."""
    told = queries.status(qmp, path)
    if told is not None:
        return bool(told["started"])
    # A reset forgets the addresses of all queues, and each driver of ours has a queue 0.
    return bool(qmp("x-query-virtio-queue-status", path=path, queue=0)["vring-desc"])


def state(qmp: Qmp, path: str) -> State:
    """The state of the device at the QOM ``path``, while its registers can be reached."""
    told = queries.status(qmp, path)
    if told is not None:
        status = _names(told["status"]["statuses"], "VIRTIO_CONFIG_S_")
        features = _names(told["guest-features"]["transports"], "VIRTIO_F_")
        features = frozenset(_OTHER_NAMES.get(name, name) for name in features)
        return State(status, bool(told["broken"]), features)
    number = _register(qmp, path)
    status = frozenset(name for bit, name in _STATUS.items() if number >> bit & 1)
    return State(status, "NEEDS_RESET" in status, None)


def _names(lines: list[str], prefix: str) -> frozenset[str]:
    """The names before the explanations, as in ``VIRTIO_F_VERSION_1: Device compliant ...``."""
    return frozenset(line.partition(":")[0].removeprefix(prefix) for line in lines)


def _register(qmp: Qmp, path: str) -> int:
    """The device status register, by the monitor."""
    name = path.split("/")[3]
    if not path.endswith("/virtio-backend"):
        return _read(qmp, f"xp /1xw {_mmio_window(qmp, name) + _MMIO_STATUS:#x}")  # no shorter access (4.2.2.2)
    regions = {region["bar"]: region for region in _function(qmp("query-pci"), name)["regions"]}
    if _MODERN_BAR in regions:
        return _read(qmp, f"xp /1xb {regions[_MODERN_BAR]['address'] + _COMMON_STATUS:#x}")
    return _read(qmp, f"i /1xb {regions[_LEGACY_BAR]['address'] + _HEADER_STATUS:#x}")


def _function(buses: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The PCI function with this id, from the answer of query-pci."""
    waiting = [device for bus in buses for device in bus["devices"]]
    while waiting:
        device = waiting.pop()
        if device["qdev_id"] == name:
            return device
        waiting += device.get("pci_bridge", {}).get("devices", [])
    raise AssertionError(f"query-pci has no {name}")


def _mmio_window(qmp: Qmp, name: str) -> int:
    """The address of the virtio-mmio window of the device with this id, from the monitor's tree of devices."""
    head = _monitor(qmp, "info qtree").partition(f'id "{name}"')[0]
    return int(re.findall(r"\bmmio ([0-9a-f]{16})/", head)[-1], 16)


def _read(qmp: Qmp, command: str) -> int:
    said = _monitor(qmp, command)
    match = re.search(r"[:=] 0x([0-9a-f]+)\s*$", said)
    assert match, f"{command}: {said}"
    return int(match[1], 16)


def _monitor(qmp: Qmp, command: str) -> str:
    return str(qmp("human-monitor-command", **{"command-line": command}))

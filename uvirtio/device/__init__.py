"""One device: bringing it up (3.1.1), sessions with it, its configuration, waiting, and leaving it in order.

The names below are imported when they are first asked for: ``uvirtio.open`` starts a QEMU with the options alone,
and loads the rest meanwhile.
"""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.device.bringup import (
        ADMIN_QUEUE,
        LEGACY_FEATURES,
        RING_FEATURES,
        GiveBack,
        Observer,
        unobserved,
    )
    from uvirtio.device.core import Device
    from uvirtio.device.counters import Counters
    from uvirtio.device.keywords import OpenKeywords, RingChoice
    from uvirtio.device.options import OpenOptions
    from uvirtio.device.queue import QUEUE_SIZE_MAX, Queue, QueueSpec
    from uvirtio.device.rights import Rights, drop_capabilities
    from uvirtio.device.state import Session
    from uvirtio.interfaces.values import DEFAULT_TIMEOUT

__all__ = [
    "ADMIN_QUEUE",
    "DEFAULT_TIMEOUT",
    "LEGACY_FEATURES",
    "QUEUE_SIZE_MAX",
    "RING_FEATURES",
    "Counters",
    "Device",
    "GiveBack",
    "Observer",
    "OpenKeywords",
    "OpenOptions",
    "Queue",
    "QueueSpec",
    "Rights",
    "RingChoice",
    "Session",
    "drop_capabilities",
    "unobserved",
]

if not TYPE_CHECKING:  # or every misspelt name would pass as Any
    _HOMES = {
        **dict.fromkeys(
            ("ADMIN_QUEUE", "LEGACY_FEATURES", "RING_FEATURES", "GiveBack", "Observer", "unobserved"),
            "device.bringup",
        ),
        "Device": "device.core",
        "Counters": "device.counters",
        **dict.fromkeys(("OpenKeywords", "RingChoice"), "device.keywords"),
        "OpenOptions": "device.options",
        **dict.fromkeys(("QUEUE_SIZE_MAX", "Queue", "QueueSpec"), "device.queue"),
        **dict.fromkeys(("Rights", "drop_capabilities"), "device.rights"),
        "Session": "device.state",
        "DEFAULT_TIMEOUT": "interfaces.values",
    }

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            found = globals()[name] = getattr(__import__(f"uvirtio.{_HOMES[name]}", fromlist=[name]), name)
            return found
        raise AttributeError(f"module 'uvirtio.device' has no attribute {name!r}")

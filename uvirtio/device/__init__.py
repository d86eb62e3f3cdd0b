"""One device: bringing it up (3.1.1), sessions with it, its configuration, waiting, and leaving it in order."""

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
from uvirtio.device.options import OpenKeywords, OpenOptions, RingChoice
from uvirtio.device.queue import QUEUE_SIZE_MAX, Queue, QueueSpec
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
    "RingChoice",
    "Session",
    "unobserved",
]

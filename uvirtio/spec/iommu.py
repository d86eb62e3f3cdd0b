"""The IOMMU device (5.13). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 23
REQUESTQ: Final = 0  # 5.13.2
EVENTQ: Final = 1

# Configuration (5.13.4).
CONFIG: Final[Layout] = (
    F("page_size_mask", 0, 8),
    F("input_range_start", 8, 8),  # with INPUT_RANGE
    F("input_range_end", 16, 8),
    F("domain_range_start", 24, 4),  # with DOMAIN_RANGE
    F("domain_range_end", 28, 4),
    F("probe_size", 32, 4),  # with PROBE
    F("bypass", 36, 1),  # with BYPASS_CONFIG
)


class Request(IntEnum):
    """Types of requests (5.13.6)."""

    ATTACH = 1
    DETACH = 2
    MAP = 3
    UNMAP = 4
    PROBE = 5


class Status(IntEnum):
    """How a request ended (5.13.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    DEVERR = 3
    INVAL = 4
    RANGE = 5
    NOENT = 6
    FAULT = 7
    NOMEM = 8


ATTACH: Final = Struct("<B3xIII4x")
"""type, domain, endpoint, flags."""
DETACH: Final = Struct("<B3xII8x")
"""type, domain, endpoint."""
MAP: Final = Struct("<B3xIQQQI")
"""type, domain, virt_start, virt_end (inclusive), phys_start, flags."""
UNMAP: Final = Struct("<B3xIQQ4x")
"""type, domain, virt_start, virt_end (inclusive)."""
PROBE: Final = Struct("<B3xI64x")
"""type, endpoint; the properties are written into the next probe_size bytes."""
TAIL_SIZE: Final = 4
"""status, and three bytes of zero, behind everything else (5.13.6)."""

READ: Final = 1
WRITE: Final = 2
"""``flags`` of a mapping (5.13.6.5)."""

PROPERTY: Final = Struct("<HH")
"""struct virtio_iommu_probe_property: type, length of what follows."""
PROPERTY_TYPE_MASK: Final = 0xFFF

FAULT: Final = Struct("<B3xII4xQ")
"""struct virtio_iommu_fault (5.13.6.9): reason, flags, endpoint, address."""
FAULT_REASONS: Final = {0: "unknown", 1: "domain", 2: "mapping"}

"""The persistent memory device (5.19). Offsets, widths and sizes in bytes."""

from __future__ import annotations

from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 27
REQUESTQ: Final = 0  # 5.19.2

# Configuration (5.19.4), unless SHMEM_REGION is negotiated.
CONFIG: Final[Layout] = (F("start", 0, 8), F("size", 8, 8))

FLUSH: Final = 0
"""The type of a request (5.19.6)."""
REQUEST: Final = Struct("<I")
RESPONSE: Final = Struct("<I")
"""ret: 0, or that it failed (5.19.7.1)."""

"""The GPU device (5.7), as far as its 2D commands go. Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 16

CONTROLQ: Final = 0  # 5.7.2
CURSORQ: Final = 1

# Configuration (5.7.4).
CONFIG: Final[Layout] = (
    F("events_read", 0, 4),
    F("events_clear", 4, 4),
    F("num_scanouts", 8, 4),
    F("num_capsets", 12, 4),
)
EVENT_DISPLAY: Final = 1
SCANOUTS_MAX: Final = 16

HEADER: Final = Struct("<IIQIB3x")
"""struct virtio_gpu_ctrl_hdr (5.7.6.7): type, flags, fence_id, ctx_id, ring_idx."""

FLAG_FENCE: Final = 1


class Command(IntEnum):
    """Types of requests (5.7.6.7)."""

    GET_DISPLAY_INFO = 0x0100
    RESOURCE_CREATE_2D = 0x0101
    RESOURCE_UNREF = 0x0102
    SET_SCANOUT = 0x0103
    RESOURCE_FLUSH = 0x0104
    TRANSFER_TO_HOST_2D = 0x0105
    RESOURCE_ATTACH_BACKING = 0x0106
    RESOURCE_DETACH_BACKING = 0x0107
    GET_EDID = 0x010A
    RESOURCE_MAP_BLOB = 0x0208
    RESOURCE_UNMAP_BLOB = 0x0209


class Response(IntEnum):
    """Types of responses (5.7.6.7)."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_EDID = 0x1104
    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


DISPLAY: Final = Struct("<IIIIII")
"""struct virtio_gpu_display_one (5.7.6.8): x, y, width, height, enabled, flags; 16 of them in an answer."""
DISPLAY_INFO_SIZE: Final = 24 + SCANOUTS_MAX * DISPLAY.size

FORMAT_B8G8R8X8: Final = 2
CREATE_2D: Final = Struct("<IIII")
"""resource_id, format, width, height."""
RESOURCE: Final = Struct("<II")
"""resource_id, padding: of RESOURCE_UNREF and DETACH_BACKING; scanout, padding: of GET_EDID."""
ATTACH_BACKING: Final = Struct("<II")
"""resource_id, nr_entries; then the entries."""
MEMORY: Final = Struct("<QII")
"""struct virtio_gpu_mem_entry: addr, length, padding."""
SET_SCANOUT: Final = Struct("<IIIIII")
"""x, y, width, height, scanout_id, resource_id; resource 0 turns the scanout off."""
TRANSFER: Final = Struct("<IIIIQII")
"""x, y, width, height, offset, resource_id, padding."""
FLUSH: Final = Struct("<IIIIII")
"""x, y, width, height, resource_id, padding."""

EDID_HEAD: Final = Struct("<II")
"""size, padding; then 1024 bytes."""
EDID_MAX: Final = 1024
EDID_MAGIC: Final = bytes.fromhex("00ffffffffffff00")
"""How every EDID begins (VESA E-EDID, 3.3)."""

"""The SCSI host device (5.6). Offsets, widths, sizes in bytes; CDBs and sense data are big-endian (SPC, SBC)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 8
CONTROLQ: Final = 0  # 5.6.2
EVENTQ: Final = 1
REQUESTQ: Final = 2  # the first of num_queues

# Configuration (5.6.4).
CONFIG: Final[Layout] = (
    F("num_queues", 0, 4),
    F("seg_max", 4, 4),
    F("max_sectors", 8, 4),
    F("cmd_per_lun", 12, 4),
    F("event_info_size", 16, 4),
    F("sense_size", 20, 4),
    F("cdb_size", 24, 4),
    F("max_channel", 28, 2),
    F("max_target", 30, 2),
    F("max_lun", 32, 4),
)
CONFIG_SIZE: Final = 36
UNIT: Final = 512
"""Bytes that ``max_sectors`` counts."""
SENSE_SIZE: Final = 96
"""``sense_size`` after a reset (5.6.4)."""
CDB_SIZE: Final = 32
"""``cdb_size`` after a reset (5.6.4)."""

# A request up to its CDB, and an answer up to its sense data (5.6.6.1).
REQUEST: Final[Layout] = (F("lun", 0, 8), F("id", 8, 8), F("task_attr", 16, 1), F("prio", 17, 1), F("crn", 18, 1))
REQUEST_SIZE: Final = 19
RESPONSE: Final[Layout] = (
    F("sense_len", 0, 4),
    F("residual", 4, 4),
    F("status_qualifier", 8, 2),
    F("status", 10, 1),
    F("response", 11, 1),
)
RESPONSE_SIZE: Final = 12


class Response(IntEnum):
    """The answer of the transport, to requests and on the control queue (5.6.6.1, 5.6.6.2)."""

    OK = 0  # FUNCTION_COMPLETE on the control queue
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class Status(IntEnum):
    """The status of a command (SAM-5, 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Control(IntEnum):
    """Types of requests on the control queue (5.6.6.2)."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class Task(IntEnum):
    """Task management functions (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


# 5.6.6.2: le32 type, le32 subtype, lun, le64 id; then one byte of response.
TMF: Final[Layout] = (F("type", 0, 4), F("subtype", 4, 4), F("lun", 8, 8), F("id", 16, 8))
TMF_SIZE: Final = 24

# 5.6.6.3.
EVENT: Final[Layout] = (F("event", 0, 4), F("lun", 4, 8), F("reason", 12, 4))
EVENT_SIZE: Final = 16
EVENTS_MISSED: Final = 1 << 31


class EventType(IntEnum):
    """``event`` without the bit of missed events (5.6.6.3)."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


class ResetReason(IntEnum):
    """``reason`` of a transport reset (5.6.6.3)."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


class Opcode(IntEnum):
    """The first byte of a CDB (SPC-5, SBC-4), of the commands here."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SYNCHRONIZE_CACHE_10 = 0x35
    LOG_SENSE = 0x4D
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    READ_16 = 0x88
    WRITE_16 = 0x8A
    SYNCHRONIZE_CACHE_16 = 0x91
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3


READ_CAPACITY_16: Final = 0x10
"""Service action of SERVICE_ACTION_IN_16."""


class Key(IntEnum):
    """Sense keys (SPC-5, 4.4.8)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


ASC: Final[dict[tuple[int, int], str]] = {
    (0x00, 0x00): "no additional sense information",
    (0x00, 0x06): "I/O process terminated",
    (0x04, 0x00): "logical unit not ready, cause not reportable",
    (0x04, 0x01): "logical unit is in process of becoming ready",
    (0x04, 0x02): "logical unit not ready, initializing command required",
    (0x04, 0x03): "logical unit not ready, manual intervention required",
    (0x04, 0x04): "logical unit not ready, format in progress",
    (0x04, 0x0B): "logical unit not accessible, target port in standby state",
    (0x04, 0x0C): "logical unit not accessible, target port in unavailable state",
    (0x08, 0x00): "logical unit communication failure",
    (0x08, 0x01): "logical unit communication time-out",
    (0x0C, 0x00): "write error",
    (0x0C, 0x02): "write error, auto reallocation failed",
    (0x10, 0x01): "logical block guard check failed",
    (0x11, 0x00): "unrecovered read error",
    (0x14, 0x01): "record not found",
    (0x1A, 0x00): "parameter list length error",
    (0x1D, 0x00): "miscompare during verify operation",
    (0x20, 0x00): "invalid command operation code",
    (0x21, 0x00): "logical block address out of range",
    (0x24, 0x00): "invalid field in CDB",
    (0x25, 0x00): "logical unit not supported",
    (0x26, 0x00): "invalid field in parameter list",
    (0x27, 0x00): "write protected",
    (0x27, 0x07): "space allocation failed, write protect",
    (0x28, 0x00): "not ready to ready change, medium may have changed",
    (0x29, 0x00): "power on, reset, or bus device reset occurred",
    (0x29, 0x01): "power on occurred",
    (0x29, 0x02): "SCSI bus reset occurred",
    (0x29, 0x03): "bus device reset function occurred",
    (0x29, 0x07): "I_T nexus loss occurred",
    (0x2A, 0x00): "parameters changed",
    (0x2A, 0x01): "mode parameters changed",
    (0x2A, 0x03): "reservations preempted",
    (0x2A, 0x09): "capacity data has changed",
    (0x2F, 0x00): "commands cleared by another initiator",
    (0x30, 0x00): "incompatible medium installed",
    (0x31, 0x00): "medium format corrupted",
    (0x38, 0x07): "thin provisioning soft threshold reached",
    (0x39, 0x00): "saving parameters not supported",
    (0x3A, 0x00): "medium not present",
    (0x3A, 0x01): "medium not present, tray closed",
    (0x3A, 0x02): "medium not present, tray open",
    (0x3F, 0x00): "target operating conditions have changed",
    (0x3F, 0x01): "microcode has been changed",
    (0x3F, 0x03): "INQUIRY data has changed",
    (0x3F, 0x0E): "reported LUNs data has changed",
    (0x44, 0x00): "internal target failure",
    (0x47, 0x00): "SCSI parity error",
    (0x48, 0x00): "initiator detected error message received",
    (0x4B, 0x00): "data phase error",
    (0x4E, 0x00): "overlapped commands attempted",
    (0x53, 0x02): "medium removal prevented",
    (0x55, 0x00): "system resource failure",
    (0x5D, 0x00): "failure prediction threshold exceeded",
    (0x64, 0x00): "illegal mode for this track",
}
"""Names of (ASC, ASCQ) that disks and CD drives report (SPC-5, annex F); the list of the standard has hundreds."""

TYPES: Final[dict[int, str]] = {
    0x00: "disk",
    0x01: "tape",
    0x03: "processor",
    0x04: "write-once disk",
    0x05: "CD/DVD",
    0x07: "optical disk",
    0x08: "medium changer",
    0x0C: "storage array controller",
    0x0D: "enclosure services",
    0x0E: "simplified disk",
    0x11: "object-based storage",
    0x14: "host-managed zoned disk",
    0x1E: "well-known logical unit",
}
"""Peripheral device types (SPC-5, 6.6.2)."""

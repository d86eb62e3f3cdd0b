"""SCSI commands and what they answer: pure functions over bytes, all big-endian (SPC-5, SBC-4).

A function that makes a command returns a ``Command``; ``decode_...`` takes what came back.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from uvirtio.errors import BadSize, ScsiAnswer, UsageError
from uvirtio.spec.scsi import READ_CAPACITY_16, TYPES, Opcode

INQUIRY_SIZE = 96
VPD_SIZE = 252
LUN_LIST_SIZE = 4096
MODE_SIZE = 192

VPD_SUPPORTED = 0x00
VPD_SERIAL = 0x80
VPD_IDENTIFICATION = 0x83
VPD_BLOCK_LIMITS = 0xB0
ALL_PAGES = 0x3F
"""The mode page code that asks for all of them."""

_READ_ONLY = frozenset(
    {
        Opcode.TEST_UNIT_READY,
        Opcode.REQUEST_SENSE,
        Opcode.INQUIRY,
        Opcode.MODE_SENSE_6,
        Opcode.MODE_SENSE_10,
        Opcode.READ_CAPACITY_10,
        Opcode.READ_10,
        Opcode.READ_16,
        Opcode.LOG_SENSE,
        Opcode.PERSISTENT_RESERVE_IN,
        Opcode.SYNCHRONIZE_CACHE_10,
        Opcode.SYNCHRONIZE_CACHE_16,
        Opcode.REPORT_LUNS,
        Opcode.MAINTENANCE_IN,
    }
)
"""Commands that change nothing that is stored; SERVICE ACTION IN is one with some of its actions."""

_INQUIRY, _REPORT = struct.Struct(">BBBHB"), struct.Struct(">B5xI2x")
_SENSE = struct.Struct(">6B")
_CDB_10, _CDB_16 = struct.Struct(">BBIBHB"), struct.Struct(">BBQIBB")
_LAST_32, _LAST_64 = 0xFFFF_FFFF, (1 << 64) - 1
_CDB_MIN = 6
"""Bytes of the shortest CDB."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its CDB, and the data of one direction."""

    name: str
    cdb: bytes
    room: int = 0
    """Bytes that the device may write; as many as the CDB asks for, else it answers OVERRUN (5.6.6.1.1)."""
    data: bytes | memoryview = b""
    """What the device reads."""
    whole: bool = False
    """Whether GOOD means that all data were moved: for READ and WRITE."""

    def __post_init__(self) -> None:
        if len(self.cdb) < _CDB_MIN:
            raise BadSize(
                f"the CDB of {self.name} is too short",
                seen=f"{len(self.cdb)} bytes",
                expected=f"{_CDB_MIN} or more (SPC-5)",
            )
        if self.room and len(self.data):
            raise UsageError(
                f"{self.name} has data in both directions",
                seen=f"{len(self.data)} bytes to read, room for {self.room}",
                expected="one of them: INOUT is not negotiated (5.6.3)",
            )

    @property
    def changes(self) -> bool:
        """Whether the command may change what is stored, or is not known to leave it alone."""
        opcode = self.cdb[0]
        if opcode == Opcode.SERVICE_ACTION_IN_16:
            return self.cdb[1] & 0x1F != READ_CAPACITY_16
        return len(self.data) > 0 or opcode not in _READ_ONLY


def test_unit_ready() -> Command:
    """Ask whether the unit is ready (SPC-5, 6.47)."""
    return Command("TEST UNIT READY", bytes(6))


test_unit_ready.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def request_sense(room: int = VPD_SIZE) -> Command:
    """Ask for sense data, which ends a unit attention (SPC-5, 6.39)."""
    return Command("REQUEST SENSE", _cdb(_SENSE, Opcode.REQUEST_SENSE, 0, 0, 0, room, 0), room)


def inquiry(room: int = INQUIRY_SIZE) -> Command:
    """Ask who the unit is (SPC-5, 6.6)."""
    return Command("INQUIRY", _cdb(_INQUIRY, Opcode.INQUIRY, 0, 0, room, 0), room)


def vpd(page: int, room: int = VPD_SIZE) -> Command:
    """Ask for one page of vital product data (SPC-5, 6.6 and 7.7)."""
    cdb = _cdb(_INQUIRY, Opcode.INQUIRY, 1, page, room, 0)
    return Command(f"INQUIRY of page {page:#04x}", cdb, room)


def report_luns(room: int = LUN_LIST_SIZE) -> Command:
    """Ask which units the target has (SPC-5, 6.33); ``room`` is 16 or more."""
    return Command("REPORT LUNS", _cdb(_REPORT, Opcode.REPORT_LUNS, room), room)


def read_capacity_10() -> Command:
    """Ask for the last block below 2^32, and the size of a block (SBC-4, 5.20)."""
    return Command("READ CAPACITY(10)", bytes([Opcode.READ_CAPACITY_10, *bytes(9)]), 8)


def read_capacity_16(room: int = 32) -> Command:
    """Ask for the last block, the size of a block, and how the unit is provisioned (SBC-4, 5.21)."""
    cdb = _cdb(_CDB_16, Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, 0, room, 0, 0)
    return Command("READ CAPACITY(16)", cdb, room)


def read(block: int, blocks: int, block_size: int) -> Command:
    """Read blocks: READ(10), or READ(16) where the numbers need it (SBC-4, 5.16 and 5.18).

    Raises:
        BadSize: There cannot be such blocks.
    """
    return Command(
        *_transfer("READ", Opcode.READ_10, Opcode.READ_16, block, blocks), blocks * block_size, whole=True
    )


def write(block: int, data: bytes | memoryview, block_size: int) -> Command:
    """Write whole blocks: WRITE(10), or WRITE(16) where the numbers need it (SBC-4, 5.40 and 5.42).

    Raises:
        BadSize: ``data`` is not whole blocks, or there cannot be such blocks.
    """
    blocks, rest = divmod(len(data), block_size)
    if rest:
        raise BadSize("only whole blocks can be written", seen=len(data), expected=f"a multiple of {block_size}")
    return Command(*_transfer("WRITE", Opcode.WRITE_10, Opcode.WRITE_16, block, blocks), data=data, whole=True)


def synchronize_cache() -> Command:
    """Write the whole cache of the unit to its medium (SBC-4, 5.33)."""
    return Command("SYNCHRONIZE CACHE", bytes([Opcode.SYNCHRONIZE_CACHE_10, *bytes(9)]))


def mode_sense(page: int = ALL_PAGES, room: int = MODE_SIZE) -> Command:
    """Ask for mode pages, without block descriptors (SPC-5, 6.13)."""
    return Command("MODE SENSE(6)", _cdb(_SENSE, Opcode.MODE_SENSE_6, 8, page, 0, room, 0), room)


def _cdb(shape: struct.Struct, *fields: int) -> bytes:
    try:
        return shape.pack(*fields)
    except struct.error as error:
        raise BadSize(
            "a number does not fit its field of the CDB", seen=str(fields[1:]), expected=str(error)
        ) from None


def fits_10(block: int, blocks: int) -> bool:
    """Whether a transfer can be named in a CDB of 10 bytes."""
    return block <= _LAST_32 and blocks <= 0xFFFF


def _transfer(name: str, short: Opcode, long: Opcode, block: int, blocks: int) -> tuple[str, bytes]:
    if not (0 <= block <= _LAST_64 and 0 <= blocks <= _LAST_32):
        raise BadSize(
            f"{name} cannot name these blocks",
            seen=f"{blocks} from {block}",
            expected="a block from 0 to 2^64 - 1, and less than 2^32 of them",
        )
    if fits_10(block, blocks):
        return f"{name}(10)", _CDB_10.pack(short, 0, block, 0, blocks, 0)
    return f"{name}(16)", _CDB_16.pack(long, 0, block, blocks, 0, 0)


# --- answers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inquiry:
    """The standard INQUIRY data (SPC-5, 6.6.2). Text is printable ASCII, without the blanks at its end."""

    qualifier: int
    """0: a unit is there; 1: none now, but there can be one; 3: there cannot be one."""
    type: int
    """Peripheral device type, 0x1f where there is none."""
    removable: bool
    version: int
    """The version of SPC that the unit claims."""
    vendor: str
    product: str
    revision: str

    @property
    def present(self) -> bool:
        """Whether there is a unit at this number."""
        return self.qualifier == 0 and self.type != 0x1F

    @property
    def type_name(self) -> str:
        """The name of the type."""
        return TYPES.get(self.type, f"type {self.type:#04x}")


@dataclass(frozen=True, slots=True)
class Capacity:
    """How large a unit is."""

    blocks: int
    block_size: int
    """In bytes: 512, 2048 or 4096 in practice."""
    thin: bool | None = None
    """Whether blocks may be unmapped (LBPME); None: READ CAPACITY(10) does not say."""

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return self.blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Mode:
    """What the mode parameter header and the caching page say (SPC-5, 7.5.6; SBC-4, 6.5.6)."""

    write_protected: bool
    fua: bool
    """DPOFUA: the unit takes the FUA bit in READ and WRITE."""
    write_cache: bool | None = None
    """Whether written data may be in a cache first; None: there is no caching page."""


@dataclass(frozen=True, slots=True)
class Identification:
    """A designator of VPD page 0x83 (SPC-5, 7.7.6)."""

    type: int
    """0: vendor's own, 1: T10 vendor, 2: EUI-64, 3: NAA, 8: SCSI name."""
    association: int
    """0: the logical unit, 1: the target port, 2: the target."""
    text: str
    """Printable text as it is, binary values in hexadecimal."""


def decode_inquiry(data: bytes) -> Inquiry:
    """Decode standard INQUIRY data; text that is cut off is empty.

    Raises:
        ScsiAnswer: There is not one byte.
    """
    _at_least("INQUIRY", data, 1)
    return Inquiry(
        qualifier=data[0] >> 5,
        type=data[0] & 0x1F,
        removable=len(data) > 1 and bool(data[1] & 0x80),
        version=data[2] if len(data) > 2 else 0,
        vendor=text(data[8:16]),
        product=text(data[16:32]),
        revision=text(data[32:36]),
    )


def decode_vpd(page: int, data: bytes) -> bytes:
    """Return the payload of a page of vital product data, as far as it is there.

    Raises:
        ScsiAnswer: It is shorter than its header, or is another page.
    """
    _at_least(f"INQUIRY of page {page:#04x}", data, 4)
    if data[1] != page:
        raise ScsiAnswer("the unit answers with another page", seen=f"{data[1]:#04x}", expected=f"{page:#04x}")
    return data[4 : 4 + int.from_bytes(data[2:4], "big")]


def decode_identifications(payload: bytes) -> list[Identification]:
    """Decode the payload of VPD page 0x83; a designator that is cut off ends the list."""
    found, at = [], 0
    while at + 4 <= len(payload):
        size = payload[at + 3]
        value = payload[at + 4 : at + 4 + size]
        if len(value) < size:
            break
        printable = payload[at] & 0xF in (2, 3)  # code set: ASCII, UTF-8
        found.append(
            Identification(
                type=payload[at + 1] & 0xF,
                association=payload[at + 1] >> 4 & 3,
                text=text(value) if printable else value.hex(),
            )
        )
        at += 4 + size
    return found


def decode_luns(data: bytes) -> tuple[list[bytes], int]:
    """Decode a LUN list.

    Returns:
        The entries of 8 bytes each that are there, and the bytes that the whole list has.

    Raises:
        ScsiAnswer: It is shorter than its header.
    """
    _at_least("REPORT LUNS", data, 8)
    told = int.from_bytes(data[:4], "big")
    end = min(8 + told, len(data))
    return [bytes(data[at : at + 8]) for at in range(8, end - 7, 8)], 8 + told


def decode_capacity_10(data: bytes) -> Capacity | None:
    """Decode the answer to READ CAPACITY(10); None: the unit has more blocks than it can say.

    Raises:
        ScsiAnswer: It is too short, or no block size.
    """
    _at_least("READ CAPACITY(10)", data, 8)
    last, size = struct.unpack_from(">II", data)
    return None if last == _LAST_32 else Capacity(last + 1, _block_size(size))


def decode_capacity_16(data: bytes) -> Capacity:
    """Decode the answer to READ CAPACITY(16).

    Raises:
        ScsiAnswer: It is too short, or has no block size.
    """
    _at_least("READ CAPACITY(16)", data, 12)
    last, size = struct.unpack_from(">QI", data)
    return Capacity(last + 1, _block_size(size), bool(data[14] & 0x80) if len(data) > 14 else None)


def decode_mode(data: bytes) -> Mode:
    """Decode the answer to MODE SENSE(6).

    Raises:
        ScsiAnswer: It is shorter than its header.
    """
    _at_least("MODE SENSE(6)", data, 4)
    end = min(len(data), 1 + data[0])
    at, cache = 4 + data[3], None
    while at + 2 <= end:
        if data[at] & 0x3F == 0x08 and at + 3 <= end:
            cache = bool(data[at + 2] & 0x04)
        at += 2 + data[at + 1]
    return Mode(write_protected=bool(data[2] & 0x80), fua=bool(data[2] & 0x10), write_cache=cache)


def text(data: bytes) -> str:
    """Return text of a device: printable ASCII, other bytes as dots, no blanks or zeros around it."""
    return "".join(chr(one) if 0x20 <= one < 0x7F else "." for one in bytes(data).strip(b" \0"))


def _block_size(size: int) -> int:
    if not 1 <= size <= 1 << 20:
        raise ScsiAnswer(
            "the unit reports a size of its blocks that cannot be",
            seen=f"{size} bytes",
            expected="512, 2048 or 4096 bytes",
            remedy="the device is at fault",
        )
    return size


def _at_least(what: str, data: bytes, size: int) -> None:
    if len(data) < size:
        raise ScsiAnswer(
            f"the answer to {what} is too short",
            seen=f"{len(data)} bytes",
            expected=f"{size} or more",
            remedy="the device is at fault; its log may say more",
        )

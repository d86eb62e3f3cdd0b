"""SCSI commands, answers, LUNs and sense data: bytes as SPC and SBC have them, and as QEMU 7.2 sent them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.drivers.scsi import Capacity, Inquiry, Lun, Mode, sense
from uvirtio.drivers.scsi import commands as c
from uvirtio.drivers.scsi.commands import Identification
from uvirtio.errors import BadSize, ScsiAnswer, UsageError

CDBS = [
    (c.test_unit_ready(), "000000000000", 0),
    (c.request_sense(), "03000000fc00", 252),
    (c.inquiry(), "120000006000", 96),
    (c.vpd(0x83), "12018300fc00", 252),
    (c.report_luns(4096), "a000000000000000100000" + "00", 4096),
    (c.read_capacity_10(), "25000000000000000000", 8),
    (c.read_capacity_16(), "9e10000000000000000000000020" + "0000", 32),
    (c.read(0x01020304, 0x0506, 512), "28000102030400050600", 0x0506 * 512),
    (c.read(1 << 32, 8, 4096), "88000000000100000000000000080000", 8 * 4096),
    (c.read(0, 1 << 16, 1), "88000000000000000000000100000000", 1 << 16),
    (c.write(7, bytes(1024), 512), "2a000000000700000200", 0),
    (c.write(1 << 32, bytes(512), 512), "8a000000000100000000000000010000", 0),
    (c.synchronize_cache(), "35000000000000000000", 0),
    (c.mode_sense(), "1a083f00c000", 192),
]


@pytest.mark.parametrize(("command", "cdb", "room"), CDBS, ids=lambda one: getattr(one, "name", ""))
def test_a_command_is_these_bytes(command: c.Command, cdb: str, room: int):
    assert command.cdb.hex() == cdb and command.room == room
    assert len(command.cdb) in (6, 10, 12, 16)
    assert command.changes == command.name.startswith("WRITE")
    assert command.whole == command.name.startswith(("READ(", "WRITE("))


@pytest.mark.parametrize("opcode", [0x04, 0x2F, 0x41, 0x42, 0x5F, 0x93, 0x9F, 0xA4, 0x1B])
def test_what_is_not_known_to_be_harmless_counts_as_a_change(opcode: int):
    assert c.Command("raw", bytes([opcode, *bytes(9)])).changes
    assert c.Command("other service action", bytes([0x9E, 0x12, *bytes(14)])).changes


def test_half_blocks_are_not_written():
    with pytest.raises(BadSize):
        c.write(0, bytes(700), 512)


def test_inquiry_of_qemu():
    data = bytes.fromhex("000005125b00000251454d552020202051454d5520484152444449534b202020322e352b")
    told = Inquiry(0, 0, False, 5, "QEMU", "QEMU HARDDISK", "2.5+")
    assert c.decode_inquiry(data) == told and told.present and told.type_name == "disk"
    assert not c.decode_inquiry(b"\x7f" + bytes(95)).present  # no unit at this number
    assert not c.decode_inquiry(b"\x3f" + bytes(95)).present  # no unit 0, though it may answer
    assert c.decode_inquiry(b"\x05\x80").removable and c.decode_inquiry(b"\x05").type_name == "CD/DVD"
    hostile = c.decode_inquiry(bytes(8) + b"\x1b[31mred" + bytes(20))
    assert hostile.vendor == ".[31mred"
    with pytest.raises(ScsiAnswer):
        c.decode_inquiry(b"")


def test_vital_product_data():
    assert c.decode_vpd(0x80, bytes.fromhex("00800003757631ffff")) == b"uv1"
    assert c.decode_vpd(0x80, bytes.fromhex("0080ffff7576")) == b"uv"  # what is there of what it claims
    with pytest.raises(ScsiAnswer, match="another page"):
        c.decode_vpd(0x80, bytes.fromhex("00830000"))
    with pytest.raises(ScsiAnswer, match="too short"):
        c.decode_vpd(0x80, b"\0\x80\0")
    page = bytes.fromhex("020000026830010300085000c500123456780100")
    assert c.decode_identifications(page) == [Identification(0, 0, "h0"), Identification(3, 0, "5000c50012345678")]
    assert c.decode_identifications(bytes.fromhex("020000ff41")) == []


def test_lists_of_units():
    two = bytes.fromhex("0000001000000000" + "00" * 8 + "412c" + "00" * 6)
    entries, size = c.decode_luns(two)
    assert [entry[:2].hex() for entry in entries] == ["0000", "412c"] and size == 24
    assert c.decode_luns(bytes.fromhex("fffffff800000000") + bytes(8)) == ([bytes(8)], 0xFFFF_FFF8 + 8)
    assert c.decode_luns(bytes.fromhex("0000000700000000") + bytes(8)) == ([], 15)
    with pytest.raises(ScsiAnswer):
        c.decode_luns(bytes(7))


def test_capacities():
    assert c.decode_capacity_10(bytes.fromhex("0001ffff00000200")) == Capacity(131072, 512)
    assert c.decode_capacity_10(bytes.fromhex("ffffffff00000200")) is None
    told = c.decode_capacity_16(bytes.fromhex("00000003ffffffff00001000000080") + bytes(17))
    assert told == Capacity(1 << 34, 4096, True) and told.bytes == 1 << 46
    assert c.decode_capacity_16(bytes(8) + b"\0\0\2\0").thin is None
    for wrong in ("0000000000000000", "00000000ffffffff"):
        with pytest.raises(ScsiAnswer, match="size of its blocks"):
            c.decode_capacity_10(bytes.fromhex(wrong))


def test_mode_pages():
    assert c.decode_mode(bytes.fromhex("17001000081204" + "00" * 17)) == Mode(False, True, True)
    assert c.decode_mode(bytes.fromhex("03008000")) == Mode(True, False, None)
    assert c.decode_mode(bytes.fromhex("ff000008" + "00" * 8 + "081200")) == Mode(False, False, False)
    with pytest.raises(ScsiAnswer):
        c.decode_mode(b"\0\0\0")


@given(st.binary(max_size=300))
def test_no_answer_is_beyond_a_decoder(data: bytes):
    for decode in (
        c.decode_inquiry,
        c.decode_luns,
        c.decode_capacity_10,
        c.decode_capacity_16,
        c.decode_mode,
        c.decode_identifications,
        lambda found: c.decode_vpd(0, found),
    ):
        try:
            decode(data)
        except ScsiAnswer as error:
            assert error.seen and error.expected
    found = sense.decode(data)
    assert found is None or (0 <= found.key <= 15 and str(found))
    Lun.decode(data)


# --- units --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lun", "data"),
    [
        (Lun(0, 0), "0100000000000000"),
        (Lun(255, 255), "01ff00ff00000000"),
        (Lun(2, 256), "0102410000000000"),
        (Lun(2, 300), "0102412c00000000"),
        (Lun(1, 16383), "01017fff00000000"),
    ],
)
def test_both_encodings_of_a_unit(lun: Lun, data: str):
    assert lun.encode().hex() == data and Lun.decode(lun.encode()) == lun
    flat = bytes([1, lun.target, 0x40 | lun.lun >> 8, lun.lun & 0xFF, 0, 0, 0, 0])
    assert Lun.decode(flat) == lun
    assert Lun.parse(str(lun)) == lun


@pytest.mark.parametrize("data", ["0000000000000000", "c101000000000000", "0102012c00000000", "0102800000000000",
                                  "01020000ff000000", "0102"])  # fmt: skip
def test_what_names_no_unit(data: str):
    assert Lun.decode(bytes.fromhex(data)) is None


@pytest.mark.parametrize("text", ["", "a", "0:0:0", "256:0", "0:16384", "-1", "0x1", "1:"])
def test_what_is_no_unit_is_refused(text: str):
    with pytest.raises(UsageError):
        Lun.parse(text)


def test_a_number_alone_is_of_target_0():
    assert Lun.parse("7") == Lun(0, 7) and sorted([Lun(1), Lun(0, 9)]) == [Lun(0, 9), Lun(1)]


# --- sense --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            "70000500000000 0a 00000000 2100 00000000",
            "ILLEGAL REQUEST: logical block address out of range (5/21/00)",
        ),
        ("70000600000000 0a 00000000 3f0e 00000000", "UNIT ATTENTION: reported LUNs data has changed (6/3f/0e)"),
        ("72 06 2a 09 00000000", "UNIT ATTENTION: capacity data has changed (6/2a/09)"),
        ("70000300000000 0a 00000000 11aa 00000000", "MEDIUM ERROR: unrecovered read error (3/11/aa)"),
        ("70000300000000 0a 00000000 ee01 00000000", "MEDIUM ERROR: no name is known (3/ee/01)"),
        ("f0000200", "NOT READY (2/00/00)"),
        ("700005", "ILLEGAL REQUEST (5/00/00)"),  # as short as one can be that has a key
        ("7205", "ILLEGAL REQUEST (5/00/00)"),
        ("70000500000000 00 ffffffff ffff", "ILLEGAL REQUEST (5/00/00)"),  # its length says: no codes
    ],
)
def test_sense_has_names(data: str, text: str):
    assert str(sense.decode(bytes.fromhex(data))) == text


def test_sense_of_an_earlier_command_and_none_at_all():
    earlier = sense.decode(bytes.fromhex("73030c0200000000"))
    assert earlier is not None and earlier.deferred
    for data in (b"", b"\x70\0", b"\x72", bytes(18), b"\x7f" * 18):
        assert sense.decode(data) is None


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda: c.Command("short", b"\x12"), BadSize),
        (lambda: c.Command("both", bytes(10), room=512, data=bytes(512)), UsageError),
        (lambda: c.read(-1, 1, 512), BadSize),
        (lambda: c.read(1 << 64, 1, 512), BadSize),
        (lambda: c.read(0, 1 << 32, 512), BadSize),
        (lambda: c.write(-1, bytes(512), 512), BadSize),
    ],
)
def test_what_is_no_command(made: Callable[[], c.Command], error: type[Exception]) -> None:
    with pytest.raises(error):
        made()

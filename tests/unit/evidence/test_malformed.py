"""Damaged dumps: each is refused with the line and column of the damage, and without a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from uvirtio.cli import main
from uvirtio.errors import BadDump
from uvirtio.evidence import files

FILES = Path(__file__).parent / "files"
HEAD = "00:02.0 Ethernet controller: Red Hat, Inc. Virtio network device\n"
ROW = "{:02x}: " + " ".join(["00"] * 16) + "\n"
ISR = HEAD + "\tCapabilities: [40] Vendor Specific Information: VirtIO: ISR\n"
ROWS = "".join(ROW.format(at) for at in range(0, 64, 16))
FUNCTION = "P: /devices/pci0000:00/0000:00:02.0\nE: PCI_ID=1AF4:1041\n"


def dump(**changes: Any) -> str:
    """A document of one device with members replaced, each value on a line of its own."""
    made = json.loads(json.dumps(files.load(str(FILES / "one-bar-vvv-xxx.txt")).document))
    made["devices"][0].update(changes.pop("device", {}))
    made.update(changes)
    return json.dumps(made, indent=1)


def placed(wanted: str, column: int, **changes: Any) -> tuple[str, int, int]:
    """Such a document, the line that holds ``wanted``, and the column."""
    text = dump(**changes)
    return text, next(number for number, line in enumerate(text.splitlines(), 1) if wanted in line), column


LSPCI = {
    "a device number above 1f": ("00:2f.0 Ethernet controller: x\n", 1, 1),
    "a function number above 7": (HEAD + "00:02.9 Ethernet controller: x\n", 2, 1),
    "a quoted bad header": ("> 00:3f.0 Ethernet controller: x\n", 1, 3),
    "a letter that is no digit": (HEAD + ROWS + ROW.format(0x40).replace("00 00", "0g 00", 1), 6, 5),
    "one digit": (HEAD + "00: f4 1 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n", 2, 8),
    "fifteen bytes": (HEAD + ROWS[: -len(" 00\n")] + "\n", 5, 49),
    "seventeen bytes": (HEAD + ROW.format(0).rstrip() + " 00\n", 2, 53),
    "two spaces": (HEAD + ROW.format(0).replace("00 00", "00  00", 1), 2, 8),
    "a row that is missing": (HEAD + ROW.format(0) + ROW.format(0x20), 3, 1),
    "a row twice": (HEAD + ROW.format(0) * 2, 3, 1),
    "rows from the middle": (HEAD + ROW.format(0x40), 2, 1),
    "an odd offset": (HEAD + ROW.format(0) + ROW.format(0x14), 3, 1),
    "a row cut in the middle of a byte": (HEAD + ROWS + "40: 00 0", 6, 8),
    "bytes that end too early": (HEAD + ROW.format(0) + ROW.format(0x10), 1, 1),
    "bytes of the first function that end too early": (HEAD + ROW.format(0) + HEAD + ROWS, 1, 1),
    "more than 4096 bytes": (HEAD + "".join(ROW.format(at) for at in range(0, 4112, 16)), 258, 1),
    "text in a row": (HEAD + ROWS + "40: rest is the same\n", 6, 5),
    "a region that cannot be": (HEAD + "\tRegion 6: Memory at 1000 (32-bit) [size=4K]\n", 2, 9),
    "a region with a name": (HEAD + "\tRegion x: I/O ports at c000 [size=32]\n", 2, 9),
    "an address that is none": (HEAD + "\tRegion 0: Memory at zz00 (32-bit) [size=4K]\n", 2, 22),
    "an address of 17 digits": (HEAD + "\tMemory at 10000000000000000 (64-bit)\n", 2, 12),
    "a size without a number": (HEAD + "\tRegion 0: I/O ports at c000 [size=K]\n", 2, 36),
    "a size with an unknown unit": (HEAD + "\tRegion 0: Memory at c000 [size=4Q]\n", 2, 33),
    "an empty size": (HEAD + "\tRegion 0: Memory at c000 [size=]\n", 2, 33),
    "a capability without a place": (HEAD + "\tCapabilities: MSI-X: Enable+ Count=2\n", 2, 16),
    "a capability whose place is no number": (HEAD + "\tCapabilities: [4x] MSI-X: Enable+ Count=2\n", 2, 16),
    "a capability cut": (HEAD + "\tCapabilities: [40\n", 2, 16),
    "a structure without a BAR": (
        ISR + "\t\tBAR= offset=0 size=1\n", 3, 3),
    "a structure whose BAR is no number": (
        ISR + "\t\tBAR=x offset=0 size=1\n", 3, 7),
    "a structure whose offset is no number": (
        ISR + "\t\tBAR=4 offset=g size=1\n", 3, 16),
    "a structure of nine digits": (
        ISR + "\t\tBAR=4 offset=0 size=123456789\n",
        3, 23),
    "a multiplier that is no number": (
        HEAD + "\tCapabilities: [40] Vendor Specific Information: VirtIO: Notify\n"
        "\t\tBAR=4 offset=0 size=4 multiplier=-1\n", 3, 36),
    "an IOMMU group with a name": (HEAD + "\tIOMMU group: none\n", 2, 15),
}  # fmt: skip

UMOCKDEV = {
    "a key that is none": (FUNCTION + "X: a=b\n", 3, 1),
    "no space after the key": (FUNCTION + "A:vendor=0x1af4\n", 3, 1),
    "a line that is no pair": (FUNCTION + "A: vendor\n", 3, 4),
    "a name that is empty": (FUNCTION + "E: =x\n", 3, 4),
    "a path that is none": ("P: /devices/a\n\nP: devices/b\n", 3, 4),
    "odd digits": (FUNCTION + "H: config=f41\n", 3, 14),
    "not hexadecimal": (FUNCTION + "A: vendor=0x1af4\nH: config=f4zz\n", 4, 13),
    "a configuration space of 63 bytes": (FUNCTION + "A: vendor=0x1af4\nH: config=" + "00" * 63 + "\n", 4, 1),
    "one of 5000 bytes": (FUNCTION + "A: vendor=0x1af4\nH: config=" + "00" * 5000 + "\n", 4, 1),
    "an id that is no number": (FUNCTION + "A: vendor=red hat\\n\nA: device=0x1041\\n\n", 3, 1),
    "an id of 17 bits": (FUNCTION + "A: vendor=0x11af4\\n\nA: device=0x1041\\n\n", 3, 1),
    "no ids at all": ("P: /devices/0000:00:02.0\nA: vendor=0x1af4\\n\nA: class=0x0\\n\n", 1, 1),
    "PCI_ID of another form": ("P: /devices/0000:00:02.0\nE: PCI_ID=virtio\n", 1, 1),
    "a backslash at the end": (FUNCTION + "A: vendor=0x1af4\\\n", 3, 17),
    "a damaged resource": (FUNCTION + "A: vendor=0x1af4\\n\nA: device=0x1041\\n\nA: resource=0x0 0x0\\n\n", 5, 1),
    "features that are no bits": (
        FUNCTION + "\nP: /devices/pci0000:00/0000:00:02.0/virtio0\nA: features=0x1\\n\n", 5, 1),
    "129 feature bits": (
        FUNCTION + "\nP: /devices/pci0000:00/0000:00:02.0/virtio0\nA: features=" + "0" * 129 + "\\n\n", 5, 1),
    "a status of nine bits": (
        FUNCTION + "\nP: /devices/pci0000:00/0000:00:02.0/virtio0\nA: status=0x100\\n\n", 5, 1),
    "a status that is no number": (
        FUNCTION + "\nP: /devices/pci0000:00/0000:00:02.0/virtio0\nA: status=up\\n\n", 5, 1),
}  # fmt: skip

COMMA = (2, 28) if sys.version_info >= (3, 13) else (3, 1)
"""Python 3.13 and later name the comma, earlier ones what follows it."""

JSON = {
    "half a document": ('{"schema": "uvirtio-dump/1",', 1, 29),
    "a comma too many": ('{\n "schema": "uvirtio-dump/1",\n}', *COMMA),
    "a list": ("[]", 1, 1),
    "an empty object": ("{}", 1, 1),
    "text after it": ("{} x", 1, 4),
    "NaN": ('{"schema": NaN}', 1, 1),
    "a number beyond a double": ('{"schema": 1e999}', 1, 1),
    "a number of ten thousand digits": ('{"schema": ' + "9" * 10000 + "}", 1, 1),
    "a thousand brackets": ("[" * 1000, 1, 65),
    "brackets inside": ('{"a": ' + "[" * 100 + "]" * 100 + "}", 1, 70),
    "another schema": placed('"schema"', 12, schema="uvirtio-dump/9"),
    "no devices": placed('"devices"', 13, devices=None),
    "a device that is a word": placed('"net"', 3, devices=["net"]),
    "a bus that is none": placed("usb", 11, device={"bus": "usb"}),
    "a word that is no word": placed(
        '"word"', 14, device={"features": {"offered": {"word": "1af4"}, "negotiated": None}}),
    "a status above 255": placed('"value": 256', 14, device={"status": {"value": 256}}),
    "a size below 0": placed(
        '"size": -1', 14, device={"bars": [{"bar": 0, "kind": "io", "address": None, "size": -1}]}),
    "BAR 6": placed('"bar": 6', 13, device={"bars": [{"bar": 6, "kind": "io", "address": None, "size": 1}]}),
    "bytes of half a digit": placed('"hex"', 12, device={"config_space": {"length": 64, "hex": "f"}}),
    "fewer bytes than it says": placed('"hex"', 12, device={"config_space": {"length": 64, "hex": "f4"}}),
    "true for a number": placed('"device_id": true', 17, device={"device_id": True}),
}  # fmt: skip

OTHERS = {
    "nothing": (b"", 1, 1),
    "prose": (b"my disk is slow\n", 1, 1),
    "a program": (b"\x7fELF" + bytes(60000), 1, 60005),
    "a config file cut": (bytes(255), 1, 256),
    "a config file with a byte too many": (b"\xf4\x1a" + bytes(255), 1, 258),
    "a page without a dump": (b"<html><body>404</body></html>", 1, 1),
    "a page with another script": (b"<script>{}</script>", 1, 1),
    "a page whose dump is damaged": (
        b'<html>\n<script type="application/json" id="uvirtio-dump">\n{"schema": }\n</script>', 3, 12),
    "a page whose dump ends early": (b'<script id="uvirtio-dump">{"schema": ', 1, 27),
    "half a character": ("UTF-16".encode("utf-16") + b"x", 1, 15),
}  # fmt: skip

EVERY: dict[str, tuple[bytes, int, int]] = {
    **{f"lspci: {name}": (text.encode(), line, column) for name, (text, line, column) in LSPCI.items()},
    **{f"umockdev: {name}": (text.encode(), line, column) for name, (text, line, column) in UMOCKDEV.items()},
    **{f"json: {name}": (text.encode(), line, column) for name, (text, line, column) in JSON.items()},
    **{f"other: {name}": case for name, case in OTHERS.items()},
}


def test_there_are_enough() -> None:
    assert len(EVERY) >= 60


@pytest.mark.parametrize("name", EVERY)
def test_it_is_refused_where_it_is_damaged(name: str) -> None:
    data, line, column = EVERY[name]
    with pytest.raises(BadDump) as caught:
        files.parse("x", data)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert caught.value.message.startswith(f"x:{line}:{column}: ")
    assert caught.value.seen is not None and caught.value.expected and caught.value.remedy


@pytest.mark.parametrize("verb", [["list"], ["inspect"], ["features"], ["dump"]])
@pytest.mark.parametrize("name", ["lspci: a row twice", "umockdev: odd digits", "json: BAR 6", "other: prose"])
def test_the_command_says_so_and_no_more(
    verb: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, line, column = EVERY[name]
    path = tmp_path / "damaged"
    path.write_bytes(data)
    assert main([*verb, "-F", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"uvirtio: UV-USAGE-DUMP: {path}:{line}:{column}: ")
    assert "Traceback" not in err

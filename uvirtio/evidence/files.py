"""Reads a file that is evidence of devices, whichever form it has: see ``FORMS``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from uvirtio.errors import BadDump, NoSuchDevice, OperationFailed, UsageError
from uvirtio.evidence import checker, lspci, record, umockdev
from uvirtio.evidence.record import Record
from uvirtio.evidence.text import bad, place
from uvirtio.host import addresses
from uvirtio.host.whole import write_whole
from uvirtio.report import documents
from uvirtio.report.documents import Script
from uvirtio.spec import pci

FORMS: Final = (
    "a document of uvirtio dump, a report that has it inside, text of lspci (-v to -vvv, -x to -xxxx), "
    "a config file of sysfs (64, 256 or 4096 bytes), a recording of umockdev"
)

LIMIT: Final = 64 << 20
"""Bytes; no dump is longer."""

_SIZES: Final = (pci.STANDARD_CONFIG_SIZE, pci.CONFIG_SIZE, pci.EXPRESS_CONFIG_SIZE)
_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True, slots=True)
class Evidence:
    """A file that was read."""

    name: str
    form: str
    """``uvirtio-dump``, ``report``, ``lspci``, ``config`` or ``umockdev``."""
    document: dict[str, Any]
    """As ``schema.json`` has it."""
    scripts: tuple[Script, ...] = ()
    """Of a report: the elements that hold its documents."""

    @property
    def devices(self) -> list[Record]:
        """The virtio devices in it, in the order of the file."""
        made: list[Record] = self.document["devices"]
        return made

    @property
    def others(self) -> int:
        """Functions in it that are not virtio."""
        return int(self.document["source"].get("others", 0))

    def device(self, name: str) -> Record:
        """The device with an address or a name; the only one, where the name is empty.

        Args:
            name: An address, ``virtio3``, or a type that only one of them has.

        Raises:
            NoSuchDevice: No device has the name.
            UsageError: Several have it.
        """
        found = [one for one in self.devices if not name or name in names(one)]
        if len(found) == 1:
            return found[0]
        every = ", ".join(f"{one['address'] or 'no address'} ({one['type']})" for one in self.devices)
        if not found:
            raise NoSuchDevice(
                f"{self.name} has no virtio device {name}".rstrip(),
                seen=every or "no virtio device at all",
                expected="a device in the file",
                remedy=f"uvirtio list -F {shlex.quote(self.name)}",
            )
        raise UsageError(
            f"{self.name} has several virtio devices",
            seen=every,
            expected="one: name it by its address",
            remedy=f"uvirtio list -F {shlex.quote(self.name)}",
        )


def names(one: Record) -> set[str]:
    """Every name of a device in a file: its address in all spellings that are common, virtioN, its type."""
    made = {str(one[key]) for key in ("address", "virtio_name", "type") if one.get(key)}
    address = one["address"]
    if address is not None and address.startswith("0000:") and addresses.is_pci(address):
        made.add(address.removeprefix("0000:"))
    return made


def load(name: str) -> Evidence:
    """Read a file.

    Args:
        name: Its name; ``-``: standard input.

    Raises:
        BadDump: It has none of the forms in ``FORMS``, or is damaged; the message says where.
        OperationFailed: It cannot be read.
    """
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:
        raise OperationFailed(
            f"{name} cannot be read", seen=getattr(error, "strerror", None) or str(error), expected="a file"
        ) from error
    return parse("standard input" if name == "-" else name, data)


def parse(name: str, data: bytes) -> Evidence:
    """Read the contents of a file.

    Args:
        name: Its name, for errors; a ``config`` file's address is in its path.
        data: The contents.

    Raises:
        BadDump: They have none of the forms in ``FORMS``, or are damaged.
    """
    if len(data) > LIMIT:
        raise bad(name, 1, 1, "too long for a dump", seen=f"more than {LIMIT} bytes", expected=FORMS)
    if not any(data.startswith(mark) for mark, _ in _MARKS) and (b"\0" in data or _undecodable(data)):
        return _config(name, data)
    text = _decoded(name, data)
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return _own(name, "uvirtio-dump", start, *place(text, len(text) - len(start)))
    if start.startswith("<"):
        return _report(name, text)
    if umockdev.looks_like(text):
        return _made(name, "umockdev", *umockdev.read(name, text))
    if lspci.looks_like(name, text):
        return _made(name, "lspci", *lspci.read(name, text))
    raise bad(
        name, 1, 1, "this is no dump that can be read", seen=text.strip()[:60] or "an empty file", expected=FORMS
    )


def _undecodable(data: bytes) -> bool:
    if len(data) not in _SIZES:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _decoded(name: str, data: bytes) -> str:
    coding = next((coding for mark, coding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        if coding == "utf-8":
            # A word of another encoding in the text around the dump harms nothing; in the dump it is an error.
            return data.decode("utf-8", "replace").replace("\r\n", "\n")
        before = data[: error.start]
        row, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise bad(
            name, row, column, f"not {coding}", seen=data[error.start : error.start + 8].hex(), expected="text"
        ) from None
    return text.replace("\r\n", "\n")


# --- the forms --------------------------------------------------------------------------------------------------


def _made(name: str, form: str, devices: list[Record], others: int = 0) -> Evidence:
    return Evidence(
        name,
        form,
        {
            "schema": record.SCHEMA,
            "made": {"by": "", "at": None},
            "source": {"form": form, "name": Path(name).name, "others": others},
            "masked": False,
            "environment": None,
            "devices": devices,
        },
    )


def _own(name: str, form: str, text: str, line: int, column: int) -> Evidence:
    document = checker.load(name, text, line, column)
    devices = []
    for index, given in enumerate(document["devices"]):
        space = given.get("config_space")
        if space is not None and len(space["hex"]) != 2 * space["length"]:
            at = checker.locate(text, ("devices", index, "config_space", "hex"))
            raise bad(
                name,
                *place(text, at, line, column),
                "configuration space is not as long as it says",
                seen=f"{len(space['hex']) // 2} bytes",
                expected=f"{space['length']} bytes",
            )
        whole = record.new(given["bus"], given["address"])
        whole.update(given)
        devices.append(whole)
    return Evidence(name, form, {**document, "devices": devices})


def _report(name: str, text: str) -> Evidence:
    scripts = documents.scripts(text)
    dump = next((one for one in scripts if one.ident == documents.DUMP and (one.text or not one.closed)), None)
    if dump is None:
        raise bad(
            name,
            1,
            1,
            "an HTML file without a dump in it",
            seen="no such element",
            expected=f'<script type="application/json" id="{documents.DUMP}">',
        )
    if not dump.closed:
        raise bad(
            name, dump.line, dump.column, "the dump ends early", seen="the end", expected="</script> after it"
        )
    return replace(_own(name, "report", dump.text, dump.line, dump.column), scripts=tuple(scripts))


def _config(name: str, data: bytes) -> Evidence:
    if len(data) not in _SIZES:
        raise BadDump(
            f"{name}:1:{len(data) + 1}: not the configuration space of a PCI function, and not text",
            seen=f"{len(data)} bytes",
            expected="64, 256 or 4096 bytes",
            remedy="copy the file config whole: cat /sys/bus/pci/devices/ADDRESS/config > FILE",
            line=1,
            column=len(data) + 1,
        )
    folder = Path(name).parent.name
    address = addresses.canonical(folder) if addresses.is_pci(folder) else None
    made = record.new("pci", address)
    reasons = record.add_config_space(made, data)
    record.finish(made, "a config file has configuration space alone", reasons)
    ours = record.is_virtio(made) or data[:2] == b"\xff\xff"
    return _made(name, "config", [made] if ours else [], 0 if ours else 1)


def write(name: str, text: str) -> None:
    """Write a document to a file that only its owner may read (0600).

    Args:
        name: The file, which is replaced.
        text: The document.

    Raises:
        OperationFailed: The file cannot be written.
    """
    try:
        write_whole(name, text.encode(), 0o600)
    except OSError as error:
        raise OperationFailed(
            f"{name} cannot be written", seen=error.strerror, expected="a file that can be written"
        ) from error

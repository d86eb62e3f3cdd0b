"""``uvirtio dump`` and ``uvirtio diff``: all that can be known of a device as a document, and two compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, FromOption, verb
from uvirtio.errors import UsageError, UvirtioError

if TYPE_CHECKING:
    from uvirtio.evidence.difference import Change, Difference
    from uvirtio.evidence.files import Evidence
    from uvirtio.evidence.record import Record

DumpArgument = Annotated[
    str,
    typer.Argument(
        metavar="[DEV]", help="Device address, eth0, /dev/vda, virtio3, qemu:...; with -F a device in FILE."
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``dump`` and ``diff`` to the application."""
    verb(app, "dump", opens=True)(dump)
    verb(app, "diff", opens=True)(diff)


def dump(
    cmd: Command,
    dev: DumpArgument = "",
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE (mode 0600); else to stdout.")
    ] = "",
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Open and start the device, exchange buffers as diag does: queues, rings, books."
        ),
    ] = False,
    no_mask: Annotated[
        bool, typer.Option("--no-mask", help="Keep MAC addresses, serial numbers and host names.")
    ] = False,
    file: FromOption = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the document instead.")
    ] = False,
) -> None:
    """Write all that can be known of a device as one JSON document.

    Without --live a device of this machine is not accessed: sysfs has it all. qemu: and scripted: devices are
    opened. With -F a dump of another form is rewritten as such a document.
    """

    from uvirtio.evidence import checker, files
    from uvirtio.evidence.mask import masked

    if schema:
        output.write(checker.text_of_schema())
        return
    if not dev and not file:
        raise UsageError("which device?", expected="DEV, or -F FILE", remedy="uvirtio list")
    if file and live:
        raise UsageError("--live opens a device; -F looks at a file", expected="one of them")
    made = of_file(files.load(file), dev) if file else of_device(cmd, dev, live)
    if not no_mask:
        made = masked(made)
    text = output.json_text(made, indent=1) + "\n"
    if not out or out == "-":
        output.write(text)
        return
    files.write(out, text)
    (device, *rest) = made["devices"] or [None]
    if cmd.json:
        cmd.document(file=out, devices=len(made["devices"]), masked=made["masked"])
    elif device is None or rest:
        cmd.line(f"{out}: {len(made['devices'])} devices")
    else:
        said = ", ".join(entry["what"] for entry in device["absent"])
        cmd.line(f"{out}: {device['type']} at {device['address']}" + (f"; not in it: {said}" if said else ""))


def of_file(found: Evidence, dev: str) -> dict[str, Any]:
    """The document of a file that was read.

    Args:
        found: The file.
        dev: A device in it; empty: all of them.
    """
    from uvirtio import __version__

    made = dict(found.document)
    if found.form not in ("uvirtio-dump", "report"):
        made["made"] = {"by": f"uvirtio {__version__}", "at": None}
    if dev:
        made["devices"] = [found.device(dev)]
    return made


def of_device(cmd: Command, dev: str, live: bool) -> dict[str, Any]:
    """The document of one device of this machine, or of one that is simulated.

    Args:
        cmd: The command.
        dev: The address, or what else names it.
        live: Whether to open and start it.
    """
    from uvirtio.evidence import collect

    record, environment = _look(cmd, dev, live)
    return collect.document([record], environment)


def _look(cmd: Command, dev: str, live: bool) -> tuple[Record, dict[str, Any]]:
    from uvirtio.evidence import collect

    known = of_sysfs(cmd, dev)
    if known is not None and not live:
        return known, collect.environment(cmd.roots)
    with cmd.device(dev if known is None else str(known["address"])) as device:
        failure = _start(device) if live else None
        record = collect.of_open(device, known, live=live, roots=cmd.roots)
        if failure is not None:
            record["error"] = failure.as_dict()
            output.note(f"warning: {failure.code}: {failure.message}; the dump has what was seen")
        return record, collect.environment(cmd.roots, device)


def of_sysfs(cmd: Command, dev: str) -> Record | None:
    """What sysfs has about a device of this machine; None for one that is simulated.

    Args:
        cmd: The command.
        dev: The address, or what else names it.

    Raises:
        NoSuchDevice: There is none.
    """
    from uvirtio.binding.discover import find
    from uvirtio.binding.facts import Facts
    from uvirtio.binding.rules import check
    from uvirtio.evidence import collect
    from uvirtio.host.addresses import SIMULATED

    if dev.startswith(SIMULATED):
        return None
    found = find(dev, cmd.roots)
    facts = Facts(cmd.roots)
    return collect.of_machine(found, facts, check(found, cmd.roots, facts))


def _start(device: Any) -> UvirtioError | None:
    """Bring the device up with its driver and exchange buffers; what fails is part of the evidence."""
    from uvirtio.device.bringup import unobserved
    from uvirtio.diag import datapath

    path = datapath.for_device(device)
    try:
        path.start(unobserved)
        path.exercise()
    except UvirtioError as error:
        return error
    return None


# --- diff -------------------------------------------------------------------------------------------------------


def diff(
    cmd: Command,
    first: Annotated[str, typer.Argument(metavar="A", help="A device, or a FILE that is a dump of any form.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    file: FromOption = "",
) -> int:
    """Compare two devices or dumps. Exit code 0: the same in all that both have; 1: different.

    FILE#ADDRESS is one of several devices in a file; with -F A and B are devices in FILE.
    """
    from uvirtio.evidence import difference

    (one, here), (other, there) = _side(cmd, first, file), _side(cmd, second, file)
    found = difference.compare(one, other)
    environment = difference.of_environments(here, there)
    if cmd.json:
        cmd.document(
            first={"name": first, "address": one["address"], "type": one["type"]},
            second={"name": second, "address": other["address"], "type": other["type"]},
            same=found.same,
            changes=[change.as_dict() for change in found.changes],
            environment=[change.as_dict() for change in environment],
            compared=found.compared,
            only_first=found.only_first,
            only_second=found.only_second,
        )
    else:
        _print(cmd, (first, one), (second, other), found, environment)
    return 0 if found.same else 1


def _side(cmd: Command, name: str, file: str) -> tuple[Record, dict[str, Any] | None]:
    """A record, and its machine: by a file, a device in a file, or a device."""
    from uvirtio.evidence import files

    if file:
        whole = files.load(file)
        return whole.device(name), whole.document["environment"]
    named = file_of(name)
    if named is not None:
        whole = files.load(named[0])
        return whole.device(named[1]), whole.document["environment"]
    try:
        return _look(cmd, name, live=False)
    except UvirtioError as error:
        if "/" in name or "." in Path(name).name:
            error.add_note(f"  no file has the name {name} either")
        raise


def file_of(name: str) -> tuple[str, str] | None:
    """The file, and the device in it, that FILE or FILE#ADDRESS names; None where the name is of a device.

    Args:
        name: The word as it was typed.
    """
    path, _, inside = name.partition("#")
    for at, address in ((name, ""), (path, inside)):
        if at == "-" or (Path(at).is_file() and not at.startswith(("/dev/", "/sys/"))) or at.endswith("/config"):
            return at, address
    return None


def _print(
    cmd: Command,
    first: tuple[str, Record],
    second: tuple[str, Record],
    found: Difference,
    environment: list[Change],
) -> None:
    for mark, (name, record) in (("A", first), ("B", second)):
        place = "" if record["address"] in (None, name) else f" {record['address']}"
        cmd.line(f"{mark}: {name}:{place} {record['type']}")
    for change in found.changes:
        _print_change(cmd, change)
    for change in environment:
        _print_change(cmd, change)
    for mark, only in (("B", found.only_first), ("A", found.only_second)):
        if only:
            cmd.paragraph(f"not in {mark}, so not compared: {', '.join(only)}")
    count = len(found.changes)
    cmd.line("the same in all that both have" if found.same else f"different: {count} value{'s' * (count > 1)}")


def _print_change(cmd: Command, change: Change) -> None:
    what = change.section if change.what == change.section else f"{change.section} {change.what}"
    about = f"  ({change.about})" if change.about else ""
    cmd.paragraph(f"{what}: {_shown(change.first)} -> {_shown(change.second)}{about}", indent="  ")


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)

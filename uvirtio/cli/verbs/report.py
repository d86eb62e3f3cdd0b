"""``uvirtio report``: a device or a dump as one HTML file, and the runs of many machines as one matrix."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, verb
from uvirtio.errors import OperationFailed, UsageError, UvirtioError

if TYPE_CHECKING:
    from uvirtio.diag import Report
    from uvirtio.diag.bisect import Bisection
    from uvirtio.evidence.record import Record

_MERGE = "merge"


def register(app: typer.Typer) -> None:
    """Add ``report`` to the application."""
    verb(app, "report", opens=True)(report)


def report(
    cmd: Command,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="DEV|FILE | merge FILE...",
            help="A device, or a FILE that is a dump of any form, or a report; FILE#ADDRESS is one device in it. "
            "merge: what doctor, plan, bind, diag and restore printed with --json, one FILE for each machine.",
        ),
    ],
    out: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE (mode 0600); else to stdout.")
    ] = "",
    live: Annotated[
        bool,
        typer.Option("--live", help="Bring the device up as diag does: states, times, rings, interrupts."),
    ] = False,
    no_mask: Annotated[
        bool, typer.Option("--no-mask", help="Keep MAC addresses, serial numbers and host names.")
    ] = False,
) -> int:
    """Write one HTML file about a device or a dump, or about many machines.

    The file needs no network and holds the documents that it was made of: inspect -F reads it. Exit code 1: the
    device failed (--live).
    """
    code = 0
    if what[0] == _MERGE:
        if live or len(what) < 2:
            raise UsageError("merge takes files alone", seen=" ".join(what), expected="merge FILE...")
        told, count = _merged(what[1:])
    elif len(what) > 1:
        raise UsageError(
            "a report is of one device or file", seen=" ".join(what), expected="one, or: merge FILE..."
        )
    else:
        told, count, code = _of_one(cmd, what[0], live=live, masks=not no_mask)
    _give(cmd, told, out, count)
    return code


def _give(cmd: Command, told: str, out: str, count: int) -> None:
    from uvirtio.evidence import files

    if not out or out == "-":
        if cmd.json:
            raise UsageError("--json says what was written to a file", expected="-o FILE")
        output.write(told)
        return
    files.write(out, told)
    if cmd.json:
        cmd.document(file=out, devices=count, bytes=len(told.encode()))
    else:
        cmd.line(f"{out}: {count} device{'s' * (count != 1)}, {len(told.encode())} bytes")


def _of_one(cmd: Command, name: str, *, live: bool, masks: bool) -> tuple[str, int, int]:
    """The page of a file or a device, how many devices are on it, and the exit code."""
    from uvirtio.cli.verbs.dump import file_of, of_device
    from uvirtio.evidence.mask import masked, masked_text
    from uvirtio.report.page import page

    found = file_of(name)
    if found is not None and live:
        raise UsageError("--live opens a device", seen=name, expected="a device, or a file without --live")
    diagnosis: dict[str, Any] | None = None
    code = 0
    if found is not None:
        file, address = found
        document, diagnosis = _of_file(file, address)
    elif live:
        from uvirtio.diag import diagnose

        examiner = Examiner(cmd, name)
        report = diagnose(name, options=cmd.options, opened=cmd.guard.watch, examine=examiner.examine)
        cmd.guard.watch(None)
        if not report.reached_device and report.error is not None:
            raise report.error
        document, diagnosis = examiner.document, report.as_document()
        code = 1 if report.verdict == "fail" else 0
    else:
        document = of_device(cmd, name, live=False)
    if masks:
        document = masked(document)
        diagnosis = masked_text(diagnosis)
    return page(document, diagnosis), len(document["devices"]), code


def _of_file(file: str, address: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from uvirtio.cli.verbs.dump import of_file
    from uvirtio.evidence import files
    from uvirtio.report.documents import DIAG, document_in

    found = files.load(file)
    document = of_file(found, address)
    diagnosis = document_in(found.scripts, DIAG)
    if diagnosis is not None and address and diagnosis.get("address") != document["devices"][0]["address"]:
        diagnosis = None
    return document, diagnosis


def _merged(names: list[str]) -> tuple[str, int]:
    from uvirtio.report.fleet import fleet
    from uvirtio.report.runs import machine_runs

    runs = machine_runs([(name, _read(name)) for name in names])
    return fleet(runs), sum(bool(run.device) for run in runs)


def _read(name: str) -> str:
    """The text of a file; what is not UTF-8 in it becomes a sign that no document has."""
    from uvirtio.evidence.files import LIMIT

    try:
        with Path(name).open("rb") as file:
            data = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:
        seen = getattr(error, "strerror", None) or str(error)
        raise OperationFailed(f"{name} cannot be read", seen=seen, expected="a file") from error
    if len(data) > LIMIT:
        raise OperationFailed(f"{name} cannot be read", seen=f"more than {LIMIT} bytes", expected="a document")
    return data.decode("utf-8", "replace")


# --- with a diagnosis -------------------------------------------------------------------------------------------


class Examiner:
    """Makes the document of a device while a diagnosis has it: as its last step left it."""

    def __init__(self, cmd: Command, name: str) -> None:
        """Make it, before the diagnosis begins.

        Args:
            cmd: The command.
            name: The device, as it was typed.
        """
        from uvirtio.cli.verbs.dump import of_sysfs
        from uvirtio.evidence import collect

        self._roots = cmd.roots
        self._record = cmd.options.record
        self._known: Record | None = None
        try:
            self._known = of_sysfs(cmd, name)
        except UvirtioError:
            pass  # the diagnosis says so; and a node need not be in sysfs
        records = [] if self._known is None else [self._known]
        self.document = collect.document(records, collect.environment(cmd.roots))
        """The document: what sysfs has, until the device is examined."""

    def examine(self, device: Any) -> None:
        """Look at the device; see ``diagnose``."""
        from uvirtio.evidence import collect

        # A replay writes no report, so it does not look at the device for one: the recorder leaves that out.
        with getattr(self._record, "aside", nullcontext)():
            record = collect.of_open(device, self._known, live=True, roots=self._roots)
            self.document = collect.document([record], collect.environment(self._roots, device))


def write(name: str, examiner: Examiner, report: Report, blamed: Bisection | None) -> None:
    """Write the report of a diagnosis.

    Args:
        name: The file.
        examiner: What looked at the device.
        report: The diagnosis.
        blamed: What bisection found; None: nothing, or it was not tried.
    """
    from uvirtio.evidence import files
    from uvirtio.evidence.mask import masked, masked_text
    from uvirtio.report.page import page

    told = report.as_document(None if blamed is None else blamed.as_dict())
    files.write(name, page(masked(examiner.document), masked_text(told)))

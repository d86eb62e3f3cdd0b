"""``uvirtio conform``: whether a device does what virtio 1.4 demands of devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import content, output
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, verb
from uvirtio.errors import OperationFailed, UsageError
from uvirtio.host.addresses import MADE

if TYPE_CHECKING:
    from uvirtio.conform.report import Report
    from uvirtio.conform.result import Result
    from uvirtio.conform.row import Row
    from uvirtio.conform.trial import Consent

_LEVELS = 4
_RANGE = re.compile(r"([0-9]{1,18}):(0*[1-9][0-9]{0,17})", re.ASCII)
"""Sectors: the first, and how many."""


def register(app: typer.Typer) -> None:
    """Add ``conform`` to the application."""
    verb(app, "conform", opens=True)(conform)


def conform(
    cmd: Command,
    dev: Annotated[
        str,
        typer.Argument(metavar="[DEV]", help="Device address; none with --list and --explain."),
    ] = "",
    rows: Annotated[
        str | None, typer.Option("-k", "--rows", metavar="GLOB", help="Only rows such as 'D-RST*'.")
    ] = None,
    area: Annotated[str | None, typer.Option("--area", metavar="AREA", help="Only rows of this area.")] = None,
    level: Annotated[
        int | None, typer.Option("--level", metavar="N", help="Only rows up to this level, 0 to 4; see --list.")
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="List the rows; of a device those that fit it.")] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="ID", help="Say what a row is, and how it is tested.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Shuffle the rows within their levels.")
    ] = None,
    faults: Annotated[
        bool, typer.Option("--faults", help="Also what the standard forbids a driver, on a device of yours.")
    ] = False,
    allow_write: Annotated[
        str | None,
        typer.Option("--allow-write", metavar="START:COUNT", help="Write to these sectors; they are lost."),
    ] = None,
    host: Annotated[
        bool, typer.Option("--host", help="Also what its host does, and what is seen outside of the device.")
    ] = False,
    flr: Annotated[bool, typer.Option("--flr", help="Also function-level resets.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only what is bad.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A known failure that does not show any more is bad, too.")
    ] = False,
    implementation: Annotated[
        str | None,
        typer.Option(
            "--implementation", metavar="NAME/VERSION", help="What it is, for the list of known failures."
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", metavar="FILE", help="Compare the verdicts with FILE, or write it if there is none."
        ),
    ] = None,
    junit: Annotated[
        str | None, typer.Option("--junit", metavar="FILE", help="Write the rows as test cases of JUnit's XML.")
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a report, one HTML file.")
    ] = None,
) -> int:
    """Test whether a device does what virtio 1.4 demands of devices.

    Levels: 0 looks, 1 does what drivers do, 2 what they may do, 3 and 4 do what they must not. A device that was
    made for the run (qemu:, scripted:) gets all of it; any other only levels 0 to 2, and the rest by its option.
    """
    from uvirtio.conform import battery
    from uvirtio.conform import expect as expectations
    from uvirtio.conform import implementation as implementations
    from uvirtio.conform.run import made_for_this, run

    for name in (junit, html, expect):
        if name is not None:
            content.check_file(name)
    if level is not None and not 0 <= level <= _LEVELS:
        raise UsageError("there are levels 0 to 4", seen=level, expected=f"0 to {_LEVELS}")
    if explain is not None:
        return _explain(cmd, battery.find(explain))
    chosen = battery.chosen(rows, area, level)
    if every:
        return _list(cmd, chosen, dev)
    if not dev:
        raise UsageError("conform tests a device", expected="conform DEV, conform --list, or conform --explain ID")
    told = implementations.parse(implementation) if implementation is not None else None
    consent = made_for_this(dev) if dev.startswith(MADE) else _consent(faults, allow_write, host, flr)
    if allow_write is not None and dev.startswith(MADE):
        consent = _with_range(consent, allow_write)
    before = expectations.read(expect) if expect is not None else None  # a bad file costs no run
    teller = _Teller(cmd, quiet=quiet)
    stopper = _Stopper()
    cmd.guard.watch(stopper)
    try:
        with teller.shown():
            report = run(
                dev,
                rows=chosen,
                options=cmd.options,
                consent=consent,
                seed=seed,
                implementation=told,
                on_device=teller.begin,
                on_result=teller.tell,
                check=stopper.check,
            )
    finally:
        cmd.guard.watch(None)
    return _conclude(cmd, report, strict=strict, expect=expect, before=before, junit=junit, html=html)


def _consent(faults: bool, allow_write: str | None, host: bool, flr: bool) -> Consent:
    from uvirtio.conform.trial import Consent

    consent = Consent(faults=faults, host=host, flr=flr)
    return consent if allow_write is None else _with_range(consent, allow_write)


def _with_range(consent: Consent, text: str) -> Consent:
    from dataclasses import replace

    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--allow-write cannot be {text!r}", seen=text, expected="the first sector and how many: 2048:1024"
        )
    start, count = map(int, match.groups())
    return replace(consent, write=range(start, start + count))


class _Stopper:
    """Ends a run at its next wait, or before its next row; only once, so that the clean-up after it can finish."""

    def __init__(self) -> None:
        self._reason: BaseException | None = None

    def interrupt(self, reason: BaseException) -> None:
        """Ask for the end; for a signal handler."""
        self._reason = reason

    def check(self) -> None:
        """Raise the reason, if there is one."""
        reason, self._reason = self._reason, None
        if reason is not None:
            raise reason


# --- telling ----------------------------------------------------------------------------------------------------


class _Teller:
    """Prints each result as it comes; on a terminal there is a bar below them."""

    def __init__(self, cmd: Command, *, quiet: bool) -> None:
        self._cmd = cmd
        self._quiet = quiet
        self._count = 0
        self._line: Callable[[str], object] = cmd.line
        self._step: Callable[[str, int], object] = lambda name, count: None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress inside the block, where stdout is a terminal."""
        if self._cmd.json or not output.fancy():
            yield
            return
        from rich import progress as bars  # here: not needed in a pipe
        from rich.console import Console

        columns = (
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.description}", markup=False),
        )
        console = Console(color_system="auto" if output.coloured() else None)
        with bars.Progress(*columns, auto_refresh=False, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)

            def step(name: str, count: int) -> None:
                bar.update(task, description=name, total=count, advance=1 if name else 0, refresh=True)

            self._step = step
            self._line = lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            yield
        self._line = self._cmd.line

    def begin(self, report: Report, count: int) -> None:
        """Say what is tested."""
        self._count = count
        self._step("", count)
        if not self._cmd.json:
            what = f"{report.implementation} {report.version}".strip() or "not known"
            self._line(
                f"{report.address}: {report.type}, {report.transport}, {report.ring} rings, {what}; {_rows(count)}"
            )

    def tell(self, result: Result) -> None:
        """Print one result."""
        self._step(result.row.id, self._count)
        if self._cmd.json:
            return
        from uvirtio.conform.verdict import BAD

        if self._quiet and result.verdict not in BAD:
            return
        row = result.row
        severity = "" if result.severity is None else result.severity.value
        seen = result.seen if not result.expected else f"{result.seen}; expected: {result.expected}"
        took = f"{result.took_s * 1000:.0f} ms"
        where = f"{row.id:<10}  {row.section:<12} L{row.level.value}"
        head = f"{where}  {result.verdict.value:<7}  {severity:<8} {took:>8}"
        self._line(f"{head}  {output.printable(seen or row.title)}")


def _list(cmd: Command, rows: list[Row], dev: str) -> int:
    if dev:
        from uvirtio.conform.row import LETTERS

        with cmd.device(dev) as device:
            letter, kind = LETTERS[device.transport.kind], device.type
        rows = [row for row in rows if letter in row.transports and row.fits_type(kind)]
    if cmd.json:
        cmd.document(rows=[row.as_dict() for row in rows])
        return 0
    cmd.table(
        ("ROW", "SECTION", "LEVEL", "KEYWORD", "THE DEVICE MUST"),
        [(row.id, row.section, f"L{row.level.value}", row.keyword, row.title) for row in rows],
    )
    cmd.line(_rows(len(rows)))
    return 0


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _explain(cmd: Command, row: Row) -> int:
    if cmd.json:
        cmd.document(row=row.as_dict())
        return 0
    from uvirtio.conform.row import MEANS, TRANSPORTS

    cmd.line(f"{row.id}: virtio 1.4, {row.section}, {row.keyword}")
    cmd.paragraph(row.title, indent="  ")
    cmd.paragraph(f"how: {row.how}", indent="  ")
    cmd.paragraph(f"level: L{row.level.value}, {MEANS[row.level]}", indent="  ")
    cmd.paragraph(f"severity: {row.severity.value}", indent="  ")
    cmd.paragraph(
        f"transports: {', '.join(TRANSPORTS[one] for one in TRANSPORTS if one in row.transports)}", indent="  "
    )
    cmd.paragraph(f"types: {'all' if '*' in row.types else ', '.join(sorted(row.types))}", indent="  ")
    if row.needs:
        cmd.paragraph(f"needs: {', '.join(sorted(row.needs))}", indent="  ")
    cmd.paragraph(f"witness: {'none but the device' if row.witness is None else row.witness}", indent="  ")
    return 0


def _conclude(
    cmd: Command,
    report: Report,
    *,
    strict: bool,
    expect: str | None,
    before: dict[str, str] | None,
    junit: str | None,
    html: str | None,
) -> int:
    """Write the files, print the counts, and return the exit code; ``before`` is what was in ``expect``."""
    from uvirtio.conform import expect as expectations

    code = report.exit_code(strict=strict)
    unwritten, changed = None, None
    if before is not None:
        changed = expectations.differences(report, before)
        code = (1 if changed else 0) if code != 4 else code
    try:
        if expect is not None and before is None:
            content.document_into(expect, expectations.text_of(report).encode())
        if junit is not None:
            from uvirtio.conform.junit import junit_xml

            content.document_into(junit, junit_xml(report))
        if html is not None:
            from uvirtio.conform.page import page

            content.document_into(html, page(report).encode())
    except OperationFailed as error:
        unwritten = error  # told after the results, which are not lost with the file
    if cmd.json:
        members = report.as_document(strict=strict)
        if changed is not None:
            members["unexpected"] = changed
        if unwritten is not None:
            members["error"] = unwritten.as_dict()
        cmd.document(**members)
    else:
        _counts(cmd, report, changed)
        if unwritten is not None:
            output.error(unwritten, cmd.name, as_json=False)
    return unwritten.exit_code if unwritten is not None else code


def _counts(cmd: Command, report: Report, changed: list[str] | None) -> None:
    if report.stopped is not None:
        cmd.paragraph(f"the run ended early: {report.stopped}")
    for line in changed or ():
        cmd.paragraph(f"unexpected: {line}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items()) or "no row fits"
    expected = "" if changed is None else "; as expected" if not changed else f"; {len(changed)} unexpected"
    cmd.paragraph(f"{report.address}: {counts}{expected}")

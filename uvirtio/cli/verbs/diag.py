"""``uvirtio diag`` and ``uvirtio reset``: device initialization step by step, and device reset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import content, output
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, DevArgument, verb
from uvirtio.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from uvirtio.cli.verbs.report import Examiner
    from uvirtio.diag import Beside, Report, Step
    from uvirtio.diag.bisect import Bisection

_AUTO, _QEMU = "auto", "qemu:"
_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


def register(app: typer.Typer) -> None:
    """Add ``diag`` and ``reset`` to the application."""
    verb(app, "diag", opens=True)(diag)
    verb(app, "reset", opens=True)(reset)


def diag(
    cmd: Command,
    dev: DevArgument,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Where a step fails: find the feature bits that make it fail.")
    ] = False,
    junit: Annotated[
        str | None, typer.Option("--junit", metavar="FILE", help="Write the steps as test cases of JUnit's XML.")
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a report with pictures, one HTML file.")
    ] = None,
    qmp: Annotated[
        str | None,
        typer.Option(
            "--qmp",
            metavar="SOCK|auto",
            help="Compare with the view of the QEMU that has the device: its QMP socket (SOCK#ID names the device "
            "there); auto: the QEMU of a qemu: address.",
        ),
    ] = None,
    intrusive: Annotated[
        bool,
        typer.Option(
            "--intrusive",
            help="Also do what others see, or are cut off by: bytes on a console, a picture on a screen, an "
            "endpoint attached to an IOMMU.",
        ),
    ] = False,
) -> int:
    """Bring a device up step by step, say which step fails and why."""
    for name in (junit, html):
        if name is not None:
            content.check_file(name)
    with _asked(cmd, dev, qmp) as beside:
        return _diagnosed(cmd, dev, bisect, junit, html, beside, intrusive)


@contextmanager
def _asked(cmd: Command, dev: str, qmp: str | None) -> Iterator[Beside | None]:
    """The QEMU that is asked for its view of the device; None where there is none."""
    from uvirtio.diag import Beside

    if qmp is None:
        yield None
        return
    if qmp == _AUTO:
        if not dev.startswith(_QEMU):
            raise UsageError(
                "--qmp auto asks the QEMU of a qemu: address",
                seen=dev,
                expected="--qmp SOCK, a QMP socket of the QEMU that has this device",
                remedy="give that QEMU -qmp unix:SOCK,server=on,wait=off, and name SOCK",
            )
        yield Beside(None)
        return
    from uvirtio.backends.qemu.qmp import connect

    path, _, which = qmp.partition("#")
    if not path:
        raise UsageError("--qmp takes a socket", seen=qmp, expected="SOCK, SOCK#ID or auto")
    client = connect(path, cmd.options.timeout)
    try:
        beside = Beside(client.execute, which, aside=getattr(cmd.options.record, "aside", nullcontext))
        beside.check()
        yield beside
    finally:
        client.close()


def _diagnosed(
    cmd: Command,
    dev: str,
    bisect: bool,
    junit: str | None,
    html: str | None,
    beside: Beside | None,
    intrusive: bool,
) -> int:
    from uvirtio.diag import diagnose
    from uvirtio.diag.bringup import steps_of

    teller = _Teller(cmd, len(steps_of(beside)))
    examiner = None if html is None else _examiner(cmd, dev)
    report = diagnose(
        dev,
        options=cmd.options,
        on_step=teller.tell,
        opened=cmd.guard.watch,
        examine=None if examiner is None else examiner.examine,
        beside=beside,
        intrusive=intrusive,
    )
    cmd.guard.watch(None)
    teller.finish()
    blamed = None
    if bisect and report.verdict == "fail" and report.reached_device:
        from uvirtio.diag.bisect import bisect as search

        blamed = search(dev, report, options=cmd.options, opened=cmd.guard.watch)
        cmd.guard.watch(None)
    unwritten = None
    try:
        if junit is not None:
            from uvirtio.diag.junit import junit_xml

            content.document_into(junit, junit_xml(report))
        if html is not None and examiner is not None:
            from uvirtio.cli.verbs.report import write

            write(html, examiner, report, blamed)
    except OperationFailed as error:
        unwritten = error  # told after the diagnosis, which is not lost with the file
    return _conclude(cmd, report, blamed, unwritten)


def _examiner(cmd: Command, dev: str) -> Examiner:
    from uvirtio.cli.verbs.report import Examiner

    return Examiner(cmd, dev)


class _Teller:
    """Prints each step as it ends; steps that were skipped for the same reason in one entry.

    A device that was not found or may not be opened has not failed: then only the error is printed.
    """

    def __init__(self, cmd: Command, count: int) -> None:
        self._cmd = cmd
        self._count = count
        self._number = 0
        self._skipped: list[Step] = []
        self._silent = cmd.json

    def tell(self, step: Step) -> None:
        """Print a step, or keep it where it was skipped like the one before."""
        if self._number == 0 and step.verdict == "fail":
            self._silent = True
        if step.verdict != "skip" or (self._skipped and step.detail != self._skipped[0].detail):
            self.finish()
        self._number += 1
        if step.verdict == "skip":
            self._skipped.append(step)
        else:
            self._print(self._number, step, f"{step.took_s * 1000:8.1f} ms  ({step.spec})")

    def finish(self) -> None:
        """Print the skipped steps that are not printed yet."""
        if not self._skipped:
            return
        first, *rest = self._skipped
        what = f"to step {self._number}, {rest[-1].name}" if rest else f"{'':11}  ({first.spec})"
        self._print(self._number - len(rest), first, what)
        self._skipped = []

    def _print(self, number: int, step: Step, what: str) -> None:
        if self._silent:
            return
        width = len(str(self._count))
        self._cmd.line(f"{number:>{width}}/{self._count}  {_MARK[step.verdict]:<4}  {step.name:<20}  {what}")
        for text in (step.detail, *_reasons(step)):
            if text:
                self._cmd.paragraph(text, indent=" " * 13)


def _reasons(step: Step) -> list[str]:
    """The cause of a step, what shows it, and what to try; the hint alone where no cause is known."""
    if step.cause is None or step.verdict != "fail":
        return [f"hint: {step.hint}"] if step.hint else []
    attempts = step.cause.attempts or ((step.hint,) if step.hint else ())
    return [
        f"cause: {step.cause.text}",
        *(f"seen: {line}" for line in step.cause.evidence if line not in step.detail),
        *(f"try: {line}" for line in attempts),
    ]


def _conclude(cmd: Command, report: Report, blamed: Bisection | None, unwritten: OperationFailed | None) -> int:
    """Print the verdict and return the exit code.

    The code is that of the error where it is not about the device: it was not reached, an option has a value that
    it cannot have, or a file cannot be written.
    """
    own = report.error is not None and (not report.reached_device or isinstance(report.error, UsageError))
    stopped = report.error if own else unwritten
    if cmd.json:
        members = report.as_document(None if blamed is None else blamed.as_dict())
        if stopped is not None:
            members.setdefault("error", stopped.as_dict())
        cmd.document(**members)
    else:
        if blamed is not None:
            cmd.paragraph(f"bisect: {blamed.text}")
        if not own:
            cause = report.cause
            why = f": {cause.text}" if cause is not None else ", data path not tried" if report.untried else ""
            cmd.paragraph(f"verdict: {report.verdict}{why} ({report.type} at {report.address})")
        if stopped is not None:
            output.error(stopped, cmd.name, as_json=False)
    if stopped is not None:
        return stopped.exit_code
    return 1 if report.verdict == "fail" else 0


def reset(
    cmd: Command,
    dev: DevArgument,
    flr: Annotated[
        bool, typer.Option("--flr", help="Do a function-level reset too, even if the first one does not end.")
    ] = False,
) -> None:
    """Reset a device and wait until it confirms the reset."""
    from uvirtio.spec.status import describe

    with cmd.device(dev) as device:
        before = device.transport.status()
        confirmed = device.reset(flr=flr)
        after = device.transport.status()
        if cmd.json:
            cmd.document(
                address=device.address,
                type=device.type,
                status_before=before,
                status_after=after,
                reset_confirmed=confirmed,
                function_reset=flr,
            )
            return
        how = "reset" if confirmed else "the reset did not end"
        if flr:
            how += ", then function-level reset"
        cmd.line(f"{device.address} ({device.type}): {how}")
        cmd.fields([("status before", describe(before)), ("status after", describe(after))])

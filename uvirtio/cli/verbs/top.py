"""``uvirtio top``: the rings, interrupts and configuration of a device while it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli import looks, output
from uvirtio.cli.command import Command, DevArgument, verb
from uvirtio.errors import Busy, NotBound, NotSupported, UsageError

if TYPE_CHECKING:
    from uvirtio.sampling.sample import Sample, Source, Tell

_INTERVALS = (0.1, 3600.0)
"""Seconds. A wait looks ten times a second whether a sample is due."""
_LOAD_MAX = 100_000.0


def register(app: typer.Typer) -> None:
    """Add ``top`` to the application."""
    verb(app, "top", opens=True, streams=True)(top)


def top(
    cmd: Command,
    dev: DevArgument,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="Time from one look to the next.")
    ] = 1.0,
    load: Annotated[
        float,
        typer.Option("--load", metavar="N", help="Run the data path test of diag N times a second; 0: never."),
    ] = 0.0,
    batch: Annotated[
        bool, typer.Option("-b", "--batch", help="Print lines of text, as without a terminal.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Print one look, after one interval, and exit.")] = False,
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="Exit after N looks.")] = None,
) -> None:
    """Show rings, what is in flight, interrupts and configuration changes of a device as it runs.

    A device that can be opened is driven by the driver of its type, which only serves it unless --load is given.
    Of one that another driver has, only what the kernel shows is shown; it is not accessed.
    """
    least, most = _INTERVALS
    if not least <= interval <= most:
        raise UsageError("--interval takes a number of seconds", seen=interval, expected=f"{least:g} to {most:g}")
    if not 0 <= load <= _LOAD_MAX:
        raise UsageError("--load takes a number of rounds a second", seen=load, expected=f"0 to {_LOAD_MAX:g}")
    if count is not None and count < 1:
        raise UsageError("--count takes a number above 0", seen=count, expected="1 or more")
    source = _Either(cmd, dev, interval, load)
    count = 1 if once else count
    # Textual draws on stderr, and reads keys from stdin.
    screen = output.fancy() and sys.stdin.isatty() and sys.stderr.isatty() and cmd.invocation.replay is None
    if batch or once or cmd.json or not screen:
        source.opened = cmd.guard.watch
        source.run(_printer(cmd, count))
        cmd.guard.watch(None)
        return
    try:
        from uvirtio.cli.screen import Top
    except ImportError as error:
        raise NotSupported(
            "a screen that redraws itself needs Textual, which is not installed",
            seen=str(error),
            expected="the extra tui",
            remedy="pip install 'uvirtio[tui]', or uvirtio top --batch for lines of text",
        ) from error
    cmd.guard.watch(source)
    Top(source, interval=interval, count=count).show()
    cmd.guard.watch(None)


class _Either:
    """Drives a device that can be opened, and looks from outside at one that another has; a ``Source``."""

    def __init__(self, cmd: Command, dev: str, interval: float, load: float) -> None:
        self._cmd, self._dev, self._interval, self._load = cmd, dev, interval, load
        self._source: Source | None = None
        self._reason: BaseException | None = None
        self.opened = lambda _: None

    def interrupt(self, reason: BaseException) -> None:
        """Make ``run`` raise ``reason``."""
        self._reason = reason
        if self._source is not None:
            self._source.interrupt(reason)

    def run(self, tell: Tell) -> None:
        """Take samples until it is interrupted."""
        from uvirtio.sampling.driven import Driven
        from uvirtio.sampling.seen import Seen

        address, why = self._address()
        if not why:
            source = Driven(
                address, self._cmd.options, interval=self._interval, load=self._load, opened=self.opened
            )
            try:
                self._run(source, tell)
                return
            except (Busy, NotBound) as error:
                why = f"not opened: {error.message}"
        if self._load:
            why += "; --load has no effect"
        self._run(Seen(address, self._cmd.roots, interval=self._interval, why=why, opened=self.opened), tell)

    def _run(self, source: Source, tell: Tell) -> None:
        self._source = source
        if self._reason is not None:
            source.interrupt(self._reason)
        source.run(tell)

    def _address(self) -> tuple[str, str]:
        """The address, and why it is not opened; empty: it is."""
        from uvirtio.host.addresses import SIMULATED

        if self._dev.startswith(SIMULATED) or self._cmd.invocation.replay is not None:
            return self._dev, ""
        from uvirtio.binding.discover import find

        found = find(self._dev, self._cmd.roots)
        if found.for_user_space or (found.bus == "platform" and found.driver is None):
            return found.address, ""
        if found.driver is None:
            return found.address, "no driver has it: uvirtio bind makes it one that can be opened"
        return found.address, f"{found.kernel_driver or found.driver} drives it, so it is not opened"


def _printer(cmd: Command, count: int | None) -> Tell:
    """Prints each sample but the first, which has no rates; stops the source after ``count``."""
    from uvirtio.sampling.sample import Stopped

    def tell(sample: Sample) -> None:
        if cmd.json:
            if sample.number or sample.events:
                cmd.document(event="sample", **sample.as_dict())
        else:
            for line in looks.lines(sample) if sample.number else looks.events(sample):
                cmd.line(line)
        if count is not None and sample.number >= count:
            raise Stopped

    return tell

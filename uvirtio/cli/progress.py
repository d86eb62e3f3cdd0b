"""Progress of an inflation: a bar on a terminal, some lines in a pipe, JSON lines with ``--json``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from uvirtio.cli import output
from uvirtio.cli.command import Command
from uvirtio.cli.size import human
from uvirtio.spec.page import VIRTIO_PAGE

if TYPE_CHECKING:
    from rich import progress as bars


class Progress(Protocol):
    """Receives the number of pages done."""

    def update(self, pages: int) -> None:
        """Show that so many pages of 4096 bytes are done."""


@contextmanager
def make_progress(cmd: Command, what: str, total: int) -> Iterator[Progress]:
    """The progress display that fits stdout.

    Args:
        cmd: The command.
        what: A label.
        total: Pages of 4096 bytes.
    """
    if cmd.json:
        yield _Lines(cmd, what, total, every=0.2)
    elif output.fancy():
        with _bar(what, total) as bar:
            yield bar
    else:
        yield _Lines(cmd, what, total, every=1.0)


class _Lines:
    """Prints the first and the last value, and one each ``every`` seconds between them."""

    def __init__(self, cmd: Command, what: str, total: int, *, every: float) -> None:
        self._cmd = cmd
        self._what = what
        self._total = total
        self._every = every
        self._started = time.monotonic()
        self._told: float | None = None

    def update(self, pages: int) -> None:
        """Print a line, if it is time to."""
        now = time.monotonic()
        if pages != self._total and self._told is not None and now - self._told < self._every:
            return
        self._told = now
        took = now - self._started
        size = pages * VIRTIO_PAGE
        rate = size / took if took > 0 else 0.0
        if self._cmd.json:
            self._cmd.document(
                event="progress",
                pages=pages,
                bytes=size,
                total_bytes=self._total * VIRTIO_PAGE,
                seconds=took,
                bytes_per_second=rate,
            )
        else:
            self._cmd.line(
                f"{self._what}: {human(size)} of {human(self._total * VIRTIO_PAGE)} "
                f"({pages * 100 // self._total}%), {human(int(rate))}/s"
            )


@contextmanager
def _bar(what: str, total: int) -> Iterator[Progress]:
    from rich import progress as bars  # here: not needed in a pipe
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TextColumn("{task.fields[rate]}", markup=False),  # rich's own column uses powers of 1000
        bars.TimeRemainingColumn(),
    )
    # Without its refresh thread: the line is drawn between batches, never during a signal handler.
    console = Console(color_system="auto" if output.coloured() else None)
    with bars.Progress(*columns, auto_refresh=False, console=console) as shown:
        yield _Bar(shown, shown.add_task(what, total=total * VIRTIO_PAGE, rate=""))


class _Bar:
    _EVERY = 0.05  # seconds

    def __init__(self, shown: bars.Progress, task: bars.TaskID) -> None:
        self._shown = shown
        self._task = task
        self._started = time.monotonic()
        self._drawn = 0.0

    def update(self, pages: int) -> None:
        """Redraw the bar, if it is time to."""
        now = time.monotonic()
        due = now - self._drawn >= self._EVERY
        took = now - self._started
        rate = f"{human(int(pages * VIRTIO_PAGE / took))}/s" if took > 0 else ""
        self._shown.update(self._task, completed=pages * VIRTIO_PAGE, rate=rate, refresh=due)
        if due:
            self._drawn = now

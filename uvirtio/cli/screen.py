"""The screen of ``uvirtio top``, with Textual (the extra ``tui``), which only this module imports.

The device has a thread of its own, since a wait for a silent one would freeze the screen; the samples that it
tells are all that the screen knows of it. No mark is a colour alone, and the colours are those of Okabe and Ito,
which differ for every kind of colour vision.
"""

from __future__ import annotations

import signal
import threading
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.coordinate import Coordinate
from textual.events import Resize
from textual.message import Message
from textual.widgets import DataTable, Footer, RichLog, Static

from uvirtio.cli import output
from uvirtio.cli.looks import age
from uvirtio.errors import OperationFailed
from uvirtio.sampling.sample import QueueSample, Sample, Source, Stopped

_LATE = 1.0
"""Seconds after which a buffer that is out is pointed at, on a queue whose device should have returned it."""
_CALM, _ODD, _BAD, _DIM = "#56b4e9", "#e69f00", "#d55e00", "#9aa4af"
_AGES_SHOWN = 6
_NARROW = 100
"""Columns below which the details stand below each other, and the rates in the details alone."""
_LOG_LINES = 1000


class Queues(DataTable[Text]):
    """The table of the queues, whose arrows are named in the footer."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("up", "cursor_up", "Choose a queue", key_display="↑↓")]


class Top(App[None]):
    """The application: the queues as gauges, the chosen one in detail, the device, a log."""

    TITLE = "uvirtio top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; padding: 0 1; background: $panel; }
    #queues { height: auto; max-height: 45%; }
    #details { height: auto; max-height: 45%; layout: horizontal; overflow-y: auto; }
    #details.narrow { layout: vertical; max-height: 60%; }
    #queue, #device { width: 1fr; height: auto; padding: 0 1; border-top: solid $panel-lighten-2; }
    #log { height: 1fr; min-height: 3; overflow-y: auto; padding: 0 1; border-top: solid $panel-lighten-2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "pause", "Pause"),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
    ]

    def __init__(self, source: Source, *, interval: float, count: int | None = None) -> None:
        """Make it; ``show`` begins.

        Args:
            source: Where the samples come from.
            interval: Seconds between them, to be shown.
            count: Leave after so many; None: at the key q.
        """
        super().__init__()
        self._source, self._interval, self._count = source, interval, count
        self._thread: threading.Thread | None = None
        self._sample: Sample | None = None
        self._paused = False
        self._width = _NARROW
        self._chosen = 0
        self._columns: tuple[str, ...] = ()
        self.error: BaseException | None = None
        """What ended the source."""

    def show(self) -> None:
        """Show the screen until it is left.

        Raises:
            BaseException: What ended the source, if anything did.
            OperationFailed: The application failed; Textual has printed how.
        """
        try:
            self.run()
        finally:
            self.end()
        if self.error is not None:
            raise self.error
        if self.return_code:  # Textual has printed what went wrong in the application
            raise OperationFailed(
                "the screen was not left by a key",
                seen="an error of the application, printed above",
                expected="q, or a signal",
                remedy="uvirtio top --batch prints lines of text",
            )

    def end(self) -> None:
        """Stop the source and wait until it has left its device; idempotent."""
        if self._thread is not None:
            self._source.interrupt(Stopped())
            self._thread.join()

    # --- the thread that has the device -------------------------------------------------------------------------

    class Looked(Message):
        """A sample came."""

        def __init__(self, sample: Sample) -> None:
            """Make it.

            Args:
                sample: The sample.
            """
            super().__init__()
            self.sample = sample

    class Ended(Message):
        """The source ended, and has left its device."""

    def _work(self) -> None:
        try:
            self._source.run(self._tell)
        except BaseException as error:  # noqa: BLE001  # raised again by ``show``
            self.error = error
        self.post_message(self.Ended())

    def _tell(self, sample: Sample) -> None:
        self.post_message(self.Looked(sample))
        if self._count is not None and sample.number >= self._count:
            raise Stopped

    # --- what is on the screen ----------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The widgets, from top to bottom."""
        yield Static("opening the device", id="head", markup=False)
        yield Queues(id="queues", cursor_type="row")
        with Container(id="details"):
            yield Static(id="queue", markup=False)
            yield Static(id="device", markup=False)
        yield RichLog(id="log", max_lines=_LOG_LINES, wrap=True, markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin: the device is opened in its thread."""
        self.query_one(Queues).focus()
        self._thread = threading.Thread(target=self._work, name="device")
        self._thread.start()

    def on_resize(self, event: Resize) -> None:
        """Fit the gauges and the details to the window."""
        self._width = event.size.width
        self.query_one("#details").set_class(self._width < _NARROW, "narrow")
        if self._sample is not None:
            self._draw(self._sample)

    def on_top_looked(self, message: Looked) -> None:
        """Take a sample in: its events into the log, the rest onto the screen unless that is paused."""
        sample = message.sample
        log = self.query_one("#log", RichLog)
        for event in sample.events:
            log.write(Text(f"{sample.time:9.1f} s  {output.printable(event)}"))
        self._sample = sample
        if not self._paused:
            self._draw(sample)

    def on_top_ended(self) -> None:
        """Leave, or stay for the reader of an error."""
        if self._sample is None or not isinstance(self.error, Exception):
            self.exit()  # in order, by a signal, or before there was anything to look at
            return
        log = self.query_one("#log", RichLog)
        log.write(Text(f"{output.printable(self.error)}", style=_BAD))
        log.write(Text("the device was left; q leaves the screen", style=_BAD))
        self._head()

    def _draw(self, sample: Sample) -> None:
        self._head()
        self._draw_queues(sample)
        self._draw_queue(sample)
        self._draw_device(sample)

    def _head(self) -> None:
        sample, text = self._sample, Text()
        if self.error is not None:
            text.append(" ✖ ended ", f"bold {_BAD}")
        elif self._paused:
            text.append(" ‖ paused ", f"bold {_ODD}")
        if sample is not None:
            text.append(output.printable(f"{sample.type} at {sample.address}"), "bold")
            calm = sample.state == "DRIVER_OK" or sample.driver != "uvirtio"
            text.append(f"  {sample.state}", _CALM if calm else f"bold {_BAD}")
            if sample.interrupt_mode:
                text.append(f"  {sample.interrupt_mode}")
            if sample.driver != "uvirtio":
                text.append(f"  driven by {output.printable(sample.driver)}", _ODD)
            text.append(f"  {age(sample.time)}, every {self._interval:g} s", _DIM)
        self.query_one("#head", Static).update(text)

    def _draw_queues(self, sample: Sample) -> None:
        table = self.query_one(Queues)
        wide = self._width >= _NARROW
        columns = _VECTORS if sample.vectors else _WIDE if wide else _SLIM
        cells = (
            [vector_row(one.irq, one.name, one.count, one.per_s) for one in sample.vectors]
            if sample.vectors
            else [queue_row(one, wide=wide, gauge=self._gauge_width()) for one in sample.queues]
        )
        # Rows that stay are updated in their place: the cursor and the scroll position stay with them.
        if columns != self._columns or table.row_count != len(cells):
            table.clear(columns=True)
            table.add_columns(*columns)
            self._columns = columns
            for row in cells:
                table.add_row(*row)
            table.move_cursor(row=min(self._chosen, max(0, len(cells) - 1)))
            return
        for number, row in enumerate(cells):
            for column, cell in enumerate(row):
                table.update_cell_at(Coordinate(number, column), cell, update_width=True)

    def _gauge_width(self) -> int:
        return 8 if self._width < _NARROW else min(40, self._width // 6)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """The arrows chose another queue."""
        self._chosen = event.cursor_row
        if self._sample is not None:
            self._draw_queue(self._sample)

    def _draw_queue(self, sample: Sample) -> None:
        queues = sample.queues
        queue = queues[self._chosen] if 0 <= self._chosen < len(queues) else None
        self.query_one("#queue", Static).update(Text("") if queue is None else queue_text(queue))

    def _draw_device(self, sample: Sample) -> None:
        self.query_one("#device", Static).update(device_text(sample))

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        """Hold the picture, or let it go on; the driver goes on either way."""
        self._paused = not self._paused
        if self._sample is not None:
            self._draw(self._sample) if not self._paused else self._head()

    def action_interrupt(self) -> None:
        """Ctrl-C, which is a key here, is the signal that it is elsewhere."""
        signal.raise_signal(signal.SIGINT)


_WIDE = ("queue", "ring", "descriptors", "in flight", "oldest", "kicks/s", "back/s", "state")
_SLIM = ("queue", "descriptors", "in flight", "oldest", "state")
_VECTORS = ("irq", "name", "count", "per s")


def queue_row(queue: QueueSample, *, wide: bool, gauge: int) -> list[Text]:
    """The cells of a queue in the table.

    Args:
        queue: The queue.
        wide: With its ring format and its rates.
        gauge: Columns of the gauge.
    """
    name = Text(f"{queue.index} {output.printable(queue.name)}")
    row = [
        name,
        _gauge(queue, gauge),
        Text(str(queue.in_flight), justify="right"),
        Text(age(queue.ages[0]) if queue.ages else "-", justify="right"),
        _state(queue),
    ]
    if wide:
        row[1:1] = [Text(queue.format)]
        row[5:5] = [
            Text(f"{queue.kicks_per_s:.1f}", justify="right"),
            Text(f"{queue.completions_per_s:.1f}", justify="right"),
        ]
    return row


def _gauge(queue: QueueSample, width: int) -> Text:
    """How much of the ring is in use."""
    filled = -(-queue.used * width // queue.size) if queue.size else 0
    text = Text("█" * filled, _CALM)
    text.append("░" * (width - filled), _DIM)
    text.append(f" {queue.used:>3}/{queue.size}")
    return text


def _state(queue: QueueSample) -> Text:
    """Where the buffers are: a sign, a word, and a colour."""
    late = bool(queue.ages) and queue.ages[0] >= _LATE
    if late and queue.stall in ("untaken", "suppressed", "silent"):
        return Text(f"▲ {queue.stall}", f"bold {_ODD}")
    return Text(f"{'○' if queue.stall == 'idle' else '●'} {queue.stall}", _DIM if queue.stall == "idle" else _CALM)


def queue_text(queue: QueueSample) -> Text:
    """All about one queue.

    Args:
        queue: The queue.
    """
    text = Text(f"queue {queue.index} {output.printable(queue.name)}", "bold")
    text.append(f"\n{queue.says}", "not bold")
    rows = [
        (
            "ages",
            ", ".join(age(one) for one in queue.ages[:_AGES_SHOWN]) + " ..." * (len(queue.ages) > _AGES_SHOWN),
        ),
        ("kicks", f"{queue.kicks} ({queue.kicks_per_s:.1f}/s)"),
        ("back", f"{queue.completions} ({queue.completions_per_s:.1f}/s)"),
        ("words", ", ".join(f"{name} {value}" for name, value in queue.words.items())),
        ("areas", " ".join(f"{one:#x}" for one in queue.addresses)),
    ]
    return _rows(text, rows)


def device_text(sample: Sample) -> Text:
    """All about the device but its queues.

    Args:
        sample: The sample.
    """
    known = sample.interrupts is not None
    rows = [("interrupts", f"{sample.interrupts} ({sample.interrupts_per_s:.1f}/s)" if known else "not known")]
    if sample.config_changes is not None:
        rows.append(("config changes", str(sample.config_changes)))
    rows += [(name, str(value)) for name, value in sample.counters.items() if value]
    rows += list(sample.about.items())
    rows += [(name, str(value)) for name, value in sample.config.items()]
    return _rows(Text("device", "bold"), rows)


def vector_row(irq: int, name: str, count: int | None, per_s: float) -> list[Text]:
    """The cells of an interrupt in the table.

    Args:
        irq: The kernel's number.
        name: What handles it.
        count: How often it came; None: not known.
        per_s: How often in a second.
    """
    return [
        Text(str(irq), justify="right"),
        Text(output.printable(name)),
        Text("-" if count is None else str(count), justify="right"),
        Text(f"{per_s:.1f}", justify="right"),
    ]


def _rows(text: Text, rows: list[tuple[str, str]]) -> Text:
    width = max((len(name) for name, value in rows if value), default=0)
    for name, value in rows:
        if value:
            text.append(f"\n{name:<{width}}  ", f"not bold {_DIM}")
            text.append(output.printable(value), "not bold")
    return text

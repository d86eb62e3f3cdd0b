"""What every command shares: its options, how it opens a device, its exit code.

A verb is a function of a ``Command`` and of its own arguments; ``verb`` adds the common options and turns whatever
it raises into the documented output and an exit code. No traceback leaves a command.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.deferred import Body, Verb, declared
from uvirtio.cli.signals import Guard, Signalled
from uvirtio.errors import Misuse, NotSupported, OperationFailed, UsageError, UvirtioError
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import DEFAULT_TIMEOUT, TIMEOUT_MAX, InterruptMode

if TYPE_CHECKING:
    from uvirtio.device import Device, OpenOptions
    from uvirtio.interfaces.recording import Replays

BROKEN_PIPE = 141
"""The exit code when the reader of the output went away: 128 + SIGPIPE, as for other tools."""


class Bug(UvirtioError):
    """An exception that this package did not expect: a bug in it."""

    code: ClassVar[str] = "UV-BUG"


class Interrupted(UvirtioError):
    """A signal ended a command that had to print one JSON document."""

    code: ClassVar[str] = "UV-INTERRUPTED"


# --- options ------------------------------------------------------------------------------------------------

_ALL = "Options of every command"
_OPENING = "Options of every command that opens a device"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=_ALL)]
VerboseOption = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Trace register accesses and kicks on stderr.", rich_help_panel=_ALL),
]
RootOption = Annotated[
    str, typer.Option("--root", metavar="DIR", hidden=True, help="Take sys, proc, dev, run, etc below here.")
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Longest wait for any one response of the device.",
        rich_help_panel=_OPENING,
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Back end: auto, vfio (vfio-group, vfio-cdev), uio, devmem, vhost-vdpa, vhost-user or qemu.",
        rich_help_panel=_OPENING,
    ),
]
UnsafeOption = Annotated[
    bool,
    typer.Option("--unsafe-dma", help="Allow DMA that no IOMMU restricts.", rich_help_panel=_OPENING),
]
InterruptsOption = Annotated[
    InterruptMode | None,
    typer.Option("--interrupts", help="Use only this kind of interrupt.", rich_help_panel=_OPENING),
]
ForceLegacyOption = Annotated[
    bool,
    typer.Option(
        "--force-legacy", help="Use the legacy interface of a transitional device.", rich_help_panel=_OPENING
    ),
]

VfTokenOption = Annotated[
    str | None,
    typer.Option(
        "--vf-token",
        metavar="UUID",
        help="VFIO's token of a function with SR-IOV: set by who opens the physical function.",
        rich_help_panel=_OPENING,
    ),
]
RingOption = Annotated[
    Literal["auto", "split", "packed"],
    typer.Option(
        "--ring", help="Format of the virtqueues; auto: packed if the device offers it.", rich_help_panel=_OPENING
    ),
]

WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="BIT",
        help="Do not accept this feature bit, a name or a number; repeatable.",
        rich_help_panel=_OPENING,
    ),
]

TraceOption = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Record all that the device does: JSON Lines for uvirtio replay; .json: for Perfetto.",
        rich_help_panel=_OPENING,
    ),
]

DevArgument = Annotated[
    str, typer.Argument(metavar="DEV", help="Device address, such as 0000:03:00.0 or qemu:virtio-rng-pci.")
]
LookArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEV",
        help="Device address, eth0, /dev/vda, a path below /sys, virtio3, or a type that only one device has.",
    ),
]

LookOrFileArgument = Annotated[
    str,
    typer.Argument(
        metavar="[DEV]",
        help="Device address, eth0, /dev/vda, a path below /sys, virtio3, or a type that only one device has; "
        "with -F a device in FILE.",
    ),
]
FromOption = Annotated[
    str,
    typer.Option(
        "-F",
        "--from",
        metavar="FILE",
        help="Look at a dump, an lspci text, a config file or a recording instead of this machine; - is stdin.",
    ),
]

_COMMON: dict[str, tuple[Any, Any]] = {
    "json": (JsonOption, False),
    "verbose": (VerboseOption, False),
    "root": (RootOption, ""),
}
_DEVICE: dict[str, tuple[Any, Any]] = {
    "timeout": (TimeoutOption, DEFAULT_TIMEOUT),
    "backend": (BackendOption, "auto"),
    "unsafe_dma": (UnsafeOption, False),
    "interrupts": (InterruptsOption, None),
    "force_legacy": (ForceLegacyOption, False),
    "ring": (RingOption, "auto"),
    "vf_token": (VfTokenOption, None),
    "without": (WithoutOption, None),
    "trace": (TraceOption, None),
}

FLAGS = frozenset({"--json", "-v", "--verbose", "--unsafe-dma", "--force-legacy"})
VALUED = frozenset(
    {"--root", "--timeout", "--backend", "--interrupts", "--ring", "--vf-token", "--without", "--trace"}
)
"""The common options as they are typed, to recognize them before the verb."""


# --- a command as it was given --------------------------------------------------------------------------------


class Invocation(NamedTuple):
    """How a command was invoked."""

    words: tuple[str, ...] = ()
    """The words of the command line, the verb first."""
    replay: Replays | None = None
    """What answers in place of the device, for ``uvirtio replay``."""
    own_process: bool = False
    """The process runs nothing but this command, which so may give up its rights."""


class Command:
    """One command as it was typed: its common options, and its output."""

    options: OpenOptions
    """How to open a device; set only for verbs that open one."""

    def __init__(
        self,
        name: str,
        json: bool = False,
        verbose: bool = False,
        *,
        roots: Roots | None = None,
        guard: Guard | None = None,
        invocation: Invocation | None = None,
        streaming: bool = False,
    ) -> None:
        """Make it.

        Args:
            name: The verb, behind the name of its group.
            json: Its output is JSON.
            verbose: It traces register accesses.
            roots: Where it looks; None: at this machine.
            guard: Delivers its signals; None: one of its own.
            invocation: How it was invoked.
            streaming: The output is JSON lines, so that a signal needs no document of its own.
        """
        self.name = name
        self.json = json
        self.verbose = verbose
        self.roots = Roots() if roots is None else roots
        self.guard = guard or Guard()
        self.invocation = invocation or Invocation()
        self.failure: UvirtioError | None = None
        """The error that ended the command."""
        self.streaming = streaming

    @property
    def timeout(self) -> float:
        """Longest wait for any one response of the device, in seconds."""
        return self.options.timeout

    @contextmanager
    def device(self, address: str) -> Iterator[Device]:
        """Open the device for the length of a ``with`` block; meanwhile signals interrupt its wait loop.

        Args:
            address: A device address, or a ``qemu:`` one.

        Yields:
            The device.

        Raises:
            UvirtioError: The block succeeded, and then the device could not be left in order.
        """
        from uvirtio import opening  # here: what only reads sysfs does not load it

        with opening.open(address, options=self.options) as opened:
            if opened.warning is not None:
                output.note(f"warning: {opened.warning}")
            self.guard.watch(opened)
            try:
                yield opened
            except BaseException:
                broken = opened.broken
                opened.close()
                if opened.broken is not broken:
                    output.note(f"warning: the device was not left in order: {opened.broken}")
                raise
            broken = opened.broken
        self.guard.watch(None)
        if opened.broken is not None and opened.broken is not broken:
            raise opened.broken

    def drop_rights(self, device: Device, *, pins: bool = False, keep: Mapping[str, str] | None = None) -> str:
        """Give up the capabilities that a command which runs for long does not need from here on.

        Args:
            device: The device, whose driver is started. Files are open, and no thread is started yet.
            pins: Memory will still be pinned for it; see ``drop_capabilities``.
            keep: What the command needs for itself: a capability and why.

        Returns:
            What was given up and kept, in words, which -v prints. What is refused is a warning.
        """
        if not self.invocation.own_process:
            return "the capabilities of the program that runs this command are its own"
        from uvirtio.device import drop_capabilities  # here: short commands do without it

        try:
            told = str(drop_capabilities(device, pins=pins, keep=keep))
        except NotSupported as error:  # a simulated device has threads of its own, and needs no rights
            told = f"capabilities kept: {error.seen}"
        except OperationFailed as error:  # a precaution that fails is no reason not to do the work
            told = f"{error.message}: {error.seen}"
            output.note(f"warning: {told}; {error.remedy}")
        if self.verbose:
            output.trace(told)
        return told

    # Output goes through these methods, so that a signal can end a command whose reader has stopped reading.

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self.guard.received is not None and not output.ready():
            output.abandon_stdout()  # do not block on the last output
        try:
            with self.guard.writing():
                yield
        except output.OutputFailed:
            if self.guard.received is None:
                raise
            output.abandon_stdout()  # the terminal went away (SIGHUP)

    def line(self, text: str = "") -> None:
        """Print one line of text."""
        with self._writing():
            output.line(text)

    def paragraph(self, text: str, indent: str = "") -> None:
        """Print one line; on a terminal, as many as its width takes."""
        with self._writing():
            for part in output.wrapped(text, indent):
                output.line(part)

    def document(self, **members: Any) -> None:
        """Print one JSON document with these members."""
        with self._writing():
            output.document(self.name, **members)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with aligned columns."""
        with self._writing():
            output.table(header, rows)

    def raw(self, data: bytes) -> None:
        """Write raw bytes to stdout."""
        with self._writing():
            output.write_bytes(data)

    def fields(self, rows: Sequence[tuple[str, object]]) -> None:
        """Print names and values, one pair on a line, the values aligned."""
        width = max((len(name) for name, _ in rows), default=0) + 2
        for name, value in rows:
            self.line(f"{name + ':':<{width}}{value}")


def perform(cmd: Command, body: Callable[[], int | None]) -> int:
    """Run a command and report its errors; no exception leaves it.

    Args:
        cmd: The command.
        body: Does the work and returns an exit code; None: 0.

    Returns:
        The exit code.
    """
    try:
        with cmd.guard.installed():
            code = body() or 0
            output.finish()
            if cmd.guard.received is None:
                return code
            raise cmd.guard.received
    except Signalled as signalled:
        return _signalled(cmd, signalled)
    except output.OutputClosed:
        output.abandon_stdout()
        return BROKEN_PIPE
    except output.OutputFailed as failed:
        output.abandon_stdout()
        return _report_as_text(cmd, failed.error)
    except Misuse as mistake:
        return _bug(cmd, mistake)  # a bug: user input was checked before
    except UvirtioError as failure:
        return _report(cmd, failure)
    except Exception as unforeseen:  # noqa: BLE001  # no traceback may leave a command
        if cmd.guard.received is not None:  # a dead terminal, most likely
            return _signalled(cmd, cmd.guard.received)
        if isinstance(unforeseen, OSError | MemoryError):
            from uvirtio.host import limits

            lacking = unforeseen if isinstance(unforeseen, OSError) else OSError(errno.ENOMEM, "")
            found = limits.reached(lacking, f"{cmd.name} cannot go on")
            if found is not None:
                return _report(cmd, found)
        return _bug(cmd, unforeseen)


def _report(cmd: Command, failure: UvirtioError) -> int:
    try:
        output.error(failure, cmd.name, cmd.json)
    except (output.OutputClosed, output.OutputFailed):  # the document cannot be written
        output.abandon_stdout()
        return _report_as_text(cmd, failure)
    return failure.exit_code


def _report_as_text(cmd: Command, failure: UvirtioError) -> int:
    output.error(failure, cmd.name, as_json=False)
    return failure.exit_code


def _signalled(cmd: Command, signalled: Signalled) -> int:
    if cmd.json and not cmd.streaming:
        _report(
            cmd,
            Interrupted(
                f"{signalled.name} ended this command, which cleaned up first",
                seen=signalled.name,
                expected="no signal",
            ),
        )
    elif not cmd.json:
        output.note(f"{signalled.name}: cleaned up and exited")
    try:
        output.write("")  # what is still buffered
    except (output.OutputClosed, output.OutputFailed):
        output.abandon_stdout()
    return signalled.exit_code


def _bug(cmd: Command, unforeseen: Exception) -> int:
    if cmd.verbose:
        import traceback

        for text in traceback.format_exception(unforeseen):
            for one in text.rstrip("\n").split("\n"):
                output.trace(one)
    return _report(
        cmd,
        Bug(
            f"unexpected {type(unforeseen).__name__}: {unforeseen}",
            seen=_where(unforeseen),
            expected="no unexpected exception: this is a bug in uvirtio",
            remedy="please report it, with the output of the same command with -v",
        ),
    )


def _where(unforeseen: Exception) -> str | None:
    import traceback  # here: its own imports are many

    frames = traceback.extract_tb(unforeseen.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


# --- commands -----------------------------------------------------------------------------------------------


def make_group(help: str) -> typer.Typer:
    """A group of verbs, such as ``uvirtio balloon``."""
    return typer.Typer(help=help)


def verb(
    app: typer.Typer, name: str, *, group: str = "", opens: bool = False, streams: bool = False
) -> Callable[[Body], Body]:
    """Register ``body(cmd, ...)`` as a command, with the common options.

    Args:
        app: The application or group.
        name: The verb.
        group: The group's name, for the full name of the command.
        opens: It opens a device, and so has the options for that.
        streams: Its JSON output is lines.

    Returns:
        A decorator that returns the function as it is.
    """

    def register(body: Body) -> Body:
        common = {key: declared(*one) for key, one in {**_COMMON, **(_DEVICE if opens else {})}.items()}
        app.verbs[name] = Verb(f"{group} {name}".strip(), body, opens, streams, common)
        return body

    return register


def run(one: Verb, given: dict[str, Any], invocation: Invocation) -> int:
    """Run a verb, and report its errors; no exception leaves it.

    Args:
        one: The verb.
        given: A value for each of its parameters.
        invocation: How it was invoked.

    Returns:
        The exit code.
    """
    asked = {key: given.pop(key) for key in one.common}
    made = Command(
        one.name,
        json=asked["json"],
        verbose=asked["verbose"],
        roots=_roots(asked["root"]),
        streaming=one.streams,
        invocation=invocation,
    )

    def checked() -> int | None:
        if one.opens:
            made.options = _options(made, asked)
        try:
            return one.body(made, **given)
        except UvirtioError as error:
            made.failure = error
            raise

    code = perform(made, checked)
    _end_record(made, code)
    return code


def _end_record(cmd: Command, code: int) -> None:
    """Note in the record of a command how it ended, if it has one."""
    record = getattr(getattr(cmd, "options", None), "record", None)
    if record is not None:
        try:
            record.end(code, cmd.failure)
        except UvirtioError as error:
            output.note(f"warning: {error}; {error.seen}")


def _roots(root: str) -> Roots:
    return Roots.under(root) if root else Roots()


def _options(cmd: Command, asked: dict[str, Any]) -> OpenOptions:
    from uvirtio.device import OpenOptions  # here: what only reads sysfs does not load it

    mode = asked["interrupts"]
    record = None
    if asked["trace"] is not None:
        from uvirtio.trace import Recorder

        record = Recorder(asked["trace"], command=cmd.invocation.words)
    return OpenOptions(
        timeout=seconds("--timeout", asked["timeout"]),
        interrupts=tuple(InterruptMode) if mode is None else (mode,),
        without=tuple(asked["without"] or ()),
        roots=cmd.roots,
        trace=output.timed_trace() if cmd.verbose else None,
        record=record,
        replay=cmd.invocation.replay,
        **{name: asked[name] for name in ("backend", "unsafe_dma", "force_legacy", "ring", "vf_token")},
    )


def seconds(option: str, value: float) -> float:
    """Check a number of seconds that an option takes.

    Args:
        option: Its name, for the message.
        value: Seconds.

    Returns:
        ``value``.

    Raises:
        UsageError: It is not above 0, or more than a clock can count.
    """
    if 0 < value <= TIMEOUT_MAX:
        return value
    raise UsageError(
        f"{option} takes a number of seconds above 0",
        seen=value,
        expected=f"above 0, at most {TIMEOUT_MAX:g}",
        remedy=f"for example {option} 10",
    )

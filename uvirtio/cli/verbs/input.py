"""``uvirtio input``: properties and events of a keyboard, mouse or tablet, and a clone of it in the kernel."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, DevArgument, make_group, seconds, verb
from uvirtio.errors import DeviceTimeout, OperationFailed, Refused, UsageError

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.input import Description, Input, InputEvent
    from uvirtio.drivers.input.recording import Recording


class Format(StrEnum):
    """How a recording is written."""

    EVEMU = "evemu"
    LIBINPUT = "libinput"


class OnOff(StrEnum):
    """The state of an LED on the command line."""

    ON = "on"
    OFF = "off"


ResolutionOption = Annotated[
    int | None,
    typer.Option(
        "--resolution", metavar="UNITS", help="Units per millimetre, for axes of positions that tell none."
    ),
]

ForOption = Annotated[float | None, typer.Option("--for", metavar="SECONDS", help="Stop after SECONDS.")]


def register(app: typer.Typer) -> None:
    """Add the group ``input`` to the application."""
    group = make_group("Keyboards, mice and tablets.")
    app.add_typer(group, name="input")
    verb(group, "info", group="input", opens=True)(info)
    verb(group, "events", group="input", opens=True, streams=True)(events)
    verb(group, "bridge", group="input", opens=True, streams=True)(bridge)
    verb(group, "record", group="input", opens=True, streams=True)(record)
    verb(group, "replay", group="input", opens=True, streams=True)(replay)
    verb(group, "led", group="input", opens=True)(led)


def info(cmd: Command, dev: DevArgument) -> None:
    """Show what the device is and which events it can send."""
    from uvirtio.drivers.input import Input

    with cmd.device(dev) as device, Input(device) as driver:
        found = _info(driver)
        if cmd.json:
            cmd.document(address=device.address, **found)
        else:
            _print_info(cmd, found)


def _info(driver: Input) -> dict[str, Any]:
    from uvirtio.spec import input as spec

    about, ids = driver.describe(), driver.ids
    return {
        "name": about.name,
        "serial": about.serial,
        "ids": None
        if ids is None
        else {
            "bustype": ids.bustype,
            "bus": spec.bus_name(ids.bustype),
            "vendor": ids.vendor,
            "product": ids.product,
            "version": ids.version,
        },
        "properties": [{"property": one, "name": spec.prop_name(one)} for one in sorted(about.properties)],
        "events": [
            {
                "type": kind,
                "name": spec.type_name(kind),
                "codes": [{"code": code, "name": spec.code_name(kind, code)} for code in sorted(codes)],
            }
            for kind, codes in sorted(about.events.items())
        ],
        "axes": [
            {
                "code": axis,
                "name": spec.code_name(spec.EV_ABS, axis),
                "min": one.minimum,
                "max": one.maximum,
                "fuzz": one.fuzz,
                "flat": one.flat,
                "resolution": one.resolution,
            }
            for axis, one in sorted(about.axes.items())
        ],
        "slots": about.slots,
        "multi_touch": about.multi_touch or None,
        "warnings": _warnings(about),
        "findings": sorted(driver.findings),
    }


def _warnings(about: Description) -> list[str]:
    """What programs that read the device will miss."""
    from uvirtio.spec import input as spec

    names = ", ".join(spec.code_name(spec.EV_ABS, axis) for axis in about.unscaled)
    if not names:
        return []
    return [
        f"no resolution: {names}. The size in millimetres is not known: libinput ignores pen tablets without it, "
        "and guesses the size of touch pads. A clone can have one: input bridge --resolution UNITS"
    ]


def _print_info(cmd: Command, found: dict[str, Any]) -> None:
    ids = found["ids"]
    cmd.fields(
        [
            ("name", found["name"]),
            ("serial", found["serial"] or "none"),
            (
                "ids",
                "none"
                if ids is None
                else f"{ids['bus']}, vendor {ids['vendor']:#06x}, product {ids['product']:#06x}, "
                f"version {ids['version']:#06x}",
            ),
            ("properties", ", ".join(one["name"] for one in found["properties"]) or "none"),
        ]
    )
    for kind in found["events"]:
        cmd.line(f"event type {kind['type']} ({kind['name']})")
        for code in kind["codes"]:
            cmd.line(f"  code {code['code']} ({code['name']})")
    for axis in found["axes"]:
        cmd.line(
            f"axis {axis['name']}: {axis['min']} to {axis['max']}, fuzz {axis['fuzz']}, "
            f"flat {axis['flat']}, resolution {axis['resolution']}"
        )
    if found["slots"]:
        cmd.line(f"multi-touch: {found['slots']} contacts")
    elif found["multi_touch"]:
        cmd.line("multi-touch: contacts without slots (protocol A)")
    for warning in found["warnings"]:
        cmd.line(f"warning: {warning}")
    for finding in found["findings"]:
        cmd.line(f"odd: {finding}")


def events(
    cmd: Command,
    dev: DevArgument,
    for_seconds: ForOption = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="Stop after N events, SYN_REPORT included.")
    ] = None,
) -> None:
    """Print events as they arrive, until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    if count is not None and count < 1:
        raise UsageError("--count takes a number above 0", seen=count, expected="1 or more")
    from uvirtio.drivers.input import Input

    with cmd.device(dev) as device, Input(device) as driver:
        cmd.drop_rights(device)
        deadline = None if for_seconds is None else device.clock.monotonic() + for_seconds
        if not cmd.json:
            cmd.line(f"{driver.name or device.address}: waiting for events (Ctrl-C to leave)")
        else:
            cmd.document(event="waiting", address=device.address, name=driver.name)
        told = 0
        while count is None or told < count:
            left = None if deadline is None else max(0.0, deadline - device.clock.monotonic())
            found = driver.read(timeout=left)
            now = time.time()
            for one in found[: None if count is None else count - told]:
                _print_event(cmd, one, now)
                told += 1
            if deadline is not None and device.clock.monotonic() >= deadline:
                return


def _print_event(cmd: Command, one: InputEvent, now: float) -> None:
    from uvirtio.spec import input as spec

    kind, code = spec.type_name(one.type), spec.code_name(one.type, one.code)
    if cmd.json:
        cmd.document(
            event="input",
            time=now,
            type=one.type,
            type_name=kind,
            code=one.code,
            code_name=code,
            value=one.value,
        )
    elif one.type == spec.EV_SYN and one.code == spec.SYN_REPORT:
        cmd.line(f"Event: time {now:.6f}, -------------- {code} ------------")
    elif one.type == spec.EV_SYN:
        cmd.line(f"Event: time {now:.6f}, ++++++++++++++ {code} ++++++++++++")
    else:
        cmd.line(f"Event: time {now:.6f}, type {one.type} ({kind}), code {one.code} ({code}), value {one.value}")


# --- bridge -------------------------------------------------------------------------------------------------


def _check_resolution(resolution: int | None) -> None:
    if resolution is not None and not 0 < resolution < 1 << 31:
        raise UsageError("--resolution takes units per millimetre", seen=resolution, expected="1 or more")


def bridge(
    cmd: Command, dev: DevArgument, for_seconds: ForOption = None, resolution: ResolutionOption = None
) -> None:
    """Clone the device into the kernel's input layer. Events go there, LED changes come back, until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    _check_resolution(resolution)
    from uvirtio.drivers.input import Bridge, Feed, Input, UinputClone, phys_of

    with cmd.device(dev) as device, Input(device) as driver:
        about = _scaled(driver.describe(), resolution)
        clone = UinputClone(about, phys=phys_of(device.address), roots=cmd.roots)
        with Feed(clone, clone.description) as feed:
            cmd.drop_rights(device)
            _say_clone(cmd, device, about, clone.path)
            bridged = Bridge(driver, feed)
            try:
                bridged.run(timeout=for_seconds)
            finally:
                feed.close()  # before any output, whose reader can be slow
                told = {
                    "frames": feed.frames,
                    "events": feed.events,
                    "ignored": feed.ignored,
                    "lost": driver.lost,
                    "brought_back": bridged.brought_back,
                }
                _say_bridged(cmd, told)


def _say_clone(cmd: Command, device: Device | None, about: Description, path: str) -> None:
    if cmd.json:
        cmd.document(
            event="cloned", address=device.address if device else None, name=about.name, node=path or None
        )
    else:
        cmd.line(f"{about.name}: cloned to {path or 'the kernel'} (Ctrl-C to leave)")


def _say_bridged(cmd: Command, told: dict[str, int]) -> None:
    if cmd.json:
        cmd.document(event="left", **told)
        return
    text = f"{told['frames']} frames, {told['events']} events forwarded"
    if "brought_back" in told:
        text += f", {told['brought_back']} LED change{'s' * (told['brought_back'] != 1)} returned"
    for name in ("ignored", "lost"):
        if told.get(name):
            text += f", {told[name]} {name}"
    cmd.line(f"clone removed: {text}")


# --- record and replay --------------------------------------------------------------------------------------


def record(
    cmd: Command,
    dev: DevArgument,
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="File to create (default: standard output).")
    ] = "-",
    yes: Annotated[
        bool, typer.Option("--yes", help="Confirm that keystrokes, passwords too, are recorded.")
    ] = False,
    for_seconds: ForOption = None,
    format_: Annotated[
        Format, typer.Option("--format", help="evemu, or the YAML of libinput record.")
    ] = Format.EVEMU,
) -> None:
    """Record the device and its events, for evemu or libinput. This is a key logger: it records passwords, too."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    if not yes:
        raise Refused(
            "a recording holds everything that is typed, passwords too",
            seen="no --yes",
            expected="--yes",
            remedy="add --yes, and protect the file like a password",
        )
    if cmd.json and file == "-":
        raise UsageError(
            "standard output cannot take both the recording and JSON",
            seen="--json without FILE",
            remedy="give a FILE",
        )
    from uvirtio.drivers.input import Input

    output.note("recording everything that this device sends, passwords too")
    with cmd.device(dev) as device, _sink(cmd, file) as write, Input(device) as driver:
        about = driver.describe()
        cmd.drop_rights(device)
        if file != "-":
            _say_recording(cmd, about.name, file)
        told = _record(driver, about, write, for_seconds, format_)
    if cmd.json:
        cmd.document(event="recorded", file=file, events=told)
    elif file != "-":
        cmd.line(f"{told} events in {file}")


def _say_recording(cmd: Command, name: str, file: str) -> None:
    if cmd.json:
        cmd.document(event="recording", name=name, file=file)
    else:
        cmd.line(f"{name}: recording to {file} (Ctrl-C to leave)")


def _record(
    driver: Input,
    about: Description,
    write: Callable[[list[str]], None],
    for_seconds: float | None,
    format_: Format,
) -> int:
    """Record frame by frame, so that a recording ends with a whole frame; returns the number of events."""
    from uvirtio.drivers.input import evemu, libinput

    write(list((evemu if format_ is Format.EVEMU else libinput).header(about)))
    deadline = None if for_seconds is None else time.monotonic() + for_seconds
    begin: float | None = None
    told = 0
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        frame = driver.read_frame(timeout=left)
        if frame is None:
            return told
        begin = frame.time if begin is None else begin
        at = round((frame.time - begin) * 1e6)
        # Events that the device does not announce cannot be replayed, and readers of recordings refuse them.
        known = [one for one in frame if about.can(one.type, one.code)]
        if format_ is Format.EVEMU:
            write([evemu.event_line(at, one) for one in known])
        else:
            write(list(libinput.frame_lines(at, known)))
        told += len(known)
        if left == 0:
            return told


@contextmanager
def _sink(cmd: Command, file: str) -> Iterator[Callable[[list[str]], None]]:
    """What writes lines: to a new file that only its owner can read, or to standard output."""
    if file == "-":
        yield lambda lines: cmd.raw("".join(f"{line}\n" for line in lines).encode())
        return
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{file} already exists", seen=file, expected="a new file") from error
    except OSError as error:
        raise OperationFailed(f"{file} cannot be written", seen=error.strerror, expected="a new file") from error
    opened = os.fdopen(number, "w", encoding="utf-8")
    try:
        yield lambda lines: _write(opened, file, lines)
    finally:
        with _writing(file):
            opened.close()


def _write(opened: TextIO, file: str, lines: list[str]) -> None:
    with _writing(file):
        opened.write("".join(f"{line}\n" for line in lines))
        opened.flush()


@contextmanager
def _writing(file: str) -> Iterator[None]:
    """Turn an OSError of the file into OperationFailed."""
    try:
        yield
    except OSError as error:
        raise OperationFailed(f"{file} cannot be written", seen=error.strerror) from error


def replay(
    cmd: Command,
    dev: Annotated[
        str, typer.Argument(metavar="DEV", help="The device to clone; - for the one that FILE describes.")
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="A recording of evemu, or of libinput record.")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the events and play nothing.")] = False,
    resolution: ResolutionOption = None,
) -> None:
    """Play a recording into a clone of DEV. The clone is in the kernel's input layer; the pace is the recording's.

    A virtio device takes no events from its driver, so they go to where its own events would go.
    """
    from uvirtio.drivers.input import formats

    _check_resolution(resolution)
    recording = formats.read(file)
    if only_print and dev == "-":
        _print_recording(cmd, recording)
        return
    if dev == "-":
        if recording.description is None:
            typed = shlex.quote(file)
            raise UsageError(
                f"{file} describes no device that could be cloned",
                seen="E: lines alone",
                expected="N:, I: and B: lines before them",
                remedy=f"put its description (evemu-describe) in front: cat DESCRIPTION {typed} > JOINED"
                " && uvirtio input replay - JOINED; or, for a device with these events: "
                f"uvirtio input replay DEV {typed}",
            )
        _replay(cmd, None, None, _scaled(recording.description, resolution), recording)
        return
    from uvirtio.drivers.input import Input

    with cmd.device(dev) as device, Input(device) as driver:
        about = driver.describe()
        missing = sorted({(e.type, e.code) for _, e in recording.events if not about.can(e.type, e.code)})
        if missing:
            from uvirtio.spec import input as spec

            raise UsageError(
                f"{device.address} lacks events of this recording",
                seen=", ".join(spec.code_name(*one) for one in missing[:8]),
                expected="a recording of a device with the same events",
                remedy="uvirtio input info DEV shows what a device has"
                if recording.description is None
                else f"uvirtio input replay - {shlex.quote(file)} clones the device that was recorded",
            )
        if only_print:
            _print_recording(cmd, recording)
        else:
            _replay(cmd, device, driver, _scaled(about, resolution), recording)


def _scaled(about: Description, resolution: int | None) -> Description:
    return about if resolution is None else about.scaled(resolution)


def _print_recording(cmd: Command, recording: Recording) -> None:
    for at, one in recording.events:
        _print_event(cmd, one, at / 1e6)


def _replay(
    cmd: Command, device: Device | None, driver: Input | None, about: Description, recording: Recording
) -> None:
    from uvirtio.drivers.input import Feed, UinputClone

    clone = UinputClone(about, phys="uvirtio/replay", roots=cmd.roots)
    with Feed(clone, clone.description) as feed:
        if device is not None:
            cmd.drop_rights(device)
        _say_clone(cmd, device, about, clone.path)
        begin = time.monotonic()
        for at, frame in recording.frames():
            _pause(device, driver, begin + at / 1e6)
            feed.put(frame)
        feed.close()
        _say_bridged(cmd, {"frames": feed.frames, "events": feed.events, "ignored": feed.ignored})


def _pause(device: Device | None, driver: Input | None, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        return
    if device is None or driver is None:
        time.sleep(left)
        return

    def served() -> bool:
        driver.service()
        while driver.take_frame() is not None:
            pass  # what the device itself sends meanwhile is not part of the recording
        return False

    device.wait(served, timeout=left, what="the next frame", owed=False)


# --- led ----------------------------------------------------------------------------------------------------


def led(
    cmd: Command,
    dev: DevArgument,
    name: Annotated[str, typer.Argument(metavar="LED", help="LED_CAPSL, capsl, capslock, or the number.")],
    state: Annotated[OnOff, typer.Argument(metavar="on|off")],
    hold: Annotated[
        float | None, typer.Option("--hold", metavar="SECONDS", help="Keep the device open for SECONDS.")
    ] = None,
) -> None:
    """Turn an LED on or off. Whether it stays so once the device is closed depends on the device."""
    if hold is not None:
        seconds("--hold", hold)
    code = _led_code(name)
    from uvirtio.drivers.input import Input
    from uvirtio.spec import input as spec

    with cmd.device(dev) as device, Input(device) as driver:
        driver.set_led(code, state is OnOff.ON)
        if not driver.flush(timeout=cmd.timeout):
            raise DeviceTimeout(
                f"{device.address} did not take the LED within {cmd.timeout:g} s",
                seen=f"{driver.status_pending} values not acknowledged",
                expected="an empty status queue (5.8.6)",
                remedy="the device does not serve its status queue; its host may ignore LEDs",
            )
        if cmd.json:
            cmd.document(
                address=device.address, led=code, name=spec.code_name(spec.EV_LED, code), on=state is OnOff.ON
            )
        else:
            cmd.line(f"{spec.code_name(spec.EV_LED, code)} is {state}")
        if hold is not None:
            device.wait(lambda: False, timeout=hold, what="the end of the hold", owed=False)


def _led_code(name: str) -> int:
    from uvirtio.spec import input as spec

    if name.isascii() and name.isdecimal() and len(name) < 4:
        return int(name)
    upper = name.upper().removesuffix("OCK")
    found = spec.code_of(upper if upper.startswith("LED_") else f"LED_{upper}")
    if found is None or found[0] != spec.EV_LED:
        known = (spec.code_name(spec.EV_LED, code) for code in range(spec.CODE_COUNTS[spec.EV_LED]))
        raise UsageError(
            f"{name!r} is not an LED",
            seen=name,
            expected=", ".join(one for one in known if one.startswith("LED_")),
        )
    return found[1]

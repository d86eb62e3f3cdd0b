"""The kernel's half of an input driver, from user space: a clone in /dev/uinput that every program can read.

:class:`UinputClone` is the device that the kernel shows; :class:`Feed` gives it whole frames, knows what is
pressed, and lifts it at the end; :class:`Bridge` puts a driver before it and brings LEDs and sounds back.

The extra ``input`` (python-evdev) makes the clone; it is loaded when a clone is made, and not before.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from uvirtio.drivers.input.description import Description
from uvirtio.drivers.input.driver import Input
from uvirtio.drivers.input.events import SYN_REPORT, Frame, InputEvent
from uvirtio.drivers.input.state import InputState
from uvirtio.errors import Closed, ModuleLack, NotSupported, OperationFailed, PermissionLack, UvirtioError
from uvirtio.host.proc import misc_devices
from uvirtio.host.roots import Roots
from uvirtio.spec import input as spec

_NAME_MAX = 79  # bytes; UINPUT_MAX_NAME_SIZE with its NUL
_EVENT = struct.Struct("@LLHHi")  # struct input_event: two longs of time, then ours
_READ_EVENTS = 64
_BACK = (spec.EV_LED, spec.EV_SND)


class Clone(Protocol):
    """Where frames go, and where LEDs come from."""

    path: str
    """The node that programs read, or an empty string where it is not known."""

    def fileno(self) -> int: ...
    def write(self, events: Sequence[InputEvent]) -> None: ...
    def read(self) -> list[InputEvent]:
        """What programs wrote to the clone since the last call, without waiting."""
        ...

    def close(self) -> None: ...


class UinputClone:
    """A device in the kernel's input layer with this description, as far as the kernel takes it.

    ``phys``: where it says that it is plugged in; ``roots``: whose /dev/uinput makes it.

    Raises NotSupported without python-evdev, ModuleLack without uinput, PermissionLack, OperationFailed.
    """

    def __init__(self, description: Description, *, phys: str = "uvirtio", roots: Roots | None = None) -> None:
        evdev = _evdev()
        roots = roots or Roots()
        node = str(roots.dev / "uinput")
        sane = _as_the_kernel_takes_it(description.sane(), node, roots)
        self.description = sane
        """What the clone announces: the description as far as this kernel takes it."""
        self.path = ""
        # By hand, for a constructor that fails half-way has a device already, and nobody else closes it.
        self._device: Any = evdev.UInput.__new__(evdev.UInput)
        try:
            self._device.__init__(
                events=_capabilities(evdev, sane),
                name=_name(sane.name),
                vendor=sane.ids.vendor,
                product=sane.ids.product,
                version=sane.ids.version,
                bustype=sane.ids.bustype,
                devnode=node,
                phys=phys,
                input_props=sorted(sane.properties),
                max_effects=0,  # or the clone would claim force feedback
            )
        except (OSError, evdev.UInputError) as error:
            number = getattr(self._device, "fd", -1)
            if isinstance(number, int) and number >= 0:
                os.close(number)  # and with it the device goes
            raise _refused(node, error) from error
        self._fd: int = self._device.fd
        reader = getattr(self._device, "device", None)
        if reader is not None:
            self.path = str(reader.path)
            reader.close()  # or it would keep every event for a reader that never comes

    def fileno(self) -> int:
        if self._fd < 0:
            raise Closed("this clone is closed")
        return self._fd

    def write(self, events: Sequence[InputEvent]) -> None:
        """Give the clone these events, with one system call, so that no reader sees half a frame."""
        data = b"".join(_EVENT.pack(0, 0, event.type, event.code, event.value) for event in events)
        try:
            done = os.write(self.fileno(), data)
        except OSError as error:
            raise OperationFailed(
                f"the clone {self.path} takes no events",
                seen=error.strerror,
                expected=f"{len(data)} bytes written",
            ) from error
        if done != len(data):
            raise OperationFailed(f"the clone {self.path} took a part", seen=done, expected=f"{len(data)} bytes")

    def read(self) -> list[InputEvent]:
        try:
            data = os.read(self.fileno(), _READ_EVENTS * _EVENT.size)
        except BlockingIOError:
            return []
        except OSError as error:
            raise OperationFailed(
                f"the clone {self.path} cannot be read", seen=error.strerror, expected="what programs wrote to it"
            ) from error
        whole = len(data) - len(data) % _EVENT.size
        return [InputEvent(*fields[2:]) for fields in _EVENT.iter_unpack(data[:whole])]

    def close(self) -> None:
        """Destroy the device; idempotent."""
        if self._fd >= 0:
            self._fd = -1
            with suppress(OSError):
                self._device.close()


class Feed:
    """Frames into a clone: only what it announces, and nothing stays pressed when it ends. Closes the clone."""

    def __init__(self, clone: Clone, description: Description) -> None:
        self.clone = clone
        self.description = description.sane()
        self.frames = 0
        self.events = 0
        self.ignored = 0
        """Events that the clone does not announce, and was not given (5.8.6.1)."""
        self._state = InputState(max(self.description.slots, 1))
        self._closed = False

    def put(self, events: Iterable[InputEvent]) -> None:
        """Give the clone these events at once. Raises OperationFailed, Closed."""
        if self._closed:
            raise Closed("this clone is closed")
        wanted = []
        for event in events:
            if self._takes(event):
                wanted.append(event)
            else:
                self.ignored += 1
        if not wanted:
            return
        self._state.apply(wanted)  # before the write: what may have gone out has to be lifted
        self.clone.write(wanted)
        self.events += len(wanted)
        self.frames += sum(event == SYN_REPORT for event in wanted)

    def _takes(self, event: InputEvent) -> bool:
        if event.type == spec.EV_SYN:
            return event.code < spec.SYN_DROPPED
        # A device may claim that it sends its LEDs; the kernel would hand them back as if a program had set them.
        return event.type not in _BACK and self.description.can(event.type, event.code)

    def put_frame(self, frame: Frame, now: InputState) -> None:
        """Give the clone a frame; where frames are missing before it, bring it to the state of ``now``."""
        if frame.dropped:
            self.put([*self._state.towards(now), SYN_REPORT])
        else:
            self.put(frame)

    def close(self) -> None:
        """Lift every key and finger, and destroy the clone; idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            pressed = self._state.releases()
            if pressed:
                with suppress(UvirtioError):
                    self.clone.write([*pressed, SYN_REPORT])
        finally:
            self.clone.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class Bridge:
    """From a driver to a feed, and LEDs and sounds back. Owns neither: close the feed, then the driver."""

    def __init__(self, driver: Input, feed: Feed) -> None:
        self.driver = driver
        self.feed = feed
        self.brought_back = 0
        """Values for LEDs and sounds that programs wrote to the clone, and the device was told."""

    def run(self, *, timeout: float | None = None) -> None:
        """Forward until ``timeout`` seconds are over (None: until closed or interrupted).

        What programs wrote to the clone before that is brought back, also when a signal ends it. Raises what
        ends the device, or the clone.
        """
        try:
            self._run(timeout)
        except BaseException:
            with suppress(UvirtioError):
                self._bring_back()
            raise

    def _run(self, timeout: float | None) -> None:
        device = self.driver.device
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = [self.feed.clone.fileno()]
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            some = device.wait(self.turn, timeout=left, what="events", owed=False, watch=watch)
            if left == 0 or not some:
                return

    def turn(self) -> bool:
        """Forward what is there in both directions, without waiting; whether there was anything."""
        some = self._bring_back()
        self.driver.service()
        while (frame := self.driver.take_frame()) is not None:
            self.feed.put_frame(frame, self.driver.state)
            some = True
        return some

    def _bring_back(self) -> bool:
        back = [event for event in self.feed.clone.read() if event.type in _BACK]
        for event in back:
            if self.feed.description.can(event.type, event.code):
                self.driver.send(event.type, event.code, event.value)
                self.brought_back += 1
        return bool(back)


# --- uinput -------------------------------------------------------------------------------------------------


def _evdev() -> Any:
    try:
        return import_module("evdev")
    except ImportError as error:
        raise NotSupported(
            "a clone in /dev/uinput needs python-evdev",
            seen=str(error),
            expected="the module evdev",
            remedy="pip install 'uvirtio[input]', or Debian's python3-evdev",
        ) from error


def phys_of(address: str) -> str:
    """Where a clone says that it is plugged in, by the address of the device.

    Without a dot, and with no second slash: libinput takes devices for one whose ``phys`` differs only behind the
    last dot, or behind ``/input`` (udev/libinput-device-group.c), and two functions of a slot are two devices.
    """
    return f"uvirtio/{re.sub('[^0-9A-Za-z:_-]', '-', address)}"[:_PHYS_MAX]


def _as_the_kernel_takes_it(description: Description, node: str, roots: Roots) -> Description:
    """Open the node once, and ask it for what is newer than the oldest kernel: older ones refuse the whole device.

    What python-evdev raises when it cannot open it has no errno, and so no cause.
    """
    try:
        fd = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _not_opened(node, roots, error) from error
    try:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise ModuleLack(
                f"{node} is no device node",
                seen="another kind of file",
                expected=_NODE,
                remedy=f"rm {node} && modprobe -r uinput && modprobe uinput",
            )
        events = {kind: codes - _too_new(fd, kind, codes) for kind, codes in description.events.items()}
    finally:
        os.close(fd)
    return replace(description, events=events)


def _too_new(fd: int, kind: int, codes: frozenset[int]) -> frozenset[int]:
    """The codes among these that this kernel does not know."""
    found = set()
    if kind in _SETTERS:
        for code in (code for code in codes if code >= spec.OLDER_COUNTS[kind]):
            try:
                fcntl.ioctl(fd, _SETTERS[kind], code)
            except OSError as error:
                if error.errno == errno.EINVAL:  # above its SW_MAX
                    found.add(code)
    return frozenset(found)


_SETTERS = {spec.EV_SW: spec.UI_SET_SWBIT}
_PHYS_MAX = 79  # bytes
_NODE = "the node of the kernel's uinput module"
_NUMBERS = "10:223"
"""Major and minor of /dev/uinput: Documentation/admin-guide/devices.txt."""


def _not_opened(node: str, roots: Roots, error: OSError) -> UvirtioError:
    match error.errno:
        case errno.ENOENT if "uinput" in misc_devices(roots):
            # The kernel has it, and this /dev does not show it: a container, most likely.
            return ModuleLack(
                f"there is no {node}, though the kernel has uinput",
                seen=error.strerror,
                expected=_NODE,
                remedy=f"give the container the device: --device {node}; elsewhere: "
                f"mknod -m 0600 {node} c {_NUMBERS.replace(':', ' ')}",
            )
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            # A node without its driver: systemd makes the nodes of modules that an open would load.
            missing = error.errno == errno.ENOENT
            return ModuleLack(
                f"there is no {node}" if missing else f"{node} leads nowhere: uinput is not loaded",
                seen=error.strerror,
                expected=_NODE,
                remedy="modprobe uinput (outside, where this is a container)",
            )
        case errno.EPERM:
            return PermissionLack(
                f"{node} is forbidden by the device cgroup",
                seen=error.strerror,
                expected=f"the right to open the character device {_NUMBERS}",
                remedy=f"let the container have it: --device {node}, or DeviceAllow={node} rw in its unit",
            )
        case errno.EACCES if os.geteuid() == 0:
            return PermissionLack(
                f"{node} may not be opened, even by root",
                seen=error.strerror,
                expected="device nodes that work there",
                remedy=f"findmnt -T {node}: mounted nodev, or in a user namespace",
            )
        case errno.EACCES:
            return PermissionLack(
                f"{node} may not be opened",
                seen=f"{error.strerror}, user {os.geteuid()}",
                expected="read and write",
                remedy="as root, or give the group input access to it with a udev rule",
            )
    return OperationFailed(f"{node} cannot be opened", seen=error.strerror, expected=_NODE)


def _refused(node: str, error: Exception) -> UvirtioError:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return PermissionLack(f"{node} may not be used", seen=error.strerror, remedy="as root")
    return OperationFailed(
        f"{node} does not make this device",
        seen=str(error),
        expected="a device like the virtio one",
        remedy="uvirtio input info DEV shows what the device claims to be",
    )


def _name(name: str) -> str:
    """What uinput takes: not empty, 79 bytes at most, no character cut in two."""
    return name.encode()[:_NAME_MAX].decode(errors="ignore") or "virtio input"


def _capabilities(evdev: Any, description: Description) -> dict[int, list[Any]]:
    """The description as evdev.UInput wants it."""
    found: dict[int, list[Any]] = {}
    for kind, codes in description.events.items():
        if kind == spec.EV_ABS:
            found[kind] = [(code, _axis(evdev, description, code)) for code in sorted(codes)]
        elif kind == spec.EV_REP:
            found[kind] = []  # the type is enough: the kernel repeats keys itself
        elif codes:
            found[kind] = sorted(codes)
    # Without any it would take every key there is.
    return found or {spec.EV_MSC: [0]}


def _axis(evdev: Any, description: Description, code: int) -> Any:
    info = description.axes[code]
    return evdev.AbsInfo(
        value=max(info.minimum, min(0, info.maximum)),
        min=info.minimum,
        max=info.maximum,
        fuzz=info.fuzz,
        flat=info.flat,
        resolution=info.resolution,
    )

"""A clone of the input device in the kernel's input layer (/dev/uinput), which every program can read.

``UinputClone`` is the kernel's device; ``Feed`` writes whole frames to it, tracks what is pressed, and releases
that at the end; ``Bridge`` connects it to a driver and sends LEDs and sounds back to the device.

The extra ``input`` (python-evdev) is needed; it is imported when a clone is made.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
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
from uvirtio.host import privilege
from uvirtio.host.proc import misc_devices
from uvirtio.host.roots import Roots
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import input as spec

_NAME_MAX = 79  # bytes; UINPUT_MAX_NAME_SIZE with its NUL
_EVENT = struct.Struct("@LLHHi")  # struct input_event: two longs of time, then ours
_READ_EVENTS = 64
_BACK = (spec.EV_LED, spec.EV_SND)


class Clone(Protocol):
    """What ``Feed`` writes frames to and ``Bridge`` reads LEDs and sounds from."""

    path: str
    """The device node that programs read; an empty string where it is not known."""

    def fileno(self) -> int:
        """Return the file descriptor, readable when programs wrote something."""
        ...

    def write(self, events: Sequence[InputEvent]) -> None:
        """Send events to the programs that read the clone."""
        ...

    def read(self) -> list[InputEvent]:
        """Return what programs wrote to the clone since the last call, without waiting."""
        ...

    def close(self) -> None:
        """Destroy the clone; idempotent."""
        ...


class UinputClone:
    """A device in the kernel's input layer (uinput)."""

    def __init__(self, description: Description, *, phys: str = "uvirtio", roots: Roots | None = None) -> None:
        """Create the device.

        Args:
            description: What it announces, as far as the kernel accepts it.
            phys: Its physical location (EVIOCGPHYS); see ``phys_of``.
            roots: Whose /dev/uinput to open.

        Raises:
            NotSupported: python-evdev is not installed.
            ModuleLack: The kernel module uinput is not loaded.
            PermissionLack: /dev/uinput may not be opened.
            OperationFailed: The kernel did not create the device.
        """
        evdev = _evdev()
        roots = roots or Roots()
        node = str(roots.dev / "uinput")
        sane = _as_the_kernel_takes_it(description.sane(), node, roots)
        self.description = sane
        """What the clone announces: the description as far as this kernel accepts it."""
        self.path = ""
        # By hand: a constructor that fails half-way has opened a device, which would stay open.
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
                os.close(number)  # which removes the device
            raise _refused(node, error) from error
        self._fd: int = self._device.fd
        self._owner = os.getpid()
        reader = getattr(self._device, "device", None)
        if reader is not None:
            self.path = str(reader.path)
            reader.close()  # or it would buffer every event without ever being read

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            Closed: The clone was closed.
        """
        if self._fd < 0:
            raise Closed("this clone is closed")
        return self._fd

    def write(self, events: Sequence[InputEvent]) -> None:
        """Send events with one system call, so that no reader sees half a frame.

        Args:
            events: One frame, or several.

        Raises:
            OperationFailed: The kernel did not take all of them.
            Closed: The clone was closed.
        """
        data = b"".join(_EVENT.pack(0, 0, event.type, event.code, event.value) for event in events)
        try:
            done = os.write(self.fileno(), data)
        except OSError as error:
            raise OperationFailed(
                f"the clone {self.path} accepts no events",
                seen=error.strerror,
                expected=f"{len(data)} bytes written",
            ) from error
        if done != len(data):
            raise OperationFailed(
                f"the clone {self.path} accepted only a part", seen=done, expected=f"{len(data)} bytes"
            )

    def read(self) -> list[InputEvent]:
        """Return what programs wrote to the clone since the last call, without waiting.

        Raises:
            OperationFailed: The clone cannot be read.
            Closed: The clone was closed.
        """
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

    def __del__(self) -> None:
        # Not in a forked child: the device is the parent's.
        if getattr(self, "_fd", -1) >= 0 and os.getpid() == getattr(self, "_owner", 0):
            warn_unclosed(self, self.path, then=self.close)


class Feed:
    """Writes frames to a clone, which it owns: only announced events, and nothing stays pressed at the end."""

    def __init__(self, clone: Clone, description: Description) -> None:
        """Feed a clone, with nothing pressed.

        Args:
            clone: Where events go; closed by ``close``.
            description: What the clone announces.
        """
        self.clone = clone
        self.description = description.sane()
        self.frames = 0
        """Frames that were written."""
        self.events = 0
        """Events that were written."""
        self.ignored = 0
        """Events that the clone does not announce, which were not written (5.8.6.1)."""
        self._state = InputState(max(self.description.slots, 1))
        self._owner = os.getpid()
        self._closed = False

    def put(self, events: Iterable[InputEvent]) -> None:
        """Write events at once.

        Args:
            events: One frame, or several.

        Raises:
            OperationFailed: The clone did not take them.
            Closed: The feed was closed.
        """
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
        self._state.apply(wanted)  # before the write: what may have gone out has to be released
        self.clone.write(wanted)
        self.events += len(wanted)
        self.frames += sum(event == SYN_REPORT for event in wanted)

    def _takes(self, event: InputEvent) -> bool:
        if event.type == spec.EV_SYN:
            return event.code < spec.SYN_DROPPED
        # A device may claim to send its LEDs; the kernel would return them as if a program had set them.
        return event.type not in _BACK and self.description.can(event.type, event.code)

    def put_frame(self, frame: Frame, now: InputState) -> None:
        """Write a frame; if frames before it were dropped, bring the clone to the current state instead.

        Args:
            frame: The frame.
            now: The state of the device after the frame.

        Raises:
            OperationFailed: The clone did not take it.
            Closed: The feed was closed.
        """
        if frame.dropped:
            self.put([*self._state.towards(now), SYN_REPORT])
        else:
            self.put(frame)

    def close(self) -> None:
        """Release every key and contact, and destroy the clone; idempotent."""
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

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and os.getpid() == self._owner:  # else the keys are the parent's
            warn_unclosed(self, self.description.name, then=self.close)


class Bridge:
    """Forwards events from a driver to a feed, and LEDs and sounds back.

    Owns neither: close the feed, then the driver.
    """

    def __init__(self, driver: Input, feed: Feed) -> None:
        """Connect ``driver`` to ``feed``; nothing is forwarded yet."""
        self.driver = driver
        self.feed = feed
        self.brought_back = 0
        """Values for LEDs and sounds that programs wrote to the clone, and that were sent to the device."""

    def run(self, *, timeout: float | None = None) -> None:
        """Forward events until the time is up, the device is closed, or a signal arrives.

        What programs wrote to the clone before that is sent to the device, also when a signal ends it.

        Args:
            timeout: Seconds; None: no limit.

        Raises:
            OperationFailed: The clone failed.
            Closed: The feed was closed.
            DeviceGone, DeviceNeedsReset, RingCorruption: The device failed.
        """
        try:
            self._run(timeout)
        except BaseException:
            with suppress(UvirtioError):
                self._bring_back()
            raise

    def _run(self, timeout: float | None) -> None:
        device = self.driver.device
        clock = device.clock
        deadline = None if timeout is None else clock.monotonic() + device.seconds(timeout)
        watch = [self.feed.clone.fileno()]
        while True:
            left = None if deadline is None else max(0.0, deadline - clock.monotonic())
            some = device.wait(self.turn, timeout=left, what="events", owed=False, watch=watch)
            if left == 0 or not some:
                return

    def turn(self) -> bool:
        """Forward what is available in both directions, without waiting.

        Returns:
            Whether there was anything.

        Raises:
            OperationFailed: The clone failed.
            Closed: The feed was closed.
        """
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
    """Return the physical location (``phys``) for the clone of the device at ``address``.

    It has no dot and no second slash: libinput groups devices whose ``phys`` differs only behind the last dot or
    behind ``/input`` (udev/libinput-device-group.c), and two functions of a slot are two devices.
    """
    return f"uvirtio/{re.sub('[^0-9A-Za-z:_-]', '-', address)}"[:_PHYS_MAX]


def _as_the_kernel_takes_it(description: Description, node: str, roots: Roots) -> Description:
    """Open the node once, and drop codes that this kernel does not know: it would refuse the whole device.

    Opening it here also gives an errno, which python-evdev's own error does not have.
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
                f"there is no {node}" if missing else f"{node} has no driver: uinput is not loaded",
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
                expected="a file system on which device nodes work",
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
        return PermissionLack(f"{node} may not be used", seen=error.strerror, remedy=privilege.remedy())
    return OperationFailed(
        f"{node} does not create this device",
        seen=str(error),
        expected="a device like the virtio one",
        remedy="Input.describe(), or uvirtio input info DEV, shows what the device claims to be",
    )


def _name(name: str) -> str:
    """The name as uinput accepts it: not empty, at most 79 bytes, no character cut in two."""
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
    # Without capabilities, evdev.UInput announces every key.
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

"""Hot plug, removal, changes of drivers and of configuration of virtio devices, as they happen.

The last known state of each device is compared with each uevent, so that a change is reported once, however often
the kernel or udev repeats it. There are uevents for devices (PCI functions, virtio-mmio windows, vDPA), for
drivers on these buses and on the virtio bus, and for changes that a kernel driver announces: a disk's size. The
carrier of a network interface changes without a uevent; it and the MTU are polled in sysfs.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from uvirtio.binding import discover
from uvirtio.binding.discover import DiscoveredDevice
from uvirtio.errors import Closed, NotSupported, UsageError
from uvirtio.host import addresses, sysfs, uevents
from uvirtio.host.roots import Roots
from uvirtio.host.uevents import Uevent, Uevents
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import ids

SUBSYSTEMS = ("pci", "platform", "vdpa", "virtio", "block", "net")
"""The subsystems whose uevents concern virtio devices."""

POLL = 1.0
"""Interval in seconds at which attributes without uevents are read."""

_SECONDS_MAX = 1e6
"""Half of the longest timeout of poll(2), which counts milliseconds in 32 bits."""
_BATCH = 1000
"""The most uevents that are received before their events are returned."""
_CHILDREN = 16
"""The most disks or interfaces of one device that are read."""
_ATTRIBUTES = {"block": ("size", "ro"), "net": ("carrier", "mtu")}
_POLLED = ("net",)

Kind = Literal["added", "removed", "bound", "unbound", "changed", "lost"]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change of a virtio device."""

    sequence: int
    """Number of the event in this watcher: 1, 2, 3 ..."""
    time: float
    """CLOCK_MONOTONIC in seconds, when this process noticed it."""
    event: Kind
    """``lost``: uevents were dropped because they were not read in time; the events with ``by`` ``scan`` that
    follow are the differences from before, without devices that came and went meanwhile."""
    by: Literal["uevent", "scan", "poll"]
    """How it was noticed."""
    address: str | None = None
    type: str | None = None
    bus: str | None = None
    """The bus, or the subsystem, of what changed: ``virtio`` for a driver on that bus, ``block``, ``net``."""
    name: str | None = None
    """Its name there: ``0000:03:00.0``, ``virtio3``, ``vda``."""
    driver: str | None = None
    """The driver that was bound, or unbound."""
    seqnum: int | None = None
    """SEQNUM of the uevent."""
    changes: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Attributes of sysfs that changed: (before, now); None: it cannot be read."""

    def as_dict(self) -> dict[str, Any]:
        """The event as the JSON of ``watch`` has it."""
        return {
            "event": self.event,
            "sequence": self.sequence,
            "time": self.time,
            "by": self.by,
            "address": self.address,
            "type": self.type,
            "bus": self.bus,
            "name": self.name,
            "driver": self.driver,
            "seqnum": self.seqnum,
            "changes": {key: {"before": old, "now": new} for key, (old, new) in self.changes.items()},
        }


@dataclass
class _Known:
    """The last known state of a device."""

    devpath: str
    bus: str
    name: str
    address: str
    type: str
    pci_id: str | None = None
    driver: str | None = None
    virtio_name: str | None = None
    kernel_driver: str | None = None
    attributes: dict[tuple[str, str, str], str | None] = field(default_factory=dict)
    """(subsystem, child, attribute) -> its text."""


class Watcher:
    """Reports changes of the virtio devices of this machine, from construction on. A context manager.

    One thread owns a watcher; ``interrupt`` may be called from a signal handler.
    """

    def __init__(self, roots: Roots | None = None, *, poll: float = POLL, events: Uevents | None = None) -> None:
        """Listen, then scan, so that nothing is missed in between.

        Args:
            roots: Where sysfs is read; uevents are always this machine's.
            poll: Interval in seconds at which carrier and MTU of network interfaces are read; 0: never.
            events: The source of uevents; None: the best available one. The watcher closes it.

        Raises:
            UsageError: ``poll`` is out of range.
            NotSupported: ``roots`` are not this machine's own.
            OperationFailed: There is no source of uevents.
        """
        _check_seconds("poll", poll)
        self._roots = roots = Roots() if roots is None else roots
        self.note: str | None = None
        """Why a better source of uevents is not used; None: the best one is."""
        if events is None:
            if not roots.live:
                raise NotSupported(
                    f"the devices below {roots.sys} cannot be watched",
                    seen=str(roots.sys),
                    expected="/sys: uevents come from the running kernel alone",
                    remedy="leave --root out",
                )
            events, self.note = uevents.listen(SUBSYSTEMS, roots)
        self._events = events
        self._poll = poll
        self._wake = -1
        self._reason: BaseException | None = None
        self._sequence = 0
        self._overruns = events.overruns
        self._closed = False
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poller = select.poll()
            self._poller.register(self._wake, select.POLLIN)
            self._poller.register(events.fileno(), select.POLLIN)
            self._known, self._seen = self._scan()
        except BaseException:
            self.close()
            raise
        self.devices: tuple[str, ...] = tuple(known.address for known in self._known.values())
        """The addresses of the devices that were there when the watcher was made."""
        self._polled_at = time.monotonic()

    @property
    def source(self) -> str:
        """The source of uevents: ``udev``, ``kernel`` (by libudev) or ``uevent socket``."""
        return self._events.source

    def read(self, timeout: float | None = None) -> list[WatchEvent]:
        """Wait for something to happen.

        Args:
            timeout: Seconds; None: until something happens, or ``interrupt``.

        Returns:
            The events in order; empty after ``timeout``.

        Raises:
            UsageError: ``timeout`` is out of range.
            OperationFailed: The source of uevents failed.
            Closed: The watcher is closed.
        """
        if timeout is not None:
            _check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._closed:
                raise Closed("this watcher is closed")
            if self._reason is not None:
                raise self._reason
            if found := [*self._take(), *self._look()]:
                return found
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return []
            times = [deadline] if deadline is not None else []
            if self._has_polled():
                times.append(self._polled_at + self._poll)
            # Round up to a millisecond: poll(0) until the deadline would be a busy loop.
            self._poller.poll(max(0, int((min(times) - now) * 1000) + 1) if times else None)

    def __iter__(self) -> Iterator[WatchEvent]:
        """The events, without end."""
        while True:
            yield from self.read()

    def interrupt(self, reason: BaseException) -> None:
        """Make ``read`` raise ``reason`` before it waits again. For signal handlers: it only sets a flag."""
        self._reason = reason
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop listening; idempotent."""
        self._closed = True
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)
        self._events.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self.source, then=self.close)

    # --- what is there ------------------------------------------------------------------------------------

    def _scan(self) -> tuple[dict[str, _Known], int]:
        """All devices by path, and the SEQNUM up to which uevents are older than this scan."""
        seen = sysfs.uevent_seqnum(self._roots)
        known = (self._describe(found) for found in discover.scan(self._roots))
        return {one.devpath: one for one in known}, seen

    def _describe(self, found: DiscoveredDevice) -> _Known:
        known = _Known(
            sysfs.devpath(found.path, self._roots),
            found.bus,
            found.name,
            found.address,
            found.type,
            found.pci_id,
            found.driver,
            found.virtio_name,
            found.kernel_driver,
        )
        known.attributes = self._attributes(known)
        return known

    def _attributes(
        self, known: _Known, subsystems: tuple[str, ...] = tuple(_ATTRIBUTES)
    ) -> dict[tuple[str, str, str], str | None]:
        """The attributes of its disks and network interfaces in sysfs."""
        found: dict[tuple[str, str, str], str | None] = {}
        if known.virtio_name is None:
            return found
        directory = self._roots.sys / known.devpath[1:] / known.virtio_name
        for subsystem in subsystems:
            for child in sysfs.names(directory / subsystem)[:_CHILDREN]:
                for name in _ATTRIBUTES[subsystem]:
                    found[subsystem, child, name] = sysfs.read(directory / subsystem / child / name, 64)
        return found

    # --- events -------------------------------------------------------------------------------------------

    def _tell(self, kind: Kind, by: Literal["uevent", "scan", "poll"], **members: Any) -> WatchEvent:
        self._sequence += 1
        return WatchEvent(self._sequence, time.monotonic(), kind, by, **members)

    def _device(
        self,
        kind: Kind,
        known: _Known,
        by: Literal["uevent", "scan", "poll"],
        seqnum: int | None = None,
        *,
        bus: str | None = None,
        name: str | None = None,
        driver: str | None = None,
        changes: dict[str, tuple[str | None, str | None]] | None = None,
    ) -> WatchEvent:
        return self._tell(
            kind,
            by,
            address=known.address,
            type=known.type,
            bus=bus or known.bus,
            name=name or known.name,
            driver=driver,
            seqnum=seqnum,
            changes=changes or {},
        )

    def _take(self) -> list[WatchEvent]:
        """The events of the uevents received so far."""
        found: list[WatchEvent] = []
        for _ in range(_BATCH):
            event = self._events.receive()
            if self._events.overruns != self._overruns:
                self._overruns = self._events.overruns
                found.extend(self._rescan())
            if event is None:
                break
            if event.seqnum > self._seen:
                found.extend(self._uevent(event))
        return found

    def _uevent(self, event: Uevent) -> Iterator[WatchEvent]:
        known = self._known.get(event.devpath)
        if event.subsystem in ("pci", "platform", "vdpa"):
            yield from self._bus_device(event, known)
            return
        above = self._above(event.devpath)
        if above is None:
            return
        if event.subsystem == "virtio":
            yield from self._virtio_device(event, above)
        elif event.subsystem in _ATTRIBUTES:
            yield from self._child(event, above)

    def _above(self, devpath: str) -> _Known | None:
        """The nearest known device above a path."""
        while devpath:
            devpath = devpath.rpartition("/")[0]
            if devpath in self._known:
                return self._known[devpath]
        return None

    def _bus_device(self, event: Uevent, known: _Known | None) -> Iterator[WatchEvent]:
        if event.action == "remove":
            if known is not None:
                del self._known[event.devpath]
                yield self._device("removed", known, "uevent", event.seqnum)
            return
        if known is None:
            known = self._appeared(event)
            if known is None:
                return
            self._known[event.devpath] = known
            yield self._device("added", known, "uevent", event.seqnum)
        if event.action == "bind":
            driver = event.properties.get("DRIVER")
            if known.driver != driver:
                known.driver = driver
                self._refresh(known)
                yield self._device("bound", known, "uevent", event.seqnum, driver=driver)
        elif event.action == "unbind" and known.driver is not None:
            driver, known.driver, known.kernel_driver, known.virtio_name = known.driver, None, None, None
            known.attributes = {}
            yield self._device("unbound", known, "uevent", event.seqnum, driver=driver)
            self._refresh(known)

    def _appeared(self, event: Uevent) -> _Known | None:
        """A new device, if it is a virtio one. Its drivers' own uevents follow."""
        found = discover.on_bus(event.subsystem, event.name, self._roots)
        if found is not None:
            type_, pci_id = found.type, found.pci_id
            return _Known(event.devpath, found.bus, found.name, found.address, type_, pci_id)
        return _gone_again(event)

    def _refresh(self, known: _Known) -> None:
        """Read the address of a vDPA device again, which changes with its driver."""
        found = discover.on_bus(known.bus, known.name, self._roots) if known.bus == "vdpa" else None
        if found is not None:
            known.address, known.type = found.address, found.type if found.device_id is not None else known.type

    def _virtio_device(self, event: Uevent, known: _Known) -> Iterator[WatchEvent]:
        if event.action == "add":
            known.virtio_name = event.name
            known.type = _type_of_modalias(event.properties.get("MODALIAS", "")) or known.type
        elif event.action == "remove":
            known.virtio_name = None
            known.attributes = {}
        elif event.action == "bind":
            driver = event.properties.get("DRIVER")
            if driver != known.kernel_driver:
                known.virtio_name, known.kernel_driver = event.name, driver
                known.attributes = self._attributes(known)
                yield self._device(
                    "bound", known, "uevent", event.seqnum, bus="virtio", name=event.name, driver=driver
                )
        elif event.action == "unbind" and known.kernel_driver is not None:
            driver, known.kernel_driver = known.kernel_driver, None
            known.attributes = {}
            yield self._device(
                "unbound", known, "uevent", event.seqnum, bus="virtio", name=event.name, driver=driver
            )

    def _child(self, event: Uevent, known: _Known) -> Iterator[WatchEvent]:
        """Changes of a disk or a network interface of a device."""
        if event.action in ("add", "remove"):
            known.attributes = self._attributes(known)
        elif event.action == "change":
            yield from self._compared(known, (event.subsystem,), "uevent", event.seqnum)

    def _compared(
        self, known: _Known, subsystems: tuple[str, ...], by: Literal["uevent", "scan", "poll"], seqnum: int | None
    ) -> Iterator[WatchEvent]:
        """``changed`` for each child whose attributes differ from the last known ones."""
        now = self._attributes(known, subsystems)
        changes: dict[tuple[str, str], dict[str, tuple[str | None, str | None]]] = {}
        for key, text in now.items():
            if key in known.attributes and known.attributes[key] != text:
                changes.setdefault(key[:2], {})[key[2]] = (known.attributes[key], text)
        known.attributes = {
            **{key: text for key, text in known.attributes.items() if key[0] not in subsystems},
            **now,
        }
        for (subsystem, child), what in changes.items():
            yield self._device("changed", known, by, seqnum, bus=subsystem, name=child, changes=what)

    def _has_polled(self) -> bool:
        return self._poll > 0 and any(
            key[0] in _POLLED for known in self._known.values() for key in known.attributes
        )

    def _look(self) -> list[WatchEvent]:
        """Changes without a uevent, if the interval is over."""
        if not self._has_polled() or time.monotonic() < self._polled_at + self._poll:
            return []
        self._polled_at = time.monotonic()
        return [
            event
            for known in self._known.values()
            if any(key[0] in _POLLED for key in known.attributes)
            for event in self._compared(known, _POLLED, "poll", None)
        ]

    # --- after a loss -------------------------------------------------------------------------------------

    def _rescan(self) -> Iterator[WatchEvent]:
        """``lost``, then the differences between the devices now and those known."""
        yield self._tell("lost", "uevent")
        before = self._known
        self._known, self._seen = self._scan()
        for path, old in before.items():
            new = self._known.get(path)
            if new is None or (new.type, new.pci_id) != (old.type, old.pci_id):
                yield self._device("removed", old, "scan")
        for path, new in self._known.items():
            then = before.get(path)
            if then is None or (new.type, new.pci_id) != (then.type, then.pci_id):
                yield self._device("added", new, "scan")
                then = _Known(new.devpath, new.bus, new.name, new.address, new.type)
            yield from self._difference(then, new)

    def _difference(self, old: _Known, new: _Known) -> Iterator[WatchEvent]:
        """Changes of drivers, and of attributes where it is the same device."""
        moved = (old.kernel_driver, old.virtio_name) != (new.kernel_driver, new.virtio_name)
        if moved and old.kernel_driver:
            yield self._device(
                "unbound", new, "scan", bus="virtio", name=old.virtio_name, driver=old.kernel_driver
            )
        if old.driver != new.driver:
            if old.driver is not None:
                yield self._device("unbound", new, "scan", driver=old.driver)
            if new.driver is not None:
                yield self._device("bound", new, "scan", driver=new.driver)
        if moved and new.kernel_driver:
            yield self._device("bound", new, "scan", bus="virtio", name=new.virtio_name, driver=new.kernel_driver)
        if old.virtio_name == new.virtio_name:
            new.attributes = old.attributes
            yield from self._compared(new, tuple(_ATTRIBUTES), "scan", None)


def _check_seconds(name: str, value: float) -> None:
    if not 0 <= value <= _SECONDS_MAX:
        raise UsageError(f"{name} cannot be {value!r}", seen=value, expected=f"seconds, 0 to {_SECONDS_MAX:g}")


def _type_of_modalias(modalias: str) -> str | None:
    """The type in ``virtio:d00000004v00001AF4``; None in other texts."""
    digits = modalias.removeprefix("virtio:d")[:8]
    try:
        return ids.type_name(int(digits, 16)) if modalias.startswith("virtio:d") else None
    except ValueError:
        return None


def _gone_again(event: Uevent) -> _Known | None:
    """A virtio device that is in sysfs no longer, from its uevent alone."""
    name = event.name
    if event.subsystem == "pci" and addresses.is_pci(name):
        vendor, _, device = event.properties.get("PCI_ID", "").partition(":")
        try:
            numbers = int(vendor, 16), int(device, 16)
        except ValueError:
            return None
        if not ids.is_virtio_pci(*numbers):
            return None
        device_id = ids.device_id_of_pci(*numbers)
        kind = "unknown" if device_id is None else ids.type_name(device_id)
        return _Known(event.devpath, "pci", name, addresses.canonical(name), kind, discover.id_pair(*numbers))
    if event.subsystem == "platform" and addresses.is_mmio_platform_name(name):
        return _Known(event.devpath, "platform", name, name, "unknown")
    if event.subsystem == "vdpa":
        return _Known(event.devpath, "vdpa", name, f"vdpa:{name}", "unknown")
    return None

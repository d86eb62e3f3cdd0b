"""Waiting for udev after a device has changed drivers.

The kernel makes a node when a driver binds; udev's rules then give it an owner, a mode and links, a moment later.
udevd broadcasts an event again once it has applied its rules to it. So this waits for the device's own event
(udevd has then received all earlier uevents, those of the nodes among them), and after that for udevd's queue to
be empty.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable
from pathlib import Path

from uvirtio.errors import OperationFailed
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots
from uvirtio.host.uevents import UdevEvents, Uevents, udev_runs, udev_works

_INTERVAL = 0.02
"""Seconds between two checks of whether udevd has events left: no descriptor signals that."""


class Settling:
    """Listens to udev from before devices change drivers until udev has processed that. A context manager."""

    def __init__(self, devices: Iterable[Path], roots: Roots, *, events: Uevents | None = None) -> None:
        """Listen from now on; do nothing where no udevd runs or libudev is missing.

        Args:
            devices: The sysfs directories of the devices that will change drivers.
            roots: Where udevd's files are looked for; libudev itself listens on this machine.
            events: udev's group of uevents; None: by libudev. ``close`` closes it.
        """
        self._roots = roots
        self._events = events
        self._heard: set[tuple[str, str]] = set()
        """(path, action) of the events received from udev so far."""
        self._before = sysfs.uevent_seqnum(roots)
        self._drivers = {path: (sysfs.devpath(path, roots), sysfs.driver_of(path)) for path in devices}
        self.why: str | None = None
        """Why there is nothing to wait for; None where there is something."""
        if events is not None:
            return
        if not roots.live or not udev_runs(roots):
            self.why = "no udevd runs here"
            return
        try:
            self._events = UdevEvents("udev")
        except (ImportError, OSError) as error:
            self.why = f"libudev cannot be used: {error}"

    def _expected(self) -> set[tuple[str, str]]:
        """(path, action) of the last uevent of each device that has another driver now."""
        return {
            (devpath, "unbind" if now is None else "bind")
            for path, (devpath, before) in self._drivers.items()
            if (now := sysfs.driver_of(path)) != before and not sysfs.gone(path)
        }

    def wait(self, timeout: float) -> bool:
        """Wait until udev has processed all changes of drivers since ``__init__`` and its queue is empty.

        Args:
            timeout: Seconds.

        Returns:
            Whether there was a udev to wait for; if not, ``why`` is the reason.

        Raises:
            OperationFailed: udev did not finish within ``timeout``.
        """
        if self._events is None:
            return False
        expected = self._expected()
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._events.fileno(), select.POLLIN)
        while True:
            while (event := self._events.receive()) is not None:
                if event.seqnum > self._before:
                    self._heard.add((event.devpath, event.action))
            # Dropped events are not sent again: then only the queue can be checked.
            missing = set() if self._events.overruns else expected - self._heard
            if not missing and not udev_works(self._roots):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                raise OperationFailed(
                    f"udev is not done after {timeout:g} s",
                    seen=f"no {next(iter(missing))[1]} of {next(iter(missing))[0]}"
                    if missing
                    else "it has events left",
                    expected="all rules applied; the devices have changed hands",
                    remedy="wait longer, or look at what it does: udevadm monitor, journalctl -u systemd-udevd",
                )
            poller.poll(1000 * (left if missing else min(left, _INTERVAL)) + 1)

    def close(self) -> None:
        """Stop listening; idempotent."""
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Settling:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

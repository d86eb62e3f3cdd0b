"""A witness outside the VM: QMP, over the guest's second serial port, which the lab wires to its QEMU.

    with Witness() as qemu:
        assert qemu.execute("query-balloon") == {"actual": 1 << 30}

Only the standard library is used, and nothing of the package that it bears witness about.
"""

from __future__ import annotations

import json
import os
import termios
import time
import tty
from types import TracebackType
from typing import Any

from tests.support.polling import readable, writable


class QmpError(Exception):
    """QEMU answered a command with an error; ``desc`` is its text."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        super().__init__(f"{command}: {error.get('class')}: {error.get('desc')}")
        self.desc = str(error.get("desc"))


class Witness:
    """A QMP session over a serial line. One at a time; a context manager.

    ``timeout`` is the deadline of each answer, in seconds.
    """

    def __init__(self, path: str | None = None, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._events: list[dict[str, Any]] = []
        self._pending = b""
        self._count = 0
        self._fd = os.open(path or os.environ["UVIRTIO_QMP_TTY"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(self._fd, termios.TCSANOW)
            # 0xff ends whatever an earlier user of the line left half said; QEMU complains of it, and the
            # complaint carries no id of ours.
            self._send(b"\xff")
            self._negotiate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Witness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the line; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns for ``command``; QmpError if it refuses, TimeoutError if it is silent.

        A ``_`` at the end of an argument's name is dropped, and the others become ``-`` as QMP writes them.
        """
        self._count += 1
        tag = f"{os.getpid()}-{time.monotonic_ns()}-{self._count}"
        message: dict[str, Any] = {"execute": command, "id": tag}
        if arguments:
            message["arguments"] = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
        self._send(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + self._timeout
        while True:
            reply = self._message(deadline)
            if reply is None:
                raise TimeoutError(f"QEMU did not answer {command} within {self._timeout} s")
            if "event" in reply:
                self._events.append(reply)
            elif reply.get("id") == tag:
                if "error" in reply:
                    raise QmpError(command, reply["error"])
                return reply["return"]

    def pci_addresses(self) -> dict[str, str]:
        """The address (``0000:03:00.0``) of every PCI function that has an id on QEMU's command line."""
        found: dict[str, str] = {}

        def walk(devices: list[dict[str, Any]]) -> None:
            for device in devices:
                if device["qdev_id"]:
                    address = f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"
                    found[device["qdev_id"]] = address
                walk(device.get("pci_bridge", {}).get("devices", []))

        for bus in self.execute("query-pci"):
            walk(bus["devices"])
        return found

    def events(self, timeout: float = 0.0) -> list[dict[str, Any]]:
        """The events that arrived since the last call; waits up to ``timeout`` seconds for the first."""
        deadline = time.monotonic() + timeout
        while (message := self._message(time.monotonic() if self._events else deadline)) is not None:
            if "event" in message:
                self._events.append(message)
        events, self._events = self._events, []
        return events

    def wait_event(self, name: str, timeout: float = 60.0) -> dict[str, Any]:
        """The next event ``name`` (those before it are dropped); TimeoutError if it does not come."""
        deadline = time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.pop(0)
                if event["event"] == name:
                    return event
            message = self._message(deadline)
            if message is None:
                raise TimeoutError(f"no event {name} within {timeout} s")
            if "event" in message:
                self._events.append(message)

    def _negotiate(self) -> None:
        try:
            self.execute("qmp_capabilities")
        except QmpError as error:
            if "complete" not in error.desc:  # an earlier user of the line has done it already
                raise

    def _send(self, data: bytes) -> None:
        deadline = time.monotonic() + self._timeout
        while data:
            wait = deadline - time.monotonic()
            if wait <= 0 or not writable(self._fd, wait):
                raise TimeoutError("the line to QEMU takes no more")
            data = data[os.write(self._fd, data) :]

    def _message(self, deadline: float) -> dict[str, Any] | None:
        """The next JSON object on the line, or None at the deadline. What is no whole object is skipped."""
        while True:
            line, found, rest = self._pending.partition(b"\n")
            if found:
                self._pending = rest
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict):
                    return message
                continue
            wait = max(0.0, deadline - time.monotonic())
            if not readable(self._fd, wait):
                return None
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                continue
            if not data:
                raise ConnectionError("the line to QEMU is closed")
            self._pending += data

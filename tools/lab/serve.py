"""``tools/vm serve``: a lab VM that stays up and runs one command after another, for programs.

Both sides write lines of JSON. The first that this side writes is ``{"ready": {...}}``, with the kernel's version,
the PCI addresses of the devices by their ids, and the paths of $UVIRTIO_LAB_OUT and of the console on this
machine; or ``{"missing": TEXT, "remedy": TEXT}``. Nothing is installed or fetched for it: a test is no place for
that.

``{"run": [WORD, ...], "timeout": SECONDS}`` is answered with ``{"code": N, "stdout": TEXT, "stderr": TEXT}``. A
command that does not end in time takes the VM with it, whose kernel may be what hangs: the code is null then. When
the other side closes its end, in whatever way, the VM ends.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from lab import LabError
from lab.demo_host import Host
from lab.vm import HERE, POLL_SECONDS, Vm

COMMAND = ["/bin/sh", str(HERE / "serve.sh")]
"""What a VM has to run for this: the checkout is there."""


class Line:
    """The two streams to the other side.

    What else is printed on standard output goes to standard error from here on.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._in = 0
        self._read = b""
        self._poller = select.poll()
        self._poller.register(self._in, select.POLLIN)

    def tell(self, message: dict[str, Any]) -> None:
        """Write a message; where there is no one to read it, the next ``ask`` says so."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError:
            pass

    def ask(self) -> dict[str, Any] | None:
        """The next message, after any time; None when the other side has gone. LabError if it is no message."""
        while b"\n" not in self._read:
            if self.gone(None):
                return None
        line, _, self._read = self._read.partition(b"\n")
        try:
            message = json.loads(line)
            words, seconds = message["run"], float(message["timeout"])
            if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
                raise ValueError("run is not a list of words")
        except (ValueError, TypeError, KeyError) as error:
            raise LabError(f"{line!r} asks for nothing: {error}", 2) from None
        return {"run": words, "timeout": seconds}

    def gone(self, seconds: float | None) -> bool:
        """Whether the other side has closed its end, after waiting ``seconds`` for it to say anything."""
        if not self._poller.poll(None if seconds is None else seconds * 1000):
            return False
        data = os.read(self._in, 1 << 16)
        self._read += data
        return not data


def serve(vm: Vm, line: Line, boot_seconds: float) -> None:
    """Answer the other side until it goes. LabError if the VM ends, or does not start in time."""
    deadline = time.monotonic() + boot_seconds
    while not (vm.share / "serving").exists():
        vm.check()
        if time.monotonic() > deadline:
            raise LabError(f"the VM did not boot within {boot_seconds:g} s\n{vm.said()}", 1)
        if line.gone(POLL_SECONDS):
            return
    with vm.monitor() as qemu:
        addresses = Host.do_addresses(qemu)
    ready = {
        "kernel": vm.config.kernel.version,
        "addresses": addresses,
        "out": str(vm.out),
        "console": str(vm.console),
    }
    line.tell({"ready": ready})
    number = 0
    while (asked := line.ask()) is not None:
        answer = _run(vm, line, number, asked["run"], asked["timeout"])
        if answer is None:
            return
        line.tell(answer)
        if answer["code"] is None:
            return
        number += 1


def _run(vm: Vm, line: Line, number: int, words: list[str], seconds: float) -> dict[str, Any] | None:
    """Run one command; None when the other side has gone meanwhile."""
    new = vm.share / "call.new"
    new.write_text(f"exec {shlex.join(words)}\n", errors="surrogateescape")
    new.rename(vm.share / f"call-{number}")
    status = vm.share / f"status-{number}"
    deadline = time.monotonic() + seconds
    while not (ended := status.exists()) and time.monotonic() < deadline:
        vm.check()
        if line.gone(POLL_SECONDS):
            return None
    return {
        "code": int(status.read_text()) if ended else None,
        "stdout": _text(vm.share / f"stdout-{number}"),
        "stderr": _text(vm.share / f"stderr-{number}"),
    }


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""

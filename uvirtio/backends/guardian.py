"""A guardian for devices that nothing stops when their driver is killed.

With an IOMMU the kernel undoes everything in the right order. Without one, a process that is killed loses its
memory first and the device afterwards, if at all: in between the device writes into pages that belong to
somebody else. So a second process holds the memory too, waits for the end of the first, and quiets the device
before it lets go (``guardian_process``).
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uvirtio.errors import GuardianLost, OperationFailed

WARNING = (
    "no IOMMU holds this device: it can read and write all memory of this machine, and so can a mistake of its "
    "driver"
)
"""What has to be said, and consented to, of every device that needs a guardian."""

START = 20.0
"""Seconds that the process may take to be there. It takes 0.03; an emulated CPU takes a second."""

_END = 5.0
_LOOK = 0.1

QUIET = 1.0
"""Seconds that it gives the device for its reset."""


@dataclass(frozen=True, slots=True)
class Register:
    """A register of the device: in bytes, at an offset of an open file, reached by pread and pwrite or mapped."""

    fd: int
    offset: int
    width: int
    mapped: bool = False

    def words(self) -> str:
        return f"{self.fd} {self.offset} {self.width} {int(self.mapped)}"


@dataclass(frozen=True, slots=True)
class Store:
    """Write ``value``."""

    register: Register
    value: int

    def line(self) -> str:
        return f"store {self.register.words()} {self.value}"


@dataclass(frozen=True, slots=True)
class Await:
    """Read until it is ``value``, for ``seconds`` at most. If it becomes that, the device is quiet."""

    register: Register
    value: int
    seconds: float

    def line(self) -> str:
        return f"await {self.register.words()} {self.value} {round(self.seconds * 1000)}"


@dataclass(frozen=True, slots=True)
class Clear:
    """Read, write back without ``bits``, read again. If they are gone, the device is quiet."""

    register: Register
    bits: int

    def line(self) -> str:
        return f"clear {self.register.words()} {self.bits}"


Step = Store | Await | Clear


def quieting(status: Register | None, command: Register, master: int) -> list[Step]:
    """The steps for a PCI function: reset by the device status, where that is known, then bus mastering off."""
    reset: list[Step] = [] if status is None else [Store(status, 0), Await(status, 0, QUIET)]
    return [*reset, Clear(command, master)]


class Guardian:
    """The guardian of one device, for one driver. ``holds`` are descriptors that it keeps open with us.

    It starts at once, unarmed. After :meth:`arm` it acts when this process dies, however; after
    :meth:`disarm` it has ended without doing anything. ``close()`` without ``disarm`` lets it act.
    """

    def __init__(self, name: str, holds: Sequence[int]) -> None:
        """``name`` is for the kernel's log. Raises OperationFailed where no process can be made."""
        self.name = name
        program = Path(__file__).with_name("guardian_process.py")
        us = os.pidfd_open(os.getpid())
        try:
            # Neither its command line nor its interpreter's says "uvirtio": who kills the driver by such a
            # pattern shall not take the guardian too.
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", program.name, name, str(us)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(*holds, us),
                start_new_session=True,
                cwd=program.parent,
                env={"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"},
                bufsize=0,
            )
        except OSError as error:
            raise OperationFailed(
                f"no guardian can be started for {name}",
                seen=os.strerror(error.errno or 0),
                expected="one more process",
                remedy="raise the limit on processes; without a guardian the device is not driven",
            ) from error
        finally:
            os.close(us)
        self._armed = False
        self._ended = False
        self._looked = 0.0
        self.needed = False
        """The device may do DMA now, so that ``check`` has something to check."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def arm(self, steps: Sequence[Step], *, timeout: float = START) -> None:
        """Tell it how to quiet the device, and wait until it is ready to. Raises OperationFailed."""
        self._say("".join(f"{step.line()}\n" for step in steps) + "armed\n")
        deadline = time.monotonic() + timeout
        assert self._process.stdout is not None
        answer = self._process.stdout.fileno()
        said = b""
        while not said.endswith(b"\n"):
            poller = select.poll()
            poller.register(answer, select.POLLIN)
            left = deadline - time.monotonic()
            data = os.read(answer, 64) if left > 0 and poller.poll(left * 1000) else None
            if not data:
                raise OperationFailed(
                    f"the guardian of {self.name} does not get ready",
                    seen=f"no answer in {timeout:g} s" if data is None else "it ended",
                    expected="a process that can reach the device's registers",
                    remedy="without a guardian the device is not driven; look at the kernel's log (dmesg)",
                )
            said += data
        self._armed = True

    def stand_ready(self, steps: Sequence[Step]) -> None:
        """Arm it, once, before the device may do DMA. Raises OperationFailed, GuardianLost."""
        if not self._armed:
            self.arm(steps)
        if not self.alive:
            raise self._lost()

    @property
    def alive(self) -> bool:
        """Whether it is there to act."""
        return not self._ended and self._process.poll() is None

    def check(self) -> None:
        """Look whether it stands while it is needed, at most ten times a second.

        Raises GuardianLost, once: the way out must not stumble over it.
        """
        now = time.monotonic()
        if self.needed and now >= self._looked + _LOOK:
            self._looked = now
            if not self.alive:
                self.needed = False
                raise self._lost()

    def _lost(self) -> GuardianLost:
        return GuardianLost(
            f"the guardian of {self.name} is gone",
            seen=f"process {self.pid} ended",
            expected="a process that quiets the device if this one is killed",
            remedy="find out who ended it; then open the device again",
        )

    def disarm(self) -> None:
        """The device is quiet: have it end, and wait for that; idempotent."""
        self._say("disarm\n")
        self.close()

    def _say(self, text: str) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode("ascii"))
        except (BrokenPipeError, ValueError):
            pass  # it has ended: arm and alive tell

    def close(self) -> None:
        """Let go of it, and wait a while for its end: it acts now if it was not disarmed; idempotent."""
        if self._ended:
            return
        self._ended = True
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # it holds on to the memory of a device that does not stop; let it

"""A guardian process for devices that nothing stops when their driver is killed.

With an IOMMU the kernel undoes everything in the right order. Without one, a process that is killed loses its
memory first and the device afterwards, if at all: in between the device writes into pages that have another
owner. So a second process holds the memory too, waits for the end of the first, and quiets the device
before it releases the memory (``guardian_process``).
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
    "no IOMMU holds this device: it can read and write all memory of this machine, and so can a fault in its "
    "driver"
)
"""The warning for every device that needs a guardian; such a device is opened with explicit consent only."""

START = 20.0
"""Seconds that the process may take to start. It takes 0.03; on an emulated CPU a second."""

_END = 5.0
_LOOK = 0.1

QUIET = 1.0
"""Seconds that the guardian waits for the device's reset."""


@dataclass(frozen=True, slots=True)
class Register:
    """A register of the device, as the guardian reaches it."""

    fd: int
    """An open file: configuration space, a BAR, /dev/mem."""

    offset: int
    """Place of the register in the file, in bytes."""

    width: int
    """Width of the register, in bytes."""

    mapped: bool = False
    """Accessed through a mapping instead of pread and pwrite."""

    def words(self) -> str:
        """Return the register in the guardian's protocol."""
        return f"{self.fd} {self.offset} {self.width} {int(self.mapped)}"


@dataclass(frozen=True, slots=True)
class Store:
    """Step of a guardian: write ``value``."""

    register: Register
    value: int

    def line(self) -> str:
        """Return the step in the guardian's protocol."""
        return f"store {self.register.words()} {self.value}"


@dataclass(frozen=True, slots=True)
class Await:
    """Step of a guardian: read until the register is ``value``, up to ``seconds``. Then the device is quiet."""

    register: Register
    value: int
    seconds: float

    def line(self) -> str:
        """Return the step in the guardian's protocol."""
        return f"await {self.register.words()} {self.value} {round(self.seconds * 1000)}"


@dataclass(frozen=True, slots=True)
class Clear:
    """Step of a guardian: clear ``bits`` and read the register again. If they are clear, the device is quiet."""

    register: Register
    bits: int

    def line(self) -> str:
        """Return the step in the guardian's protocol."""
        return f"clear {self.register.words()} {self.bits}"


QuietStep = Store | Await | Clear


def quieting(status: Register | None, command: Register, master: int) -> list[QuietStep]:
    """Return the steps for a PCI function: reset by the device status, if that is known, then bus mastering off.

    Args:
        status: The device status; None where it is not known.
        command: The command register of configuration space.
        master: Its Bus Master Enable bit.
    """
    reset: list[QuietStep] = [] if status is None else [Store(status, 0), Await(status, 0, QUIET)]
    return [*reset, Clear(command, master)]


class Guardian:
    """The guardian of one device, for one driver.

    It starts at once, unarmed. After ``arm`` it acts when this process dies for any reason; after ``disarm`` it
    has ended without doing anything. ``close()`` without ``disarm`` lets it act.
    """

    def __init__(self, name: str, holds: Sequence[int]) -> None:
        """Start the process.

        Args:
            name: The device's name, for the kernel's log.
            holds: Descriptors that it keeps open as well, that of the DMA memory among them.

        Raises:
            OperationFailed: The process cannot be started.
        """
        self.name = name
        program = Path(__file__).with_name("guardian_process.py")
        driver = os.pidfd_open(os.getpid())
        try:
            # Neither its command line nor its interpreter's contains "uvirtio": pkill with such a pattern must
            # not end the guardian together with the driver.
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", program.name, name, str(driver)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(*holds, driver),
                start_new_session=True,
                cwd=program.parent,
                env={"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"},
                bufsize=0,
            )
        except OSError as error:
            raise OperationFailed(
                f"cannot start a guardian process for {name}",
                seen=os.strerror(error.errno or 0),
                expected="a new process",
                remedy="raise the limit on processes; without a guardian the device is not driven",
            ) from error
        finally:
            os.close(driver)
        self._armed = False
        self._ended = False
        self._looked = 0.0
        self.needed = False
        """The device may do DMA now, so that ``check`` has something to check."""

    @property
    def pid(self) -> int:
        """The process ID of the guardian."""
        return self._process.pid

    def arm(self, steps: Sequence[QuietStep], *, timeout: float = START) -> None:
        """Send the steps that quiet the device, and wait until the guardian is ready to do them.

        Args:
            steps: What to do, in this order.
            timeout: Seconds to wait.

        Raises:
            OperationFailed: It ended, or was not ready in time.
        """
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
                    f"the guardian of {self.name} did not become ready",
                    seen=f"no answer in {timeout:g} s" if data is None else "it ended",
                    expected="a process that can reach the device's registers",
                    remedy="without a guardian the device is not driven; look at the kernel's log (dmesg)",
                )
            said += data
        self._armed = True

    def stand_ready(self, steps: Sequence[QuietStep]) -> None:
        """Arm the guardian, once, before the device may do DMA.

        Raises:
            OperationFailed: It ended, or was not ready in time.
            GuardianLost: It was armed before, and has ended.
        """
        if not self._armed:
            self.arm(steps)
        if not self.alive:
            raise self._lost()

    @property
    def alive(self) -> bool:
        """Whether the process exists and can act."""
        return not self._ended and self._process.poll() is None

    def check(self) -> None:
        """Check that the guardian is alive while it is needed, at most ten times a second.

        Raises:
            GuardianLost: It has ended. Raised once, so that closing the device does not fail because of it.
        """
        now = time.monotonic()
        if self.needed and now >= self._looked + _LOOK:
            self._looked = now
            if not self.alive:
                self.needed = False
                raise self._lost()

    def _lost(self) -> GuardianLost:
        return GuardianLost(
            f"the guardian of {self.name} has ended",
            seen=f"process {self.pid} ended",
            expected="a process that quiets the device if this one is killed",
            remedy="find out what ended it; then open the device again",
        )

    def disarm(self) -> None:
        """End the guardian, because the device is quiet, and wait for its end; idempotent."""
        self._say("disarm\n")
        self.close()

    def _say(self, text: str) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(text.encode("ascii"))
        except (BrokenPipeError, ValueError):
            pass  # it has ended: arm and alive report that

    def close(self) -> None:
        """Close the pipes and wait up to 5 s for the guardian's end; idempotent. If not disarmed, it acts now."""
        if self._ended:
            return
        self._ended = True
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # it keeps the memory of a device that does not stop: leave it

"""The guardian itself: a program of its own, which outlives the driver and quiets its device.

Started by ``guardian.Guardian``, which sends commands to its standard input, in lines of words and numbers::

    store FD OFFSET WIDTH MAPPED VALUE
    await FD OFFSET WIDTH MAPPED VALUE MILLISECONDS
    clear FD OFFSET WIDTH MAPPED BITS
    armed                                   that was all; answered by the same word
    disarm                                  the device is quiet: end, and touch nothing

When the driver's process ends, or its end of the pipe, before it sent ``disarm``, the steps are done in their
order. Meanwhile this process keeps the descriptors that it was given, the DMA memory's among them: the kernel
does not reuse those pages before it ends. It has no threads, and ignores the signals that a terminal sends.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":  # started by its path, with nothing but the standard library in sight
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from uvirtio.errors import UvirtioError
from uvirtio.host import capabilities
from uvirtio.memory.access import FdRegisters, MappedRegisters

_READ = {1: "read8", 2: "read16", 4: "read32"}
_WRITE = {1: "write8", 2: "write16", 4: "write32"}


class QuietStep:
    """One step of the plan. Its register is made accessible when the step arrives."""

    def __init__(
        self, verb: str, fd: int, offset: int, width: int, mapped: int, value: int, wait: int = 0
    ) -> None:
        """Open the register.

        Args:
            verb: ``store``, ``await`` or ``clear``.
            fd: An open file.
            offset: Place of the register in it, in bytes.
            width: Width of the register, in bytes.
            mapped: 1: map the file; 0: pread and pwrite.
            value: The value to write or wait for, or the bits to clear.
            wait: Milliseconds to wait, for ``await``.

        Raises:
            ValueError: There is no such verb.
        """
        if verb not in ("store", "await", "clear"):
            raise ValueError(verb)
        self._verb, self._value, self._wait = verb, value, wait / 1000
        registers: MappedRegisters | FdRegisters
        if mapped:
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            left = os.fstat(fd).st_size - start  # a BAR may be shorter than a page; a device file has no size
            length = left if 0 < left < mmap.PAGESIZE else mmap.PAGESIZE
            registers = MappedRegisters(mmap.mmap(fd, length, offset=start), offset - start, width)
        else:
            registers = FdRegisters(fd, offset, width)
        self._read: Callable[[int], int] = getattr(registers, _READ[width])
        self._write: Callable[[int, int], None] = getattr(registers, _WRITE[width])

    def do(self) -> bool:
        """Do the step; returns whether the device is known to be quiet after it. No error leaves it."""
        try:
            if self._verb == "store":
                self._write(0, self._value)
                return False
            if self._verb == "clear":
                self._write(0, self._read(0) & ~self._value)
                # The answer pushes what the device has still under way to memory before it (PCIe 2.4).
                return self._read(0) & self._value == 0
            deadline = time.monotonic() + self._wait
            while self._read(0) != self._value:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.001)
            return True
        except (UvirtioError, OSError, ValueError):
            return False


def quiet(steps: list[QuietStep]) -> bool:
    """Do all steps; returns whether one of them made sure that the device does not write any more."""
    done = [step.do() for step in steps]
    return any(done)


def tell_kernel_log(text: str) -> None:
    """Write a line to the kernel's log: the driver's terminal may be closed."""
    with suppress(OSError), Path("/dev/kmsg").open("w", encoding="ascii") as log:
        log.write(f"uvirtio: {text}\n")


def watch(lines: int, driver: int) -> list[QuietStep] | None:
    """Read the plan, then wait for the end of the driver.

    Args:
        lines: Descriptor of the pipe from the driver.
        driver: The driver's pidfd.

    Returns:
        The steps to do; None where the driver sent ``disarm``.
    """
    steps: list[QuietStep] = []
    poller = select.poll()
    poller.register(lines, select.POLLIN)
    poller.register(driver, select.POLLIN)
    begun = b""
    while True:
        events = dict(poller.poll())
        if lines in events:  # first: a last command may be waiting there
            data = os.read(lines, 4096)
            if not data:
                return steps
            *whole, begun = (begun + data).split(b"\n")
            for line in whole:
                verb, *numbers = line.decode("ascii").split()
                if verb == "disarm":
                    return None
                if verb == "armed":
                    os.write(1, b"armed\n")
                else:
                    steps.append(QuietStep(verb, *map(int, numbers)))
        elif driver in events:
            return steps


def main(name: str, driver: int) -> int:
    """Run the guardian of the device ``name``; ``driver`` is the driver's pidfd. Returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # out of memory, the kernel may end the driver, but not this
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    with suppress(UvirtioError):  # all that it acts on is open by now
        capabilities.limit_to(())
    os.chdir("/")
    steps = watch(0, driver)
    if steps is None:
        return 0
    if steps and not quiet(steps):
        tell_kernel_log(f"the driver of {name} died, and the device does not stop: its memory is kept")
        while True:
            signal.pause()  # the lesser evil
    tell_kernel_log(f"the driver of {name} died; the device was quieted, then its memory was freed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

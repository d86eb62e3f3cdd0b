"""What a finding is, how it is told from others, and made small."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvirtio
from fuzzers.target import Target
from uvirtio.errors import UvirtioError

HANG = 5.0
"""Seconds of CPU time after which one execution counts as hanging."""
_ASLEEP = 60.0
"""Seconds after which one that uses no CPU time does."""
_ROUNDS = 3000
"""Executions that making a finding small may take."""


class Hung(BaseException):
    """An execution went on beyond its deadline; raised into it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that a target may not end with as it did."""

    target: str
    key: str
    """The kind of error and where it was raised: two findings with the same are one."""
    data: bytes
    was: int
    """Bytes of the input before it was made small."""
    execution: int
    text: str
    """The traceback."""

    @property
    def file(self) -> str:
        """A name for the file of the input."""
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}"

    def report(self, path: Path, seed: str = "") -> str:
        """What is printed of it.

        Args:
            path: The file that its input is in.
            seed: What is said of the seed, before the execution.
        """
        return (
            f"\nFOUND in {self.target}: {self.key}\n{self.text}"
            f"{seed}execution {self.execution:,}; {self.was} bytes, made {len(self.data)}\n"
            f"replay: tools/fuzz {self.target} --replay {path}\n"
            f"corpus: {self.data.hex()[:400]}\n"
        )


_PACKAGE = f"{Path(uvirtio.__file__).parent}/"


def place(error: BaseException) -> tuple[str, str, int]:
    """Where an error was raised: file, function and line of its innermost frame in the package, or of its last."""
    link, last, inner = error.__traceback__, None, None
    while link is not None:
        last = link
        if link.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            inner = link
        link = link.tb_next
    found = inner or last
    if found is None:
        return "", "", 0
    code = found.tb_frame.f_code
    return code.co_filename, code.co_name, found.tb_lineno


def fault(target: Target, data: bytes) -> BaseException | None:
    """Run one input; the error that it may not end with, or None."""
    try:
        target.run(data)
    except UvirtioError as error:
        return None if error.code != UvirtioError.code else error
    except (Exception, Hung) as error:  # noqa: BLE001 - that is what is looked for
        return error
    return None


def key(error: BaseException) -> str:
    """What a finding is told from others by."""
    if isinstance(error, RecursionError):
        return "RecursionError"  # where the stack ends says nothing
    file, function, _ = place(error)
    return f"{type(error).__name__} {Path(file).name}:{function}"


def smaller(target: Target, data: bytes, wanted: str, run: Callable[[bytes], BaseException | None]) -> bytes:
    """The smallest input found that ends in the same way: pieces left out, then bytes made 0."""
    left = _ROUNDS

    def same(candidate: bytes) -> bool:
        nonlocal left
        left -= 1
        found = run(candidate)
        return found is not None and key(found) == wanted

    size = max(1, len(data) // 2)
    while size and left > 0:
        at, better = 0, False
        while at < len(data) and left > 0:
            candidate = data[:at] + data[at + size :]
            if same(candidate):
                data, better = candidate, True
            else:
                at += size
        if not better or size > len(data):
            size //= 2
    for at in range(len(data)):
        if left <= 0:
            break
        if data[at] and same(data[:at] + b"\0" + data[at + 1 :]):
            data = data[:at] + b"\0" + data[at + 1 :]
    return data


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Watch:
    """Raises ``Hung`` into an execution that goes on for too long. By CPU time: a busy machine is no hang."""

    def __init__(self) -> None:
        self.executions = 0
        """Counted by who executes."""
        self._seen = (-1, 0.0, 0.0)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch, in the main thread."""
        before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        execution, cpu, wall = self._seen
        if execution != self.executions:
            self._seen = (self.executions, time.process_time(), time.monotonic())
        elif time.process_time() - cpu > HANG or time.monotonic() - wall > _ASLEEP:
            self._seen = (-1, 0.0, 0.0)
            raise Hung(f"no end after {HANG:g} s of CPU time, or {_ASLEEP:g} s without")

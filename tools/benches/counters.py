"""What the processor counts of this process: instructions and cycles of user space, where it lets us.

A machine's speed changes with what else runs on it; how many instructions a descriptor takes does not. Virtual
machines often have no such counters, and a kernel may keep them for root (perf_event_paranoid): then there are
none of these figures, and the others are as they were.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
HARDWARE: Final = {"instructions": (0, 1), "cycles": (0, 0)}
"""perf_event_attr's type and config, by what is counted (linux/perf_event.h)."""

_SIZE = 112
_NEITHER_KERNEL_NOR_HYPERVISOR = 1 << 5 | 1 << 6
_ATTR = struct.Struct("<IIQQQQQ")


class Counters:
    """Counters of this thread, as far as the machine has them; to be closed.

    Args:
        events: perf_event_attr's type and config, by what is counted.
    """

    def __init__(self, events: dict[str, tuple[int, int]] | None = None) -> None:
        self._open: dict[str, int] = {}
        number = _SYSCALL.get(platform.machine())
        if number is None:
            return
        call = ctypes.CDLL(None, use_errno=True).syscall
        for name, (kind, config) in (HARDWARE if events is None else events).items():
            attr = _ATTR.pack(kind, _SIZE, config, 0, 0, 0, _NEITHER_KERNEL_NOR_HYPERVISOR).ljust(_SIZE, b"\0")
            fd = call(ctypes.c_long(number), ctypes.c_char_p(attr), 0, -1, ctypes.c_int(-1), ctypes.c_long(8))
            if fd >= 0:  # 8: FD_CLOEXEC
                self._open[name] = fd

    def __enter__(self) -> Counters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def of(self, work: Callable[[], object]) -> dict[str, int]:
        """What ``work`` took, by the name of the counter; empty where there is none."""
        before = self._read()
        work()
        after = self._read()
        return {name: after[name] - before[name] for name in after}

    def _read(self) -> dict[str, int]:
        return {name: int.from_bytes(os.read(fd, 8), "little") for name, fd in self._open.items()}

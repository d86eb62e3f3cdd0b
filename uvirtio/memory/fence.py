"""A full memory fence.

A driver publishes ``avail.idx`` and then reads the device's event word; the device does it in the opposite
order. x86 may execute the load before the store (2.7.13.4.1, 2.8.21.3.1), and then each side assumes that the
other is awake: a lost notification. CPython has no fence of its own, but an uncontended lock is taken by
a locked instruction, which on x86 is a full fence; elsewhere libatomic is needed.

What a fence costs is what it costs to call it. A lock is two calls, and a third for the function around them: 75
ns on an idle machine. Looking at what a buffered file has in memory takes and releases the lock of that file in
one call, a third of that time (``peek_fence``). libatomic through ctypes is 170 ns; membarrier(2), through ctypes
too, would be a microsecond.
``tests/unit/memory/test_fence.py`` races two processes against each other and fails when the fence is removed, and
looks at the instructions that each fence executes.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable

from uvirtio.errors import NotSupported
from uvirtio.host import cpu

Fence = Callable[[], object]

_SEQ_CST = 5  # memory_order_seq_cst of C11's <stdatomic.h>


def lock_fence() -> Fence:
    """Return a fence made of an uncontended lock. A full fence on x86 only."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


_PEEK_LOCKS = ((3, 11), (3, 12), (3, 13), (3, 14), (3, 15))
"""The versions of CPython whose ``peek`` was seen to execute locked instructions; any other gets a lock."""


def peek_fence() -> Fence:
    """Return a fence that is one call: ``peek`` of a buffered file, which takes and releases that file's lock.

    One byte is in its memory, which ``peek`` does not consume, so the file itself is not needed any more. A full
    fence on x86 only, and in versions of CPython where ``peek`` locks.
    """
    inlet, outlet = os.pipe()
    try:
        os.write(outlet, b"x")
        reader = io.BufferedReader(io.FileIO(inlet, closefd=False), 1)
        reader.peek()
    finally:
        os.close(inlet)
        os.close(outlet)
    return reader.peek


def libatomic_fence() -> Fence:
    """Return ``atomic_thread_fence(memory_order_seq_cst)`` of libatomic.

    Raises:
        NotSupported: The library is not installed.
    """
    import ctypes  # here: x86 does without

    try:
        library = ctypes.PyDLL("libatomic.so.1")
        function = library.atomic_thread_fence
    except (OSError, AttributeError) as error:
        from uvirtio.host import remedies  # here: only this error wants them

        raise NotSupported(
            "this CPU needs libatomic for its memory fences",
            seen=str(error),
            expected="libatomic.so.1",
            remedy=remedies.full_fence(),
        ) from error
    function.argtypes = (ctypes.c_int,)
    function.restype = None

    def fence() -> None:
        function(_SEQ_CST)

    return fence


def full_fence() -> Fence:
    """Return the cheapest full fence of this machine.

    Raises:
        NotSupported: The CPU is not x86, and libatomic is not installed.
    """
    return _x86_fence() if cpu.is_x86() else libatomic_fence()


def _x86_fence() -> Fence:
    return peek_fence() if sys.version_info[:2] in _PEEK_LOCKS else lock_fence()


def platform_fence() -> Fence | None:
    """Return a fence for a device that is not a CPU (ORDER_PLATFORM, 6); None where Python has none.

    A locked instruction of x86 orders all memory accesses. The fences of libatomic on other CPUs order accesses
    between CPUs (``dmb ish`` on ARM, where a device may need ``dmb osh``), so the feature is not accepted there.
    """
    return _x86_fence() if cpu.is_x86() else None


def order_fence() -> Fence | None:
    """Return what keeps two stores, or two loads, in their order; None on x86, where the hardware does.

    Raises:
        NotSupported: The CPU is not x86, and libatomic is not installed.
    """
    return None if cpu.is_x86() else libatomic_fence()

"""A full memory fence.

A driver publishes ``avail.idx`` and then reads the device's event word; the device does it the other way
round. x86 may let the load overtake the store (2.7.13.4.1, 2.8.21.3.1), and then both sides believe that
the other is awake: a lost notification. CPython has no fence of its own, but an uncontended lock is taken by
a locked instruction, which on x86 is a full fence and costs 75 ns; elsewhere only libatomic will do (170 ns).
``tests/unit/memory/test_fence.py`` races two processes against each other and fails when the fence is taken out.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Callable

from uvirtio.errors import NotSupported

Fence = Callable[[], None]

_SEQ_CST = 5  # memory_order_seq_cst of C11's <stdatomic.h>


def lock_fence() -> Fence:
    """A fence made of an uncontended lock. A full fence on x86 only."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


def libatomic_fence() -> Fence:
    """``atomic_thread_fence(seq_cst)`` of libatomic. Raises NotSupported where the library is missing."""
    try:
        library = ctypes.PyDLL("libatomic.so.1")
        function = library.atomic_thread_fence
    except (OSError, AttributeError) as error:
        raise NotSupported(
            "this CPU needs libatomic for its memory fences",
            seen=str(error),
            expected="libatomic.so.1",
            remedy="apt-get install libatomic1",
        ) from error
    function.argtypes = (ctypes.c_int,)
    function.restype = None

    def fence() -> None:
        function(_SEQ_CST)

    return fence


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64", "i686", "i386")


def full_fence() -> Fence:
    """The cheapest full fence of this machine. Raises NotSupported where there is none."""
    return lock_fence() if _is_x86() else libatomic_fence()


def platform_fence() -> Fence | None:
    """What orders memory accesses for a device that is no CPU (ORDER_PLATFORM, 6); None where Python has none.

    A locked instruction of x86 orders all memory. What libatomic has elsewhere is for CPUs among themselves
    (``dmb ish`` on ARM, where a device may need ``dmb osh``), so there the feature is not to be taken.
    """
    return lock_fence() if _is_x86() else None


def order_fence() -> Fence | None:
    """What keeps two stores, or two loads, in their order: None on x86, where they stay in order by themselves.

    Raises NotSupported as :func:`full_fence` does.
    """
    return None if _is_x86() else libatomic_fence()

"""How a device ends that nobody closes, and how its memory is freed."""

from __future__ import annotations

import atexit
from _weakref import ref  # of CPython; the module weakref takes longer to import
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from uvirtio.errors import UvirtioError
from uvirtio.interfaces.runtime import Ends
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import DmaSpace
    from uvirtio.memory.unclosed import Closable
    from uvirtio.virtqueue.interface import Virtqueue


class Ending:
    """Has a device left when the process ends, or where it is dropped before; ``done`` once it is closed."""

    __slots__ = ("_at_exit", "_backend", "_dropped", "_undivided", "_whole")

    def __init__(self, device: Closable, backend: object, kept: Sequence[object], *, in_machine: bool) -> None:
        """Watch over a device.

        Args:
            device: The device; it may be dropped all the same.
            backend: What its back end handed over.
            kept: What closing it takes. Before Python calls ``__del__`` of objects that refer to each other, it
                closes the files and sockets among them.
            in_machine: The device is one of a machine that this process runs.
        """
        self._backend = backend
        self._undivided = bool(getattr(backend, "undivided", False))
        self._whole = self._undivided or not in_machine
        self._dropped: list[Closable] = []
        # What a machine of several devices takes to be closed is the machine's, and so are its devices.
        self._at_exit = partial(_close, ref(device), self._dropped, *(kept if self._whole else ()))
        atexit.register(self._at_exit)

    def done(self) -> None:
        """The device is closed; idempotent."""
        atexit.unregister(self._at_exit)

    def dropped(self, device: Closable) -> None:
        """Warn that nobody closed the device, and leave it now only where that disturbs nothing else.

        Python calls this at any moment, in the middle of what other devices do. So a device of hardware is kept
        and left when the process ends: until its reset is confirmed its memory must not be freed, and that takes
        registers, and the kernel's objects, that others may be using. One of a machine that runs ends with it.

        Args:
            device: The device.
        """
        warn_unclosed(device, level=4, then=partial(self._leave, device))

    def _leave(self, device: Closable) -> None:
        if self._undivided or (isinstance(self._backend, Ends) and self._backend.ended):
            device.close()
        elif self._whole:
            # Not registered anew: what is registered by a function that runs at exit is never called.
            self._dropped.append(device)


def _close(device: Callable[[], Closable | None], dropped: list[Closable], *_: object) -> None:
    """Close a device that was dropped, or one that is there; what else is given is only kept until then."""
    there = dropped.pop() if dropped else device()
    if there is not None:
        there.close()


def free(dma: DmaSpace | None, rings: Sequence[Virtqueue], first: Callable[[], None] = lambda: None) -> None:
    """Close rings, and the memory that they are in.

    Args:
        dma: The memory; None: there is none.
        rings: The rings.
        first: What is done before; it may fail as UvirtioError.
    """
    with ExitStack() as stack:
        if dma is not None:
            stack.callback(dma.close)
        for ring in rings:
            stack.callback(ring.close)
        with suppress(UvirtioError):
            first()

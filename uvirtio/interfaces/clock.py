"""The time as those see it that use a device: this machine's, or that of a record which is replayed."""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import Any


class Poller(Protocol):
    """A set of file descriptors to wait for: the part of ``select.epoll`` that is used."""

    def register(self, fd: int, eventmask: int = ..., /) -> object:
        """Add a descriptor."""
        ...

    def poll(self, timeout: Any = ..., /) -> list[tuple[int, int]]:
        """Return the descriptors that can be read, each with its events; the time-out is as in ``select``."""
        ...


class ClosingPoller(Poller, Protocol):
    """An epoll set, which has a descriptor of its own."""

    def poll(self, timeout: Any = ..., maxevents: int = ..., /) -> list[tuple[int, int]]:
        """Return at most ``maxevents`` of the descriptors that can be read, each with its events."""
        ...

    def close(self) -> None:
        """Close the set."""
        ...


class Clock(Protocol):
    """The time, and waiting for it to pass, as those see it that use a device."""

    def monotonic(self) -> float:
        """Return the monotonic clock, in seconds."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Sleep."""
        ...

    def random(self) -> float:
        """Return a random number from 0.0 up to 1.0, for pauses that differ."""
        ...

    def epoll(self) -> ClosingPoller:
        """Return an empty epoll set."""
        ...

    def poll(self) -> Poller:
        """Return an empty set as of ``select.poll``, whose time-outs are in milliseconds."""
        ...


@runtime_checkable
class KeepsTime(Protocol):
    """Optional ability of a back end's object: its device is used by another clock than this machine's."""

    clock: Clock

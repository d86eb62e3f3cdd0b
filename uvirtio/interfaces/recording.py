"""The seam at which a device is recorded and replayed: what notes, and what stands for the noted."""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import Any

    from uvirtio.interfaces.backend import Backend
    from uvirtio.interfaces.memory import Event


@runtime_checkable
class Witnesses(Protocol):
    """Optional ability of a back end's object: it notes what goes on above it, for a record that people read."""

    def note(self, text: str) -> None:
        """Note a line of text."""
        ...

    def watch(self, queue: Any) -> None:
        """Note the chains of a queue from now on.

        Args:
            queue: A ``uvirtio.device.Queue`` that was enabled just now.
        """
        ...


@runtime_checkable
class WatchesEvents(Protocol):
    """Optional ability of a ``VdpaNode``: it notes what comes through the eventfds that its transport makes."""

    def watched_event(self, name: str, event: Event) -> Event:
        """Return what stands for a call.

        Args:
            name: What to call it in the record.
            event: The eventfd; closed together with what is returned.
        """
        ...

    def watched_doorbell(self, name: str, doorbell: Any) -> Any:
        """Return what stands for a kick.

        Args:
            name: What to call it in the record.
            doorbell: The eventfd; closed together with what is returned.
        """
        ...


@runtime_checkable
class WatchesWords(Protocol):
    """Optional ability of a ``Block``: it notes what a ring reads of it, one access after the other."""

    def watched(self, offset: int, words: memoryview) -> memoryview:
        """Return what stands for ``words``: an object with the same items, whose reads are noted.

        Args:
            offset: Where the words begin in the block, in bytes.
            words: A view of the block.
        """
        ...


class Records(Protocol):
    """What records a device while it is used, as ``OpenOptions.record`` takes it."""

    def recorded(self, address: str, found: Backend) -> Backend:
        """Return what stands for the object of a back end, and notes all that goes through it.

        Args:
            address: The address of the device.
            found: What a back end opened; closed together with what is returned.
        """
        ...


class Replays(Protocol):
    """What answers in place of a device from a record, as ``OpenOptions.replay`` takes it."""

    def next_device(self) -> tuple[str, Backend]:
        """Return the address and the replayed object of the next device that was opened in the record."""
        ...

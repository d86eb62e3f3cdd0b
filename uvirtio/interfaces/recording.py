"""The seam at which a device is recorded and replayed: what notes, and what stands for the noted."""

from __future__ import annotations

from uvirtio.interfaces.runtime import WatchesEvents as WatchesEvents
from uvirtio.interfaces.runtime import WatchesWords as WatchesWords
from uvirtio.interfaces.runtime import Witnesses as Witnesses
from uvirtio.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import Backend


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

"""What the host can plug into a device, and out again: ports of a console, units of a SCSI host device."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

from uvirtio.errors import UvirtioError


class Pluggable:
    """One such thing; a context manager, which unplugs it."""

    plugged = False

    def plug(self) -> None:
        """It comes."""
        self._plug()
        self.plugged = True

    def unplug(self) -> None:
        """It goes, if it is there."""
        if self.plugged:
            self.plugged = False
            self._unplug()

    def _plug(self) -> None:
        raise NotImplementedError

    def _unplug(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(UvirtioError):  # the machine may have ended, which the next step of the test sees
            self.unplug()

"""The other side of a scripted device, where its model has one: the ability ``interfaces.backend.OtherSide``."""

from __future__ import annotations

from uvirtio.scripted.model import Model


class OtherSideOfModel:
    """Hands on to the model."""

    model: Model

    @property
    def other_sides(self) -> frozenset[str]:
        """What the model has of ``peer``, ``screen`` and ``memory``."""
        return self.model.other_sides

    def peer_send(self, data: bytes) -> None:
        """Send bytes to the device from what it connects to."""
        self.model.peer_send(data)

    def peer_receive(self, timeout: float) -> bytes:
        """Receive what the device has sent there; what is not there yet never comes."""
        return self.model.peer_receive()

    def screen(self) -> bytes:
        """Return what the device's screen shows."""
        return self.model.screen()

    def cpu_read(self, address: int, length: int) -> bytes:
        """Read memory that the device shows to the processors."""
        return self.model.cpu_read(address, length)

    def cpu_write(self, address: int, data: bytes) -> None:
        """Write memory that the device shows to the processors."""
        self.model.cpu_write(address, data)

    def file_read(self, offset: int, length: int) -> bytes:
        """Read what is behind that memory."""
        return self.model.file_read(offset, length)

    def file_write(self, offset: int, data: bytes) -> None:
        """Write what is behind that memory."""
        self.model.file_write(offset, data)

"""The device configuration of a back end: read whole, kept until it changes, or made of the address's fields.

No message tells its length: the lengths that the type has had are tried, ascending, until the reply is empty. It
is read from byte 0 on, because libvhost-user ignores the offset.
"""

from __future__ import annotations

from collections.abc import Mapping

from uvirtio.backends.vhost_user import device_types, fields, spec
from uvirtio.backends.vhost_user.connection import Connection
from uvirtio.backends.vhost_user.spec import Request
from uvirtio.errors import ConfigError, NotSupported, ProtocolError, UsageError


class DeviceConfig:
    """The configuration of one device, over all connections to its back end."""

    def __init__(self, device_id: int, given: Mapping[str, str], address: str) -> None:
        """Begin without one.

        Args:
            device_id: The device's type.
            given: Fields that the address has (``fields.KEYS``), for a back end that has none.
            address: What the device is called in errors.
        """
        self._device_id = device_id
        self._given = given
        self._address = address
        self._own = b""
        self._known: bytes | None = None
        self.length = 0
        """In bytes; 0 where there is none."""

    @property
    def from_back_end(self) -> bool:
        """Whether it is the back end that has it."""
        return bool(self.length) and not self._own

    def measure(self, connection: Connection, queues: int, *, asks: bool) -> None:
        """Find its length, over a new connection.

        Args:
            connection: To the back end.
            queues: The number of its queues.
            asks: Whether CONFIG was negotiated.

        Raises:
            UsageError: The back end has a configuration, and the address has fields of one.
        """
        self._known, self._own, self.length = None, b"", 0
        for wanted in device_types.CONFIG_LENGTHS.get(self._device_id, ()) if asks else ():
            if not self._read(connection, wanted):
                break
            self.length = wanted
        if self._given and self.length:
            raise UsageError(
                f"the back end of {self._address} has a configuration of its own",
                seen=f"{self.length} bytes, and {' '.join(f'{key}=' for key in self._given)} in the address",
                expected="fields for a back end that has none",
                remedy="leave them out of the address",
            )
        if self._given:
            self._own = fields.config(self._given, queues)
            self.length = len(self._own)

    def features(self, offered: int) -> int:
        """The feature bits that a driver sees, of those that the back end offers.

        Bits of fields that are nowhere, and of what only a VMM does, are hidden; those
        of the address's fields are added.
        """
        hidden = fields.FRONT_ENDS.get(self._device_id, 0)
        if not self.from_back_end:
            hidden |= fields.WITHOUT_CONFIG.get(self._device_id, 0)
        return offered & ~hidden | self.added

    @property
    def added(self) -> int:
        """The feature bits of the address's fields: the back end is told of none that it does not offer."""
        return fields.offered(self._given)

    def get(self, connection: Connection, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``offset``, as they were read last.

        Raises:
            ConfigError: The configuration has become shorter.
        """
        if self._own:
            return self._own[offset : offset + length]
        if self._known is None:
            known = self._read(connection, self.length)
            if len(known) < self.length:
                raise ConfigError(
                    f"the configuration of {self._address} has become shorter",
                    seen="no bytes",
                    expected=f"{self.length} bytes, as before",
                )
            self._known = known
        return self._known[offset : offset + length]

    def set(self, connection: Connection, offset: int, data: bytes) -> None:
        """Write ``data`` from byte ``offset`` on (SET_CONFIG).

        Raises:
            NotSupported: The back end has no configuration.
        """
        if not self.from_back_end:
            raise NotSupported(
                f"the configuration of {self._address} cannot be written",
                seen="no VHOST_USER_PROTOCOL_F_CONFIG",
                expected="a back end that has a configuration",
            )
        self._known = None
        connection.tell(Request.SET_CONFIG, spec.CONFIG.pack(offset, len(data), 0) + data)

    def forget(self) -> None:
        """Read it again at the next use."""
        self._known = None

    def _read(self, connection: Connection, length: int) -> bytes:
        """Read the first bytes (GET_CONFIG); empty where there are not so many."""
        head = spec.CONFIG.size
        asked = spec.CONFIG.pack(0, length, 0) + bytes(length)
        reply = connection.ask(Request.GET_CONFIG, asked, sizes=(head + length, head, 0))
        if len(reply) <= head:
            return b""
        offset, size, _ = spec.CONFIG.unpack_from(reply)
        if offset or size != length:
            error = ProtocolError(
                f"the back end of {self._address} answered GET_CONFIG with another part of the configuration",
                seen=f"{size} bytes at {offset}",
                expected=f"{length} bytes at 0",
                remedy="this is a fault of the back end",
            )
            connection.end(error)
            raise error
        return reply[head:]

"""The entropy device (5.4): one queue, writable buffers, no features, no configuration."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.base import Driver, runs, settle, transact
from uvirtio.drivers.rng.health import MOST, RUN, WINDOW, Health
from uvirtio.errors import ProtocolError, RngUnhealthy, UsageError
from uvirtio.spec import rng as spec
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import ClassVar

_BUFFER = 4096
_EMPTY_ANSWERS = 16


class Rng(Driver):
    """Driver of the entropy device (5.4): random bytes from the host.

    ``with Rng(uvirtio.open(address)) as rng: rng.read(32)``

    All bytes pass two health tests that detect a stuck source (see ``Health``).
    """

    device_id: ClassVar[int] = spec.TYPE

    def __init__(self, device: Device, *, health: bool = True, observe: Observer = unobserved) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open entropy device.
            health: Test the bytes; False for sources whose bytes are known, as in tests.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
        """
        self.health = Health() if health else None
        super().__init__(device, observe=observe)

    def _queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec(spec.REQUESTQ, "requestq", size=8)]

    def _before_ok(self) -> None:
        self._buffer = self.device.dma.alloc(_BUFFER)

    def read(self, count: int, *, timeout: float | None = None) -> bytes:
        """Return ``count`` random bytes; as many requests as that takes, for each may return fewer (5.4.6.1).

        Args:
            count: How many bytes.
            timeout: Seconds in all; None: the device's own for each request of up to 4096 bytes.

        Raises:
            UsageError: ``count`` is negative.
            DeviceTimeout: The device did not return a buffer in time, or not enough bytes.
            ProtocolError: 16 buffers in a row came back empty.
            RngUnhealthy: The bytes cannot be random. None of them are returned, nor any others of this call.
        """
        count = index(count)
        if count < 0:
            raise UsageError("a number of bytes is not negative", seen=count, expected="0 or more")
        found = bytearray()
        with self.session(timeout):
            empty = 0
            while len(found) < count:
                if found:
                    self.device.check_time(f"{count} random bytes")
                asked = min(count - len(found), _BUFFER)
                piece = self._request(asked)
                if len(piece) < asked:
                    self._finding("empty answer" if not piece else "short answer")
                empty = 0 if piece else empty + 1
                if empty == _EMPTY_ANSWERS:
                    raise ProtocolError(
                        f"{self.device.address} returns no bytes at all",
                        seen=f"{empty} empty buffers in a row",
                        expected="at least one byte (5.4.6)",
                        remedy="check the used length that it reports, and the host's source of randomness",
                        about="used-len",
                    )
                self._test(piece)
                found += piece
        return bytes(found)

    def _test(self, piece: bytes) -> None:
        wrong = self.health.feed(piece) if self.health is not None else None
        if wrong is not None:
            raise RngUnhealthy(
                f"{self.device.address} returns bytes that are not random",
                seen=wrong,
                expected=f"fewer than {RUN} equal bytes in a row, and fewer than {MOST} in {WINDOW}",
                remedy="check the host's source; Rng(device, health=False) or --untested skips the tests",
            )

    def _request(self, length: int) -> bytes:
        buffer, queue = self._buffer, self.device.queues[spec.REQUESTQ]
        timeout = self.device.seconds(None)
        settle(self.device, queue, timeout=timeout)
        # Cleared first: what the device does not write must not look like its answer.
        buffer.view[:length] = bytes(length)
        done = transact(
            self.device,
            queue,
            (),  # 5.4.6.1: no readable buffers here
            runs(buffer, 0, length),
            timeout=timeout,
            what=f"the buffer for {length} random bytes",
        )
        return bytes(buffer.view[: done.written])

"""A tiny VNC client (RFB 3.8), as tests and the demo need it: it types, points, and sees the keyboard's LEDs.

QEMU tells a client that has asked for the pseudo-encoding -261 which LEDs are on: a witness for what a driver
wrote to a status queue that has nothing to do with virtio.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType

CAPS, NUM, SCROLL = 4, 2, 1
"""Bits of QEMU's LED state (QEMU_*_LOCK_LED)."""

_DESKTOP_SIZE, _LED_STATE, _EXT_KEY = -223, -261, -258
_PATIENCE = 20.0


class Vnc:
    """A session over a UNIX socket; a context manager."""

    def __init__(self, path: str) -> None:
        self.leds: int | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect(path)
        try:
            self._hello()
        except BaseException:
            self._socket.close()
            raise

    def _hello(self) -> None:
        assert self._take(12).startswith(b"RFB 003.00")
        self._socket.sendall(b"RFB 003.008\n")
        kinds = self._take(self._take(1)[0])
        assert 1 in kinds, "no authentication"
        self._socket.sendall(b"\x01")
        assert self._take(4) == bytes(4), "refused"
        self._socket.sendall(b"\x01")  # shared
        self.width, self.height = struct.unpack(">HH", self._take(4))
        self._bytes_per_pixel = self._take(16)[0] // 8
        self._take(struct.unpack(">I", self._take(4))[0])
        encodings = (0, _DESKTOP_SIZE, _LED_STATE, _EXT_KEY)
        self._socket.sendall(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("QEMU hung up")
            data += piece
        return data

    def keys(self, *events: tuple[int, int, bool]) -> None:
        """QEMU's key events, (keysym, XT scan code, down), all in one piece."""
        data = b"".join(struct.pack(">BBHII", 255, 0, int(down), sym, code) for sym, code, down in events)
        self._socket.sendall(data)

    def point(self, *events: tuple[int, int, int]) -> None:
        """Pointer events, (buttons, x, y)."""
        self._socket.sendall(b"".join(struct.pack(">BBHH", 5, buttons, x, y) for buttons, x, y in events))

    def wait_leds(self, wanted: int | Callable[[int], bool]) -> bool:
        """Whether the LEDs become this within a while, or something that fits."""
        fits = wanted if callable(wanted) else wanted.__eq__
        deadline = time.monotonic() + _PATIENCE
        while (self.leds is None or not fits(self.leds)) and time.monotonic() < deadline:
            self._socket.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1))
            try:
                self._update()
            except TimeoutError:
                break
        return self.leds is not None and fits(self.leds)

    def _update(self) -> None:
        kind = self._take(1)[0]
        assert kind == 0, f"message {kind}"
        count = struct.unpack(">xH", self._take(3))[0]
        for _ in range(count):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self._take(12))
            if encoding == _LED_STATE:
                self.leds = self._take(1)[0]
            elif encoding == 0:
                self._take(width * height * self._bytes_per_pixel)
            else:
                assert encoding in (_DESKTOP_SIZE, _EXT_KEY), f"encoding {encoding}"

    def __enter__(self) -> Vnc:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._socket.close()

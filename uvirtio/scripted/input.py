"""An input device (5.8) made of Python, which can lie about its sizes and selections."""

from __future__ import annotations

import struct

from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import input


class Input(Model):
    """An input device (5.8); ``answers`` maps (select, subsel) to the payload."""

    device_id = input.TYPE

    def __init__(
        self, name: bytes = b"scripted keyboard", answers: dict[tuple[int, int], bytes] | None = None
    ) -> None:
        super().__init__()
        self.queue_sizes = (64, 64)
        self.config = bytearray(input.CONFIG_SIZE)
        select = input.Select
        self.answers: dict[tuple[int, int], bytes] = {
            (select.ID_NAME, 0): name,
            (select.ID_SERIAL, 0): b"1",
            (select.ID_DEVIDS, 0): struct.pack("<HHHH", 6, 0x0627, 1, 1),
            (select.EV_BITS, input.EV_KEY): bytes([0xFE] * 16),
            (select.EV_BITS, input.EV_LED): b"\x07",
            **(answers or {}),
        }
        self.size_lies: dict[tuple[int, int], int] = {}
        """What ``size`` announces instead of the payload's length."""
        self.size_lie: int | None = None
        """The same for every selection that has none of its own."""
        self.stuck: tuple[int, int] | None = None
        """The selection that the device shows and answers, whatever is written."""
        self.buffers: list[Chain] = []
        self.statuses: list[tuple[int, int, int]] = []

    def reset(self) -> None:
        """The device was reset: it has no buffers."""
        self.buffers.clear()
        self.config[:] = bytes(len(self.config))

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a selection (5.8.4), and show its payload."""
        self.device.check("INP-SEL", offset in (0, 1) and width == 1, f"a config write at {offset}")
        if offset in (input.SELECT, input.SUBSEL) and width == 1:
            super().write_config(offset, width, value)
        if self.stuck is not None:
            self.config[input.SELECT], self.config[input.SUBSEL] = self.stuck
        key = (self.config[input.SELECT], self.config[input.SUBSEL])
        payload = self.answers.get(key, b"")
        told = len(payload) if self.size_lie is None else self.size_lie
        self.config[input.SIZE] = self.size_lies.get(key, told) & 0xFF
        self.config[input.PAYLOAD :] = payload[: input.PAYLOAD_MAX].ljust(input.PAYLOAD_MAX, b"\0")

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Keep an event buffer, or take a status event."""
        if queue == input.EVENTQ:
            self.device.check("INP-05", chain.room >= input.EVENT_SIZE, f"an event buffer of {chain.room} bytes")
            self.buffers.append(chain)
            return None
        data = chain.data()
        self.device.check(
            "INP-06", len(data) >= input.EVENT_SIZE and not chain.writable, f"a status of {len(data)} bytes"
        )
        self.statuses.append(struct.unpack("<HHi", data[: input.EVENT_SIZE]))
        return 0

    def report(self, *events: tuple[int, int, int]) -> int:
        """One update of several events, whole or not at all (5.8.6.2); how many events found a buffer."""
        self.device.fetch(input.EVENTQ)
        return self.inject(*events) if len(self.buffers) >= len(events) else 0

    def inject(self, *events: tuple[int, int, int], written: int = input.EVENT_SIZE) -> int:
        """Events as (type, code, value) into the buffers that wait, then one interrupt; how many found one."""
        self.device.fetch(input.EVENTQ)
        given = 0
        for kind, code, value in events:
            if not self.buffers:
                break
            chain = self.buffers.pop(0)
            chain.fill(struct.pack("<HHI", kind, code, value & 0xFFFFFFFF))
            self.device.complete(input.EVENTQ, chain, written, interrupt=False)
            given += 1
        self.device.interrupt_queue(input.EVENTQ)
        return given

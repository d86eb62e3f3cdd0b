"""A console (5.3) made of Python, with one port whose other end is ``peer_send`` and ``peer_receive``.

Lies: ``garbled`` (bytes to the host come in capitals, control messages with an event that there is not),
``untouched`` (what is received counts and is not written).
"""

from __future__ import annotations

from collections import deque

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import console as spec
from uvirtio.spec import features as f
from uvirtio.spec.console import Control
from uvirtio.spec.layout import by_name

_NO_EVENT = 77


class Console(Answering):
    """Port 0, a console, and control queues."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    features = f.mask(f.Console.MULTIPORT, f.Console.EMERG_WRITE)
    queue_sizes = (64, 64, 64, 64)
    any_time = frozenset({fields["emerg_wr"].offset})  # 5.3.5.1
    other_sides = frozenset({"peer"})

    def __init__(self, *, most: int = 4) -> None:
        super().__init__()
        self.config = bytearray(spec.CONFIG_SIZE)
        self.put("max_nr_ports", most)
        self.ports = {0}
        self.ready = False
        """The driver has sent DEVICE_READY, and is told of ports."""
        self.buffers: dict[int, deque[Chain]] = {}
        self.waiting: dict[int, deque[bytes]] = {}
        """Messages that wait for a buffer, by queue."""
        self.at_host = bytearray()
        """What the host has not read yet."""

    def reset(self) -> None:
        """The device was reset: it has no buffers, and nothing to say."""
        self.buffers.clear()
        self.waiting.clear()
        self.ready = False

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""
        self.buffers.pop(queue, None)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a character by emerg_wr (5.3.5), which a driver may write and nothing else."""
        emergency = offset == self.fields["emerg_wr"].offset and width == 4
        self.device.check("CON-01", emergency, f"{value} was written at {offset}")
        if emergency:
            self.at_host += bytes([value & 0xFF])

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Keep a buffer, take bytes of port 0, or a control message."""
        if queue in (spec.RECEIVEQ, spec.CONTROL_RECEIVEQ):
            self.device.check("CON-02", not chain.readable, "a readable element in a receive buffer")
            self.buffers.setdefault(queue, deque()).append(chain)
            self._deliver(queue)
            return None
        self.device.check("CON-03", not chain.writable, "a writable element in a transmission")
        if queue == spec.TRANSMITQ:
            self.at_host += data.upper() if self.garbled else data
        else:
            self._control(data)
        return b""

    def _control(self, data: bytes) -> None:
        whole = len(data) == spec.CONTROL.size
        self.device.check("CON-04", whole, f"a control message of {len(data)} bytes")
        if not whole:
            return
        port, event, value = spec.CONTROL.unpack(data)
        if event == Control.DEVICE_READY and value == 1:
            self.ready = True
            for number in sorted(self.ports):
                self.tell(number, Control.DEVICE_ADD, 0)
        elif event == Control.PORT_READY and value == 1 and port in self.ports:
            self.tell(port, Control.CONSOLE_PORT, 1)
            self.tell(port, Control.PORT_OPEN, 1)

    def plug(self, port: int) -> None:
        """The host adds a port."""
        self.ports.add(port)
        if self.ready:
            self.tell(port, Control.DEVICE_ADD, 0)

    def unplug(self, port: int) -> None:
        """The host removes a port."""
        self.ports.discard(port)
        if self.ready:
            self.tell(port, Control.DEVICE_REMOVE, 0)

    def tell(self, port: int, event: int, value: int) -> None:
        """Send a control message, now or when there is a buffer."""
        event = _NO_EVENT if self.garbled else event
        self._say(spec.CONTROL_RECEIVEQ, spec.CONTROL.pack(port, event, value))

    def _say(self, queue: int, data: bytes) -> None:
        self.waiting.setdefault(queue, deque()).append(data)
        self._deliver(queue)

    def _deliver(self, queue: int) -> None:
        buffers, waiting = self.buffers.get(queue, deque()), self.waiting.get(queue, deque())
        while buffers and waiting:
            chain, data = buffers.popleft(), waiting.popleft()
            if not self.untouched:
                chain.fill(data)
            self.device.complete(queue, chain, min(len(data), chain.room))
            if data[chain.room :]:
                waiting.appendleft(data[chain.room :])

    def peer_send(self, data: bytes) -> None:
        """The host sends bytes to port 0."""
        self._say(spec.RECEIVEQ, data)

    def peer_receive(self) -> bytes:
        """What came at the host since the last call."""
        got = bytes(self.at_host)
        self.at_host.clear()
        return got

"""A memory device (5.15) made of Python: honest as QEMU's by default, and a liar on demand.

    model = Mem(blocks=64, requested=8 * MIB)
    device = ScriptedDevice(model)

Lies: ``script`` (answers instead of its own), ``written`` (the length it claims), ``tail`` (junk behind the type),
``size_lie`` (plugged_size off by so much), ``before`` (called with each request before it is answered, to change
the configuration while a driver is at work).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Callable

from uvirtio.memory.window import FileWindow
from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import mem as spec
from uvirtio.spec.layout import by_name
from uvirtio.spec.mem import Request, Response, State

MIB = 1 << 20
BLOCK = 2 * MIB
ADDR = 0x1_4000_0000
JUNK = 0xEE  # what freshly plugged memory holds here

FIELDS = by_name(spec.CONFIG)
FEATURES = f.mask(f.Mem.ACPI_PXM, f.Mem.UNPLUGGED_INACCESSIBLE)


class Mem(Model):
    """``blocks`` of ``block_size`` bytes at ``addr``, of which ``usable`` take requests; sizes in bytes."""

    device_id = spec.TYPE
    fields = FIELDS

    def __init__(
        self,
        *,
        blocks: int = 64,
        block_size: int = BLOCK,
        addr: int = ADDR,
        usable: int | None = None,
        requested: int = 0,
        plugged: set[int] | None = None,
        features: int = FEATURES,
        node_id: int = 3,
        memory: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.queue_sizes = (16,)
        self.config = bytearray(spec.CONFIG_SIZE)
        self.config[10:16] = b"\xa7" * 6  # the padding is junk
        self.block_size, self.addr, self.blocks = block_size, addr, blocks
        self.plugged = set(plugged or ())
        self.requests: list[tuple[int, int, int]] = []
        self.script: deque[int | tuple[int, int] | None] = deque()
        """Answers instead of its own: a type, a (type, state), or None for an honest one."""
        self.always: int | None = None
        """The answer to every request that the script has none for."""
        self.written: int | None = None
        self.tail = b"\xbb" * 8
        self.size_lie = 0
        self.busy = False
        self.shrinks = False
        """UNPLUG ALL shrinks the usable region to what is requested, silently."""
        self.before: Callable[[int, int, int], None] = lambda kind, addr, blocks: None
        self.fd = os.memfd_create("scripted-mem", os.MFD_CLOEXEC) if memory else -1
        self._shown: dict[int, mmap.mmap] = {}
        """Plugged blocks, which devices reach."""
        if memory:
            os.ftruncate(self.fd, blocks * block_size)
        for name, value in (
            ("block_size", block_size),
            ("node_id", node_id),
            ("addr", addr),
            ("region_size", blocks * block_size),
            ("usable_region_size", blocks * block_size if usable is None else usable),
            ("requested_size", requested),
        ):
            self.put(name, value)
        self._book()

    def request(self, size: int) -> None:
        """The host wants another size, and says so."""
        self.put("requested_size", size, interrupt=True)

    def window(self) -> FileWindow:
        """The memory region as a window (only with ``memory=True``)."""
        return FileWindow(os.dup(self.fd), 0, self.blocks * self.block_size, what="the scripted memory")

    def close(self) -> None:
        """Close the file behind the region. Idempotent."""
        self._shown.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _book(self) -> None:
        size = (len(self.plugged) * self.block_size + self.size_lie) % (1 << 64)
        # Without a notification (5.15.4.2), and with another generation (4.1.4.3.1).
        changed = hasattr(self, "device") and size != self.get("plugged_size")
        self.put("plugged_size", size, interrupt=False if changed else None)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration: nothing in it is writable (5.15.4)."""
        self.device.check("MEM-01", False, f"configuration was written at {offset}")

    # --- requests -------------------------------------------------------------------------------------------

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Answer one request (5.15.6); the bytes written."""
        data = chain.data()
        self.device.check("MEM-REQ", len(data) == spec.REQUEST_SIZE, f"a request of {len(data)} bytes")
        self.device.check("MEM-REQ", chain.room >= spec.RESPONSE_SIZE, f"room for {chain.room} bytes")
        self.device.check("MEM-REQ", not any(data[2:8] + data[18:24]), "padding is not zero")
        # 5.15.6.3.2: whatever else a request has is ignored.
        kind, addr, blocks = struct.unpack("<H6xQH6x", data[: spec.REQUEST_SIZE].ljust(spec.REQUEST_SIZE, b"\0"))
        self.requests.append((kind, addr, blocks))
        self.before(kind, addr, blocks)
        forced = self.script.popleft() if self.script else self.always
        if forced is None:
            answer, state = self.decide(kind, addr, blocks)
        elif isinstance(forced, tuple):
            answer, state = forced
        else:
            answer, state = forced, None
        payload = struct.pack("<H", answer) + b"\xcc" * 6
        payload += self.tail[:2] if state is None else struct.pack("<H", state)
        chain.fill(payload)
        self._book()
        return len(payload) if self.written is None else self.written

    def decide(self, kind: int, addr: int, blocks: int) -> tuple[int, int | None]:
        """What an honest device answers, and does."""
        if kind == Request.UNPLUG_ALL:
            if self.busy:
                return Response.BUSY, None
            self._set(set(range(self.blocks)), plug=False)
            if self.shrinks:
                self.put("usable_region_size", self.get("requested_size"))
            return Response.ACK, None
        start, rest = divmod(addr - self.addr, self.block_size)
        if kind > Request.STATE or rest or not blocks or start < 0:
            return Response.ERROR, None
        if (start + blocks) * self.block_size > self.get("usable_region_size"):
            return Response.ERROR, None
        meant = set(range(start, start + blocks))
        if kind == Request.STATE:
            if meant <= self.plugged:
                return Response.ACK, State.PLUGGED
            return Response.ACK, State.MIXED if meant & self.plugged else State.UNPLUGGED
        if kind == Request.PLUG:
            if meant & self.plugged:
                return Response.ERROR, None
            if (len(self.plugged) + blocks) * self.block_size > self.get("requested_size"):
                return Response.NACK, None
        elif not meant <= self.plugged:
            return Response.ERROR, None
        if self.busy:
            return Response.BUSY, None
        self._set(meant, plug=kind == Request.PLUG)
        return Response.ACK, None

    def _set(self, meant: set[int], *, plug: bool) -> None:
        for block in meant if self.fd >= 0 else ():
            fill = bytes([JUNK]) * self.block_size if plug else bytes(self.block_size)
            os.pwrite(self.fd, fill, block * self.block_size)
            self._show(block, plug)
        self.plugged = self.plugged | meant if plug else self.plugged - meant

    def _show(self, block: int, plug: bool) -> None:
        """5.15.6.2: plugged memory can be read and written, by devices too."""
        address = self.addr + block * self.block_size
        if plug:
            shown = mmap.mmap(self.fd, self.block_size, offset=block * self.block_size)
            self._shown[block] = shown
            self.device.memory.show(address, memoryview(shown))
        elif block in self._shown:
            self.device.memory.hide(address, self.block_size)
            del self._shown[block]

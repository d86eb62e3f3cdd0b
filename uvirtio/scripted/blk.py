"""A block device (5.2) made of Python, over a bytearray: strict about requests, and a liar on demand.

    model = Disk(sectors=2048)
    device = ScriptedDevice(model)

Lies: ``script`` (statuses instead of its own), ``written`` (the length it claims), ``no_status`` (the status byte
stays as it was), ``hold`` (keep requests; ``release`` completes them, in any order).
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE, Status
from uvirtio.spec.layout import by_name

FIELDS = by_name(spec.CONFIG)
JUNK = b"\xd7"  # what discarded sectors hold here: it is not defined, so nothing that looks defined

FEATURES = f.mask(f.Blk.SEG_MAX, f.Blk.BLK_SIZE, f.Blk.FLUSH, f.Blk.TOPOLOGY, f.Blk.DISCARD, f.Blk.WRITE_ZEROES)


@dataclass
class Seen:
    """One request as the device saw it."""

    type: int
    sector: int
    data: bytes
    room: int
    elements: list[tuple[int, bool]]
    """(length, writable) of each."""
    queue: int


class Disk(Model):
    """``sectors`` of 512 bytes; fields of the configuration by name as keywords."""

    device_id = spec.TYPE
    fields = FIELDS

    def __init__(
        self,
        *,
        sectors: int = 2048,
        features: int = FEATURES,
        queues: int = 1,
        queue_size: int = 64,
        ident: bytes = b"scripted disk",
        config_length: int = spec.CONFIG_SIZE,
        **fields: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.queue_sizes = (queue_size,) * queues
        self.content = bytearray(sectors * SECTOR_SIZE)
        self.durable = bytearray(self.content)
        """What a power cut would leave."""
        self.ident = ident
        self.config = bytearray(b"\xa7" * config_length)  # what no feature stands for is junk
        told = {
            "capacity": sectors,
            "size_max": 1 << 20,
            "seg_max": 32,
            "cylinders": 3,
            "heads": 2,
            "sectors": 1,
            "blk_size": 512,
            "physical_block_exp": 3,
            "alignment_offset": 0,
            "min_io_size": 8,
            "opt_io_size": 64,
            "writeback": 1,
            "num_queues": queues,
            "max_discard_sectors": 256,
            "max_discard_seg": 4,
            "discard_sector_alignment": 8,
            "max_write_zeroes_sectors": 512,
            "max_write_zeroes_seg": 1,
            "write_zeroes_may_unmap": 1,
            "max_secure_erase_sectors": 128,
            "max_secure_erase_seg": 2,
            "secure_erase_sector_alignment": 1,
            "zone_sectors": 0,
            "unused0": 0,
            "unused1": 0,
            **fields,
        }
        for name, value in told.items():
            if FIELDS[name].end <= config_length:
                self.put(name, value)
        self.requests: list[Seen] = []
        self.script: deque[int | None] = deque()
        """Statuses instead of its own; None for an honest one."""
        self.always: int | None = None
        """The status of every request that the script has none for."""
        self.written: int | None = None
        self.no_status = False
        self.hold = False
        self.kept: list[tuple[int, Chain, int]] = []

    def grow(self, sectors: int, *, interrupt: bool = True) -> None:
        """The host gives the disk another size."""
        size = sectors * SECTOR_SIZE
        self.content = self.content[:size].ljust(size, b"\0")
        self.durable = self.durable[:size].ljust(size, b"\0")
        self.put("capacity", sectors, interrupt=interrupt)

    def has(self, bit: int) -> bool:
        """Whether the driver accepted the feature ``bit``."""
        return f.has(self.device.driver_features, bit)

    def reset(self) -> None:
        """The device was reset: requests that it kept are gone."""
        self.kept.clear()

    def read_config(self, offset: int, width: int) -> int:
        """Read the configuration (5.2.4)."""
        if offset == FIELDS["writeback"].offset:
            # 5.2.5.3: on a legacy interface it may be read and written at any time.
            running = bool(self.device.status_now & 8) or self.device.speaks_legacy
            self.device.check("BLK-03", running, "writeback was read before FEATURES_OK")
        return super().read_config(offset, width)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration: writeback alone is writable, with CONFIG_WCE."""
        right = offset == FIELDS["writeback"].offset and width == 1 and value in (0, 1)
        early = self.device.speaks_legacy and not self.device.status_now & 4
        right = right and (self.has(f.Blk.CONFIG_WCE) or early)
        self.device.check("BLK-CFG", right, f"{value} was written at {offset}")
        if right:
            super().write_config(offset, width, value)

    # --- requests -------------------------------------------------------------------------------------------

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Carry out one request (5.2.6); the bytes written, or None where it is kept."""
        check = self.device.check
        elements = [(element.length, element.writable) for element in chain.elements]
        if not (self.has(f.VERSION_1) or self.has(f.ANY_LAYOUT)):  # 2.7.4.3
            check("BLK-L05", elements[0] == (spec.HEADER_SIZE, False), f"the header is {elements[0]}")
            check("BLK-L05", elements[-1] == (spec.STATUS_SIZE, True), f"the status is {elements[-1]}")
        data = chain.data()
        if len(data) < spec.HEADER_SIZE or not chain.writable:
            check("BLK-L05", False, f"a request of {len(data)} readable and {chain.room} writable bytes")
            self.device.needs_reset()
            return None
        kind, reserved, sector = struct.unpack("<IIQ", data[: spec.HEADER_SIZE])
        payload, room = data[spec.HEADER_SIZE :], chain.room - spec.STATUS_SIZE
        check("BLK-HDR", reserved == 0, f"reserved is {reserved:#x}")
        self.requests.append(Seen(kind, sector, payload, room, elements, queue))
        if self.has(f.Blk.SIZE_MAX):
            longest = max(length for length, _ in elements[1:])
            check("BLK-SIZE", longest <= self.get("size_max"), f"an element of {longest} bytes")
        if self.has(f.Blk.SEG_MAX):
            check("BLK-SEG", len(elements) - 2 <= self.get("seg_max"), f"{len(elements) - 2} elements of data")
        status = self.script.popleft() if self.script else self.always
        answer = b""
        if status is None:
            status, answer = self.carry_out(kind, sector, payload, room)
        done = self.answer(chain, status, answer, room)
        if self.hold:
            self.kept.append((queue, chain, done))
            return None
        return done

    def answer(self, chain: Chain, status: int, answer: bytes, room: int) -> int:
        """Write data and status into the chain; the length that is claimed."""
        # 2.7.4.1: the status is the last writable byte, however the chain is cut.
        chain.fill(answer[:room])
        if not self.no_status:
            last = chain.writable[-1]
            self.device.memory.write(last.address + last.length - spec.STATUS_SIZE, bytes([status]))
        if self.written is not None:
            return self.written
        # 2.7.8.2: all bytes up to here are written; of a request that failed the data is not.
        return room + spec.STATUS_SIZE if status == Status.OK or not room else 0

    def release(self, order: Sequence[int] | None = None) -> None:
        """Complete what was kept, in this order of it; then what comes is answered at once."""
        kept, self.kept, self.hold = self.kept, [], False
        for place in range(len(kept)) if order is None else order:
            queue, chain, done = kept[place]
            self.device.complete(queue, chain, done)

    def _inside(self, requirement: str, sector: int, count: int) -> bool:
        inside = sector + count <= self.get("capacity")
        self.device.check(requirement, inside, f"{count} sectors at {sector} of {self.get('capacity')}")
        return inside

    def carry_out(self, kind: int, sector: int, payload: bytes, room: int) -> tuple[int, bytes]:
        """What an honest device does; (status, data)."""
        check = self.device.check
        if kind in (spec.Request.IN, spec.Request.OUT):
            size = room if kind == spec.Request.IN else len(payload)
            check("BLK-13", size > 0 and size % SECTOR_SIZE == 0, f"{size} bytes of data")
            check("BLK-FRAME", not (payload and room), "data both ways")
            at, end = sector * SECTOR_SIZE, sector * SECTOR_SIZE + size
            if not self._inside("BLK-09", sector, size // SECTOR_SIZE):
                return Status.IOERR, b""
            if kind == spec.Request.IN:
                return Status.OK, bytes(self.content[at:end])
            check("BLK-RO", not self.has(f.Blk.RO), "a write to a read-only device")
            if f.has(self.features, f.Blk.RO):
                return Status.IOERR, b""
            self.content[at:end] = payload
            if not (self.has(f.Blk.FLUSH) and self.get("writeback")):
                self.durable[at:end] = payload
            return Status.OK, b""
        if kind == spec.Request.FLUSH:
            check("BLK-11", sector == 0, f"a flush of sector {sector}")
            check("BLK-12", not payload and not room, "a flush with data")
            self.durable[:] = self.content
            return Status.OK, b""
        if kind == spec.Request.GET_ID:
            check("BLK-15", room == spec.ID_SIZE, f"{room} bytes for the id")
            return Status.OK, self.ident[: spec.ID_SIZE].ljust(spec.ID_SIZE, b"\0")
        if kind == spec.Request.GET_LIFETIME:
            return Status.OK, struct.pack("<HHH", 1, 2, 3)
        if kind in (spec.Request.DISCARD, spec.Request.WRITE_ZEROES, spec.Request.SECURE_ERASE):
            return self._ranges(kind, payload)
        return Status.UNSUPP, b""

    def _ranges(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        check = self.device.check
        name, requirement, bit = {
            spec.Request.DISCARD: ("discard", "BLK-16", f.Blk.DISCARD),
            spec.Request.WRITE_ZEROES: ("write_zeroes", "BLK-18", f.Blk.WRITE_ZEROES),
            spec.Request.SECURE_ERASE: ("secure_erase", "BLK-17", f.Blk.SECURE_ERASE),
        }[spec.Request(kind)]
        check("BLK-FEAT", self.has(bit), f"{name} was not negotiated")
        check("BLK-14", len(payload) % spec.SEGMENT_SIZE == 0, f"{len(payload)} bytes of segments")
        check("BLK-RO", not self.has(f.Blk.RO), "a change of a read-only device")
        segments = list(struct.iter_unpack("<QII", payload))
        check(requirement, 0 < len(segments) <= self.get(f"max_{name}_seg"), f"{len(segments)} segments")
        for sector, count, flags in segments:
            most = self.get(f"max_{name}_sectors")
            check(requirement, 0 < count <= most, f"a segment of {count} sectors")
            allowed = spec.SEGMENT_F_UNMAP if kind == spec.Request.WRITE_ZEROES else 0
            check("BLK-20", not flags & ~allowed, f"flags {flags:#x}")
            if flags & ~allowed:
                return Status.UNSUPP, b""
            if not self._inside("BLK-09", sector, count):
                return Status.IOERR, b""
            fill = JUNK if kind == spec.Request.DISCARD else b"\0"
            self.content[sector * SECTOR_SIZE : (sector + count) * SECTOR_SIZE] = fill * count * SECTOR_SIZE
        return Status.OK, b""


class Shuffling(Disk):
    """Keeps what comes, and gives it back in any order, when it is told to."""

    def __init__(self, seed: int, **more: Any) -> None:
        super().__init__(**more)
        self.random = random.Random(seed)

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Carry out the request and keep its completion until ``let_go``."""
        done = super().handle(queue, chain)
        assert done is not None
        self.kept.append((queue, chain, done))
        return None

    def let_go(self, least: int = 1) -> None:
        """Some of those that are kept, not less than ``least`` of them."""
        self.random.shuffle(self.kept)
        for _ in range(self.random.randint(least, len(self.kept)) if self.kept else 0):
            self.device.complete(*self.kept.pop())

"""A SCSI host device (5.6) made of Python, its disks over bytearrays: strict about requests, a liar on demand.

    model = ScsiHost()                 # one disk, 0:0
    model.plug(Lun(2, 300), ScsiDisk(64))
    device = ScriptedDevice(model)

Lies: ``always`` (the status of every command), ``response``, ``residual``, ``sense_len``, ``listed`` (the length
of REPORT LUNS), ``written`` (the length it claims), ``no_status`` (nothing of the answer is written), ``hold``
(keep requests; ``release`` completes them), ``counts_out`` (the used length counts what was read, as QEMU's does).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import scsi as spec
from uvirtio.spec.layout import by_name
from uvirtio.spec.scsi import Control, EventType, Opcode, ResetReason, Response, Status, Task

FIELDS = by_name(spec.CONFIG)
FEATURES = f.mask(f.Scsi.HOTPLUG, f.Scsi.CHANGE)
_ATTENTION = (6, 0x29, 0x00)
_LISTS_CHANGED = (6, 0x3F, 0x0E)
_CAPACITY_CHANGED = (6, 0x2A, 0x09)
_NO_OPCODE, _BEYOND, _BAD_FIELD, _NO_UNIT = (5, 0x20, 0), (5, 0x21, 0), (5, 0x24, 0), (5, 0x25, 0)
_PROTECTED = (7, 0x27, 0)
Place = tuple[int, int]
"""Target and LUN."""


class _Check(Exception):
    """CHECK CONDITION with this sense: key, ASC, ASCQ."""

    def __init__(self, key: int, asc: int, ascq: int) -> None:
        super().__init__(f"{key:x}/{asc:02x}/{ascq:02x}")
        self.sense = bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])


class _BothWays(Exception):
    """Data both ways, which INOUT alone allows."""


class _NoTarget(Exception):
    """There is no such target."""


@dataclass
class ScsiDisk:
    """One disk."""

    blocks: int = 2048
    block_size: int = 512
    serial: str = "scripted"
    read_only: bool = False
    long_commands: bool = True
    """Whether it knows READ CAPACITY(16)."""
    content: bytearray = field(default_factory=bytearray)
    attentions: deque[tuple[int, int, int]] = field(default_factory=deque)
    removable: bool = False
    """An MMC unit: type 5, whose changes are told by unit attentions alone (5.6.6.3.2)."""
    script: deque[tuple[int, int, int]] = field(default_factory=deque)
    """Sense of the commands to come, in place of an answer."""

    def __post_init__(self) -> None:
        self.content = self.content or bytearray(self.blocks * self.block_size)


@dataclass
class Seen:
    """One command as the device saw it."""

    place: Place
    tag: int
    cdb: bytes
    data: bytes
    room: int
    queue: int


class ScsiHost(Model):
    """A SCSI host device with ``disks``, by target and LUN; fields of the configuration by name as keywords."""

    device_id = spec.TYPE
    fields = FIELDS

    def __init__(
        self,
        *,
        disks: dict[Place, ScsiDisk] | None = None,
        features: int = FEATURES,
        queues: int = 1,
        queue_size: int = 64,
        config_length: int = spec.CONFIG_SIZE,
        **fields: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.queue_sizes = (queue_size,) * (spec.REQUESTQ + queues)
        self.disks = {(0, 0): ScsiDisk()} if disks is None else disks
        self.config = bytearray(config_length)
        told = {
            "num_queues": queues,
            "seg_max": 62,
            "max_sectors": 65535,
            "cmd_per_lun": 128,
            "event_info_size": spec.EVENT_SIZE,
            "sense_size": spec.SENSE_SIZE,
            "cdb_size": spec.CDB_SIZE,
            "max_channel": 0,
            "max_target": 255,
            "max_lun": 16383,
            **fields,
        }
        for name, value in told.items():
            if FIELDS[name].end <= config_length:
                self.put(name, value)
        self.requests: list[Seen] = []
        self.tasks: list[tuple[int, Place, int]] = []
        """Task management functions: which, where, the tag."""
        self.always: int | None = None
        self.response: int | None = None
        self.residual: int | None = None
        self.sense_len: int | None = None
        self.listed: int | None = None
        self.written: int | None = None
        self.no_status = False
        self.counts_out = False
        self.hold = False
        self.kept: list[tuple[int, Chain, int, Place, int]] = []
        self.buffers: deque[Chain] = deque()
        """Of the event queue."""
        self.missed = False
        self._sizes: dict[int, bytes] = {}
        """What the driver wrote over in the configuration, by offset."""

    def reset(self) -> None:
        """The device was reset: requests that it kept are gone, sizes are as before, each unit says so once."""
        for offset, before in self._sizes.items():
            self.config[offset : offset + len(before)] = before
        self._sizes.clear()
        self.kept.clear()
        self.buffers.clear()
        self.missed = False
        for disk in self.disks.values():
            disk.attentions = deque([_ATTENTION])

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration, which a driver may do to two fields alone."""
        right = offset in (FIELDS["sense_size"].offset, FIELDS["cdb_size"].offset) and width == 4
        self.device.check("SCSI-01", right, f"{value} was written at {offset}")
        if right:
            self._sizes.setdefault(offset, bytes(self.config[offset : offset + width]))
            super().write_config(offset, width, value)

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Take a chain of any queue; the bytes written, or None where it is kept."""
        if queue == spec.EVENTQ:
            return self._buffer(chain)
        if queue == spec.CONTROLQ:
            return self._control(chain)
        return self._request(queue, chain)

    # --- requests (5.6.6.1) ---------------------------------------------------------------------------------

    def _request(self, queue: int, chain: Chain) -> int | None:
        check = self.device.check
        head, back = spec.REQUEST_SIZE + self.get("cdb_size"), spec.RESPONSE_SIZE + self.get("sense_size")
        elements = [(element.length, element.writable) for element in chain.elements]
        check("SCSI-L06", elements[0] == (head, False), f"the request is {elements[0]}")
        check("SCSI-L06", (back, True) in elements, f"no element is an answer: {elements}")
        place_of_answer = elements.index((back, True))
        data = chain.data()
        lun, tag, attr, prio, crn = struct.unpack_from("<8sQBBB", data)
        check("SCSI-06", (attr, prio, crn) == (0, 0, 0), f"task_attr, prio, crn are {attr, prio, crn}")
        check("SCSI-LUN", lun[0] == 1 and not any(lun[4:]), f"the LUN is {lun.hex()}")
        payload, room = data[head:], chain.room - back
        check("SCSI-INOUT", not (payload and room), "data both ways")
        check("SCSI-SEG", len(elements) - 2 <= self.get("seg_max"), f"{len(elements) - 2} elements of data")
        place = (lun[1], (lun[2] & 0x3F) << 8 | lun[3])
        same = [kept for kept in self.kept if kept[3] == place]
        check("SCSI-02", len(same) < self.get("cmd_per_lun"), f"{len(same) + 1} commands to {place}")
        check("SCSI-TAG", all(kept[4] != tag for kept in self.kept), f"the tag {tag} is taken")
        seen = Seen(place, tag, data[spec.REQUEST_SIZE : head], payload, room, queue)
        self.requests.append(seen)
        answer, found = self._answered(seen)
        if not self.no_status:
            self._put(chain, place_of_answer, answer[:back], found)
        done = back + room + (len(payload) if self.counts_out else 0)
        if self.written is not None:
            done = self.written
        if self.hold:
            self.kept.append((queue, chain, done, place, tag))
            return None
        return done

    def _put(self, chain: Chain, at: int, answer: bytes, found: bytes) -> None:
        self.device.memory.write(chain.elements[at].address, answer)
        for element in chain.elements[at + 1 :]:
            piece, found = found[: element.length], found[element.length :]
            if piece:
                self.device.memory.write(element.address, piece)

    def _answered(self, seen: Seen) -> tuple[bytes, bytes]:
        """The answer with its sense, and the data."""
        found, sense, status, response = b"", b"", int(Status.GOOD), int(Response.OK)
        try:
            if seen.data and seen.room and not f.has(self.device.driver_features, f.Scsi.INOUT):
                raise _BothWays
            found, wanted = self.carry_out(seen)
            if wanted > max(seen.room, len(seen.data)):
                found, response = b"", Response.OVERRUN
        except _Check as refused:
            sense, status = refused.sense, Status.CHECK_CONDITION
        except _BothWays:
            response = Response.FAILURE
        except _NoTarget:
            response = Response.BAD_TARGET
        moved = len(seen.data) if seen.data and not sense else min(len(found), seen.room)
        residual = max(seen.room, len(seen.data)) - moved
        status = status if self.always is None else self.always
        response = int(response) if self.response is None else self.response
        residual = residual if self.residual is None else self.residual
        length = len(sense) if self.sense_len is None else self.sense_len
        return struct.pack("<IIHBB", length, residual & 0xFFFF_FFFF, 0, status, response) + sense, found[
            : seen.room
        ]

    def carry_out(self, seen: Seen) -> tuple[bytes, int]:
        """What an honest device does; the data, and the bytes that the CDB asks for."""
        target, number = seen.place
        opcode, cdb = seen.cdb[0], seen.cdb
        if all(place[0] != target for place in self.disks):
            raise _NoTarget(target)
        disk = self.disks.get(seen.place)
        if disk is not None and disk.script and opcode != Opcode.REPORT_LUNS:
            raise _Check(*disk.script.popleft())
        if opcode == Opcode.INQUIRY:
            return self._inquiry(disk, cdb), int.from_bytes(cdb[3:5], "big")
        if opcode == Opcode.REPORT_LUNS:
            if number:
                raise _Check(*_NO_UNIT)
            return self._luns(target), int.from_bytes(cdb[6:10], "big")
        if disk is None:
            raise _Check(*_NO_UNIT)
        if disk.attentions:
            raise _Check(*disk.attentions.popleft())
        return self._of_disk(disk, seen)

    def _inquiry(self, disk: ScsiDisk | None, cdb: bytes) -> bytes:
        if cdb[1] & 1:
            if disk is None:
                raise _Check(*_BAD_FIELD)
            name = disk.serial.encode()
            pages = {0x00: bytes([0x00, 0x80, 0x83]), 0x80: name, 0x83: bytes([2, 0, 0, len(name)]) + name}
            if cdb[2] not in pages:
                raise _Check(*_BAD_FIELD)
            payload = pages[cdb[2]]
            return bytes([0, cdb[2], 0, len(payload)]) + payload
        kind = 0x7F if disk is None else 0x05 * disk.removable
        return (
            bytes([kind, 0x80 * (disk is not None and disk.removable), 5, 2, 31, 0, 0, 2])
            + b"UVIRTIO SCRIPTED DISK   0.2 "
        )

    def _luns(self, target: int) -> bytes:
        numbers = [0, *sorted({number for where, number in self.disks if where == target} - {0}, reverse=True)]
        entries = b"".join(
            bytes([0x40 | number >> 8 if number > 255 else 0, number & 0xFF, *bytes(6)]) for number in numbers
        )
        length = len(entries) if self.listed is None else self.listed
        return struct.pack(">I4x", length) + entries

    def _of_disk(self, disk: ScsiDisk, seen: Seen) -> tuple[bytes, int]:
        opcode, cdb = seen.cdb[0], seen.cdb
        if opcode in (Opcode.TEST_UNIT_READY, Opcode.SYNCHRONIZE_CACHE_10):
            return b"", 0
        if opcode == Opcode.READ_CAPACITY_10:
            return struct.pack(">II", min(disk.blocks - 1, 0xFFFF_FFFF), disk.block_size), 8
        if opcode == Opcode.SERVICE_ACTION_IN_16 and disk.long_commands:
            told = struct.pack(">QIBBB17x", disk.blocks - 1, disk.block_size, 0, 0, 0x80)
            return told, int.from_bytes(cdb[10:14], "big")
        if opcode == Opcode.MODE_SENSE_6:
            page = bytes([0x08, 0x12, 0x04, *bytes(17)])
            return bytes([3 + len(page), 0, 0x80 * disk.read_only, 0]) + page, cdb[4]
        if opcode in (Opcode.READ_10, Opcode.WRITE_10):
            block, blocks = struct.unpack_from(">2xIxH", cdb)
        elif opcode in (Opcode.READ_16, Opcode.WRITE_16):
            block, blocks = struct.unpack_from(">2xQI", cdb)
        else:
            raise _Check(*_NO_OPCODE)
        return self._transfer(disk, seen, block, blocks)

    def _transfer(self, disk: ScsiDisk, seen: Seen, block: int, blocks: int) -> tuple[bytes, int]:
        at, end = block * disk.block_size, (block + blocks) * disk.block_size
        if block + blocks > disk.blocks:
            raise _Check(*_BEYOND)
        if seen.cdb[0] in (Opcode.READ_10, Opcode.READ_16):
            return bytes(disk.content[at:end]), end - at
        if disk.read_only:
            raise _Check(*_PROTECTED)
        self.device.check("SCSI-DATA", len(seen.data) == end - at, f"{len(seen.data)} bytes for {blocks} blocks")
        if len(seen.data) >= end - at:
            disk.content[at:end] = seen.data[: end - at]
        return b"", end - at

    def release(self, order: Sequence[int] | None = None) -> None:
        """Complete what was kept, in this order of it; then what comes is answered at once."""
        kept, self.kept, self.hold = self.kept, [], False
        for place in range(len(kept)) if order is None else order:
            queue, chain, done, _, _ = kept[place]
            self.device.complete(queue, chain, done)

    # --- control (5.6.6.2) ----------------------------------------------------------------------------------

    def _control(self, chain: Chain) -> int:
        data = chain.data()
        kind, task, lun, tag = struct.unpack_from("<II8sQ", data.ljust(spec.TMF_SIZE, b"\0"))
        known = kind == Control.TMF and len(data) == spec.TMF_SIZE and chain.room == 1
        self.device.check("SCSI-TMF", known, f"type {kind}, {len(data)} bytes, {chain.room} for the response")
        if not known or self.no_status:
            return 0
        place = (lun[1], (lun[2] & 0x3F) << 8 | lun[3])
        self.tasks.append((task, place, tag))
        response = self._managed(task, place, tag) if self.response is None else self.response
        self.device.memory.write(chain.writable[0].address, bytes([response]))
        return 1

    def _managed(self, task: int, place: Place, tag: int) -> int:
        if task == Task.I_T_NEXUS_RESET:
            hit = [one for one in self.disks if one[0] == place[0]]
        elif all(one[0] != place[0] for one in self.disks):
            return Response.BAD_TARGET
        elif place not in self.disks:
            return Response.INCORRECT_LUN
        else:
            hit = [place]
        if task == Task.CLEAR_ACA:
            return Response.FUNCTION_REJECTED
        if task in (Task.QUERY_TASK, Task.QUERY_TASK_SET):
            asked = (place, tag)[: 1 + (task == Task.QUERY_TASK)]
            held = [kept for kept in self.kept if kept[3 : 3 + len(asked)] == asked]
            return Response.FUNCTION_SUCCEEDED if held else Response.OK
        if task in (Task.I_T_NEXUS_RESET, Task.LOGICAL_UNIT_RESET):
            for one in hit:
                self.disks[one].attentions.append(_ATTENTION)
        response = Response.RESET if task in (Task.I_T_NEXUS_RESET, Task.LOGICAL_UNIT_RESET) else Response.ABORTED
        ended = [kept for kept in self.kept if kept[3] in hit and (task != Task.ABORT_TASK or kept[4] == tag)]
        self.kept = [kept for kept in self.kept if kept not in ended]
        for queue, chain, done, _, _ in ended:
            answer = next(element for element in chain.elements if element.writable)
            self.device.memory.write(answer.address, struct.pack("<IIHBB", 0, 0, 0, 0, response))
            self.device.complete(queue, chain, done)
        return Response.OK

    # --- events (5.6.6.3) -----------------------------------------------------------------------------------

    def _buffer(self, chain: Chain) -> int | None:
        whole = not chain.readable and chain.room >= spec.EVENT_SIZE
        self.device.check("SCSI-11", whole, f"an event buffer of {chain.room} bytes")
        self.device.check("SCSI-10", chain.room >= self.get("event_info_size"), f"{chain.room} bytes of event")
        if self.missed:
            self.missed = False
            self.device.memory.write(chain.writable[0].address, struct.pack("<I8xI", spec.EVENTS_MISSED, 0))
            return spec.EVENT_SIZE
        self.buffers.append(chain)
        return None

    def tell(self, event: int, place: Place, reason: int) -> None:
        """Send an event that the driver asked for; without a buffer it is lost, and the next buffer says so."""
        wanted = f.Scsi.CHANGE if event == EventType.PARAM_CHANGE else f.Scsi.HOTPLUG
        if not f.has(self.device.driver_features, wanted):
            return
        if not self.buffers:
            self.device.fetch(spec.EVENTQ)
        if not self.buffers:
            self.missed = True
            return
        target, number = place
        lun = bytes([1, target, 0x40 | number >> 8 if number > 255 else 0, number & 0xFF, 0, 0, 0, 0])
        chain = self.buffers.popleft()
        self.device.memory.write(chain.writable[0].address, struct.pack("<I8sI", event, lun, reason))
        self.device.complete(spec.EVENTQ, chain, spec.EVENT_SIZE)

    def plug(self, place: Place, disk: ScsiDisk) -> None:
        """The host adds a disk."""
        for where, other in self.disks.items():
            if where[0] == place[0]:
                other.attentions.append(_LISTS_CHANGED)
        disk.attentions.extend([_ATTENTION, _LISTS_CHANGED])
        self.disks[place] = disk
        self.tell(EventType.TRANSPORT_RESET, place, ResetReason.RESCAN)

    def unplug(self, place: Place) -> None:
        """The host removes a disk."""
        del self.disks[place]
        self.tell(EventType.TRANSPORT_RESET, place, ResetReason.REMOVED)

    def grow(self, place: Place, blocks: int) -> None:
        """The host gives a disk another size."""
        disk = self.disks[place]
        disk.blocks = blocks
        disk.content = disk.content[: blocks * disk.block_size].ljust(blocks * disk.block_size, b"\0")
        disk.attentions.append(_CAPACITY_CHANGED)
        if not disk.removable:
            self.tell(EventType.PARAM_CHANGE, place, 0x092A)

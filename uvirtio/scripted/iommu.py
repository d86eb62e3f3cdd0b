"""An IOMMU (5.13) made of Python: endpoints, domains and mappings, and nothing that is translated.

Lies: ``garbled`` (statuses are others), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import iommu as spec
from uvirtio.spec.iommu import Request, Status
from uvirtio.spec.layout import by_name, size

_PROBE_SIZE = 64
_RESERVED = (
    bytes([1, 0, 20, 0, 1, 0, 0, 0]) + (0xFEE00000).to_bytes(8, "little") + (0xFEEFFFFF).to_bytes(8, "little")
)
"""A property: the region of messages (5.13.6.7.1)."""


@dataclass
class Domain:
    """One address space."""

    endpoints: set[int] = field(default_factory=set)
    mappings: dict[tuple[int, int], int] = field(default_factory=dict)
    """By first and last address."""


class Iommu(Answering):
    """An IOMMU in front of some endpoints."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    features = f.mask(
        *(f.Iommu.INPUT_RANGE, f.Iommu.DOMAIN_RANGE, f.Iommu.MAP_UNMAP, f.Iommu.PROBE, f.Iommu.BYPASS_CONFIG)
    )
    queue_sizes = (64, 64)

    def __init__(self, *, endpoints: frozenset[int] = frozenset({0})) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        told = {
            "page_size_mask": -(1 << 12) & ((1 << 64) - 1),
            "input_range_end": (1 << 39) - 1,
            "domain_range_end": 31,
            "probe_size": _PROBE_SIZE,
            "bypass": 1,
        }
        for name, value in told.items():
            self.put(name, value)
        self.endpoints = endpoints
        self.domains: dict[int, Domain] = {}
        self.buffers: list[Chain] = []

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to ``bypass`` (5.13.4), which a driver may write and nothing else."""
        right = offset == self.fields["bypass"].offset and width == 1 and value in (0, 1)
        self.device.check("IOMMU-02", right, f"{value} was written at {offset}")
        if right:
            self.config[offset] = value

    def reset(self) -> None:
        """The device was reset: nothing is attached."""
        self.domains.clear()
        self.buffers.clear()

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""
        if queue == spec.EVENTQ:
            self.buffers.clear()

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Keep a buffer for faults, or answer a request."""
        if queue == spec.EVENTQ:
            self.buffers.append(chain)
            return None
        whole = len(data) >= spec.ATTACH.size and chain.room >= spec.TAIL_SIZE
        self.device.check("IOMMU-01", whole, f"a request of {len(data)} bytes, room for {chain.room}")
        if not whole:
            return b""
        body, status = b"", Status.UNSUPP
        if data[0] == Request.PROBE and len(data) == spec.PROBE.size:
            status = Status.OK if spec.PROBE.unpack(data)[1] in self.endpoints else Status.NOENT
            room = chain.room - spec.TAIL_SIZE
            body = (_RESERVED if status == Status.OK else b"").ljust(room, b"\0")[:room]
        elif data[0] in (Request.ATTACH, Request.DETACH):
            status = self._endpoint(data)
        elif data[0] in (Request.MAP, Request.UNMAP):
            status = self._mapping(data)
        return body + bytes([status, 0, 0, 0])

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """Another status."""
        return answer[:-4] + bytes([answer[-4] ^ Status.DEVERR]) + answer[-3:]

    def _endpoint(self, data: bytes) -> Status:
        _, number, endpoint = data[0], *(int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
        if endpoint not in self.endpoints:
            return Status.NOENT
        if data[0] == Request.ATTACH:
            for domain in self.domains.values():
                domain.endpoints.discard(endpoint)
            self.domains.setdefault(number, Domain()).endpoints.add(endpoint)
            return Status.OK
        found = self.domains.get(number)
        if found is None or endpoint not in found.endpoints:
            return Status.INVAL
        found.endpoints.discard(endpoint)
        if not found.endpoints:
            del self.domains[number]
        return Status.OK

    def _mapping(self, data: bytes) -> Status:
        number, first, last = spec.UNMAP.unpack(data[: spec.UNMAP.size])[1:]
        domain = self.domains.get(number)
        if domain is None:
            return Status.NOENT
        inside = [one for one in domain.mappings if one[0] <= last and first <= one[1]]
        if data[0] == Request.MAP:
            if inside or first > last:
                return Status.INVAL
            domain.mappings[first, last] = spec.MAP.unpack(data)[4]
            return Status.OK
        if any(one[0] < first or one[1] > last for one in inside):
            return Status.RANGE
        for one in inside:
            del domain.mappings[one]
        return Status.OK

"""The data path of an IOMMU (5.13): an endpoint is asked about; in a machine of our own it is attached and mapped.

The endpoint is the IOMMU's own function: its requests are never translated, so nothing else is cut off. BYPASS and
BYPASS_CONFIG are accepted where they are offered, because a driver that does not leaves every endpoint without
access to memory (5.13.6.3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import ANSWER_MAX, QUEUE_SIZE, UNTOUCHED, Ask, AskingPath, Room, in_words
from uvirtio.spec import features as f
from uvirtio.spec import iommu as spec
from uvirtio.spec.iommu import Request, Status
from uvirtio.spec.layout import by_name

_FIELDS: Final = by_name(spec.CONFIG)
_PCI: Final = re.compile(r"[0-9a-f]{4,}:([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
PROBE_MAX: Final = ANSWER_MAX - spec.TAIL_SIZE
"""Bytes of properties that there is room for; an endpoint has few."""
_PHYSICAL: Final = 1 << 20
"""Where mappings lead, which nothing here follows."""


def status_in_words(status: int) -> str:
    """The status of a request.

    Args:
        status: 8 bits.
    """
    return f"status {in_words(status, Status, 'no status of 5.13.6')}"


def request(kind: Request, body: bytes, *expected: Status) -> Ask:
    """A request that is answered with its tail alone.

    Args:
        kind: Its type.
        body: All of it that the device reads.
        *expected: The statuses that are right.
    """

    def wrong(rooms: Sequence[Room]) -> str | None:
        return _wrong_tail(rooms[-1], expected)

    return Ask(kind.name, spec.REQUESTQ, (body,), (spec.TAIL_SIZE,), wrong)


def _wrong_tail(tail: Room, expected: Sequence[Status]) -> str | None:
    if tail.untouched:
        return UNTOUCHED
    status, *zeros = tail.data
    if status not in expected or any(zeros):
        wanted = " or ".join(one.name for one in expected)
        return f"{status_in_words(status)}, then {bytes(zeros).hex(' ')}; {wanted} and zeros are right"
    return None


def probe(endpoint: int, size: int, *expected: Status) -> Ask:
    """PROBE (5.13.6.7), which changes nothing.

    Args:
        endpoint: Its id, 32 bits.
        size: ``probe_size``.
        *expected: The statuses that are right.
    """

    def wrong(rooms: Sequence[Room]) -> str | None:
        no = _wrong_tail(rooms[1], expected)
        if no is not None or rooms[1].data[0] != Status.OK:
            return no
        return UNTOUCHED if rooms[0].untouched else properties(rooms[0].data)[1]

    body = spec.PROBE.pack(Request.PROBE, endpoint)
    return Ask("PROBE", spec.REQUESTQ, (body,), (size, spec.TAIL_SIZE), wrong)


def properties(data: bytes) -> tuple[list[tuple[int, bytes]], str | None]:
    """An endpoint's properties, as type and value, up to the first of type 0; and what is wrong with the next.

    Args:
        data: What PROBE has written.
    """
    found: list[tuple[int, bytes]] = []
    place = 0
    while place + spec.PROPERTY.size <= len(data):
        kind, length = spec.PROPERTY.unpack_from(data, place)
        place += spec.PROPERTY.size
        if not kind & spec.PROPERTY_TYPE_MASK:
            break
        if place + length > len(data):
            wrong = f"a property of type {kind} and {length} bytes, where {len(data) - place} are left"
            return found, wrong
        found.append((kind & spec.PROPERTY_TYPE_MASK, data[place : place + length]))
        place += length
    return found, None


class IommuPath(AskingPath):
    """Asks about an endpoint; attaches it, maps, unmaps and detaches where that cuts no one off."""

    wanted = f.mask(
        *(f.Iommu.INPUT_RANGE, f.Iommu.DOMAIN_RANGE, f.Iommu.MAP_UNMAP, f.Iommu.PROBE),
        *(f.Iommu.BYPASS, f.Iommu.BYPASS_CONFIG),
    )

    def queues(self) -> list[QueueSpec]:
        """The queue for requests, and that of faults."""
        return [
            QueueSpec(spec.REQUESTQ, "requestq", QUEUE_SIZE),
            QueueSpec(spec.EVENTQ, "eventq", QUEUE_SIZE, owed=False),
        ]

    def exercise(self) -> PathResult:
        """PROBE; ATTACH, MAP, MAP of the same again, UNMAP of a part, UNMAP, DETACH."""
        endpoint, ours = self._endpoint()
        said, odd = [], ""
        if self._device.has(f.Iommu.PROBE):
            (size,) = self._device.read_config(_FIELDS["probe_size"])
            if 0 < size <= PROBE_MAX:
                expected = (Status.OK,) if ours else (Status.OK, Status.NOENT)
                found, tail = self.ask(probe(endpoint, size, *expected))
                known = tail[0] == Status.OK
                what = f"{len(properties(found)[0])} properties" if known else "not known to it"
                said.append(f"endpoint {endpoint:#x}: {what}")
            else:
                odd = f"probe_size is {size} (5.13.4): no endpoint was asked about"
        if not self._around.intrusive:
            said.append("nothing was attached, which would cut an endpoint off")
        elif self._device.has(f.Iommu.MAP_UNMAP):
            said.append(self._translate(endpoint))
        skipped = not self._device.has(f.Iommu.PROBE) and not self._around.intrusive
        return PathResult("; ".join(said), odd, skipped=skipped)

    def _endpoint(self) -> tuple[int, bool]:
        """The id of this function (bus, device, function), and whether it is sure that the IOMMU has it."""
        if self._around.witness is not None:
            for bus in self._around.witness("query-pci"):
                for one in bus["devices"]:
                    if one.get("qdev_id") == self._around.ident:
                        return one["bus"] << 8 | one["slot"] << 3 | one["function"], True
        match = _PCI.fullmatch(self._device.address)
        if match is None:
            return 0, False
        bus_number, slot, function = (int(one, 16) for one in match.groups())
        return bus_number << 8 | slot << 3 | function, False

    def _translate(self, endpoint: int) -> str:
        mask, first = self._device.read_config(_FIELDS["page_size_mask"], _FIELDS["input_range_start"])
        page = mask & -mask
        if not page:
            raise self.fault("has a page_size_mask", "0: no page has a size (5.13.4)", bytes(8))
        domain = 1
        if self._device.has(f.Iommu.DOMAIN_RANGE):
            (domain,) = self._device.read_config(_FIELDS["domain_range_end"])
        start = (first if self._device.has(f.Iommu.INPUT_RANGE) else 0) + 16 * page
        end = start + 4 * page - 1
        if end >> 64:
            what = f"pages of {page:#x} bytes from {first:#x} on: no four of them fit (5.13.4)"
            raise self.fault("has an input range", what, mask.to_bytes(8, "little"))

        def mapping(last: int) -> bytes:
            return spec.MAP.pack(Request.MAP, domain, start, last, _PHYSICAL, spec.READ | spec.WRITE)

        def unmapping(last: int) -> bytes:
            return spec.UNMAP.pack(Request.UNMAP, domain, start, last)

        refused = (Status.INVAL, Status.NOENT)  # 5.13.6.4.1 leaves open which
        for kind, body, expected in (
            (Request.ATTACH, spec.ATTACH.pack(Request.ATTACH, domain, endpoint, 0), (Status.OK,)),
            (Request.MAP, mapping(end), (Status.OK,)),
            (Request.MAP, mapping(end), (Status.INVAL,)),
            (Request.UNMAP, unmapping(end - page), (Status.RANGE,)),
            (Request.UNMAP, unmapping(end), (Status.OK,)),
            (Request.DETACH, spec.DETACH.pack(Request.DETACH, domain, endpoint), (Status.OK,)),
            (Request.DETACH, spec.DETACH.pack(Request.DETACH, domain, endpoint), refused),
        ):
            self.ask(request(kind, body, *expected))
        return f"attached to domain {domain}, mapped, unmapped and detached; what has to be refused was"

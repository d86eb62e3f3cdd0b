"""A virtqueue and the device on its other side, for either ring format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from uvirtio.errors import DeviceBroken, RingCorruption
from uvirtio.memory.access import descriptor_writer
from uvirtio.scripted.memory import ScriptedDma
from uvirtio.scripted.packed import PackedDeviceRing
from uvirtio.scripted.ring import Chain, DeviceRing, Lies
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import make_packed
from uvirtio.virtqueue.split import make_split

A = 0x4000_0000
"""Where buffers are said to be, in tests that never touch their bytes."""


class Rig:
    """``queue`` and ``device``; ``fences`` counts the full fences, ``on_fence`` is called at each.

    ``start``: as if so many chains (split) or slots (packed) had gone through already.
    """

    queue: Any
    device: Any

    def __init__(
        self,
        size: int = 8,
        *,
        format: str = "split",
        indirect: bool = False,
        event_idx: bool = False,
        in_order: bool = False,
        translated: bool = True,
        clamp: bool = False,
        start: int = 0,
        one_region: bool = False,
    ) -> None:
        limit = 1 << 20 if one_region else None
        self.dma = ScriptedDma(translated=translated, contiguous_limit=limit)
        self.fences = 0
        self.on_fence: Callable[[], None] = lambda: None
        make, device = {"split": (make_split, DeviceRing), "packed": (make_packed, PackedDeviceRing)}[format]
        self.queue = make(  # type: ignore[operator]
            3,
            size,
            self.dma,
            RingOptions(
                fence=self.fence,
                indirect=indirect,
                event_idx=event_idx,
                in_order=in_order,
                clamp_used_len=clamp,
                one_region=one_region,
            ),
        )
        self.device = device(  # type: ignore[operator]
            self.dma.memory,
            size,
            *self.queue.addresses,
            indirect=indirect,
            event_idx=event_idx,
            in_order=in_order,
            lies=Lies(),
            check_buffers=False,
        )
        self.desc = self.queue._desc
        if start:
            (self._split_from if format == "split" else self._packed_from)(start)

    def _split_from(self, start: int) -> None:
        self.queue._laid = self.queue.published = self.queue.reaped = start
        self.queue._avail[1] = start & 0xFFFF
        self.device.last_avail = self.device.used_idx = start & 0xFFFF
        self.device._seen_idx = self.device._signalled = start & 0xFFFF
        self.device.write_used_idx(start)

    def _packed_from(self, start: int) -> None:
        queue, device = self.queue, self.device
        queue._next_slot = queue.slots_published = queue.slots_reaped = start
        device.next_slot = device.used_slot = device._signalled = start
        for slot in range(max(0, start - queue.size), start):
            device.write_used_slot(slot, 0, 0, device.used_flags(slot))
        queue.want_interrupts(True)

    def fence(self) -> None:
        self.fences += 1
        self.on_fence()

    def out(self, *cookies: Any, room: int = 64) -> list[Chain]:
        """Post one writable chain for each cookie, and let the device take them."""
        for cookie in cookies:
            self.queue.add((), [(A, room)], cookie)
        self.queue.publish()
        return list(self.device.pop_all())

    def visible(self) -> bytes:
        """All that the driver shows the device: descriptors, and the available ring or its events."""
        words = self.queue._avail if self.queue.kind == "split" else self.queue._mine
        return bytes(self.desc.cast("B")) + bytes(words.cast("B"))

    @property
    def avail(self) -> memoryview:
        view: memoryview = self.queue._avail
        return view


FORMATS = ("split", "packed")


def rigs(*formats: str, **fixed: bool) -> list[dict[str, Any]]:
    """The arguments of every kind of rig: format, indirect or not, EVENT_IDX or not."""
    combinations = [
        {"format": format, "indirect": i, "event_idx": e}
        for format in formats or FORMATS
        for i in (False, True)
        for e in (False, True)
    ]
    return [c for c in combinations if all(c[name] == value for name, value in fixed.items())]


def name_of(value: dict[str, Any]) -> str:
    return "+".join([value["format"], *(name for name, on in value.items() if on is True)])


every_kind = pytest.mark.parametrize("kind", rigs(), ids=name_of)
both = pytest.mark.parametrize("format", FORMATS)


class Spy:
    """A view whose stores and loads go into a trace; one item access is one access of the memory."""

    def __init__(self, view: memoryview, name: str, trace: list[tuple[str, str, int]]) -> None:
        self._view, self._name, self._trace = view, name, trace

    def __getitem__(self, place: int) -> int:
        self._trace.append(("load", self._name, place))
        return self._view[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._trace.append(("store", self._name, place))
        self._view[place] = value

    def release(self) -> None:
        self._view.release()


VIEWS = {
    "split": ("_desc", "_avail", "_ring", "_used", "_elements", "_table_words"),
    "packed": ("_desc", "_flags", "_halves", "_mine", "_theirs", "_table_words"),
}


def traced(rig: Rig, *, weak: bool = False) -> list[tuple[str, str, int]]:
    """From now on: every access of the queue to shared memory, and its fences, in their order."""
    trace: list[tuple[str, str, int]] = []
    queue = rig.queue
    for name in VIEWS[queue.kind]:
        view = getattr(queue, name)
        if view is not None:
            setattr(queue, name, Spy(view, name, trace))
    if queue.kind == "split":
        queue._split_views()
    if hasattr(queue, "_put"):
        queue._put = descriptor_writer(queue._desc)
    rig.on_fence = lambda: trace.append(("fence", "full", 0))
    if weak:
        queue._order = lambda: trace.append(("fence", "order", 0))
    return trace


def corrupt(rig: Rig, seen: object = None) -> RingCorruption:
    """The next reap fails, and everything after it at once."""
    with pytest.raises(RingCorruption) as caught:
        rig.queue.reap()
    error = caught.value
    assert error.expected and error.remedy
    if seen is not None:
        assert error.seen == seen
    assert rig.queue.broken
    for call in (
        lambda: rig.queue.reap(),
        lambda: rig.queue.add((), [(A, 1)], None),
        lambda: rig.queue.publish(),
        lambda: rig.queue.pending(),
        lambda: rig.queue.want_interrupts(True),
        lambda: rig.queue.want_interrupts(False),
    ):
        with pytest.raises(DeviceBroken):
            call()
    rig.dma.memory.assert_clean()
    return error

"""One transmit queue (5.1.6.2): slots that frames are copied into, and how many of them the device has taken."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from operator import setitem
from typing import Any

from uvirtio.device import Device, Queue
from uvirtio.drivers.net.buffers import SLOT_MIN, Buffers, slot_size
from uvirtio.drivers.net.frame import WHOLE, Frame, FrameData, check_header
from uvirtio.drivers.net.receive import Layout
from uvirtio.errors import BadFrame, UvirtioError
from uvirtio.spec import net as spec
from uvirtio.virtqueue import SgEntry

_MEMORY = 1 << 20
"""Bytes of buffers of one queue, at most; longer frames have fewer slots."""

_FEW = 8
"""Below as many frames at once each is copied by itself."""

_ALL = slice(None)
_store: Any = setitem  # its types are of lists and mappings


class Transmitter:
    """Copies frames into free slots and gives them to the device, as many as there is room for."""

    def __init__(self, device: Device, queue: Queue, layout: Layout, *, longest: int, mtu: int | None) -> None:
        """Make the slots.

        Args:
            device: The device.
            queue: A transmit queue of it.
            layout: Of the header, which is the same in both directions (5.1.6.2.1).
            longest: Bytes of the longest frame that can be sent.
            mtu: The device's limit of a frame without its Ethernet header; None: it has none.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the slots.
        """
        self.longest = longest
        self.frames = self.bytes = 0
        self._device, self._queue, self._layout, self._features = device, queue, layout, device.features
        # 5.1.4.2: no more than the MTU and the Ethernet header. A VLAN's tag belongs to the header.
        self._untagged = longest if mtu is None else min(longest, mtu + spec.ETHERNET_HEADER)
        size = slot_size(layout.header + longest)
        # Descriptors that are written once need a slot that is one element.
        self._fixed = size <= max(device.dma.contiguous_limit, SLOT_MIN) and not layout.apart
        count = queue.ring.size
        if not self._fixed:
            elements = -(-size // max(device.dma.contiguous_limit, 1)) + layout.apart
            count //= queue.ring.needs(max(elements, 2))
        self.count = max(1, min(count, _MEMORY // size))
        self._buffers = Buffers(device, self.count, size, layout.header)
        self._marked: set[int] = set()  # slots whose header is not all zero
        self._free = array("H", range(self.count))
        if self._fixed:
            chains: list[tuple[list[SgEntry], tuple[()]]] = []
            for slot in range(self.count):
                chains.append((self._buffers.runs(slot, layout.header + longest, apart=False), ()))
            self._slots = queue.set_fixed(chains)
        self._lengths = [longest] * self.count  # of the frame in each fixed slot

    def quiet(self) -> None:
        """Suppress the queue's interrupts: what was sent is noticed when there is something to send."""
        self._queue.ring.want_interrupts(False)

    @property
    def out(self) -> int:
        """Frames that the device has and has not used."""
        return self._queue.ring.in_flight

    def reap(self) -> int:
        """Take back what the device has used; return how many slots are free."""
        # 5.1.6.1: the used length is not looked at.
        try:
            if self._fixed:
                self._free += self._queue.reap_slots()
            else:
                self._free.extend(done.cookie for done in self._queue.reap())
        except BaseException:
            self._recover()
            raise
        return len(self._free)

    def _recover(self) -> None:
        """Put the books in order after an exception of a signal handler's: by those of the ring.

        A slot that is free may hold anything: its header is written with the next frame, and its length.
        """
        if self._fixed:
            with suppress(UvirtioError):  # of a ring that is broken: the caller has an exception already
                self._queue.show(self._slots.laid)
        out = self._slots.out() if self._fixed else self._queue.ring.cookies()
        self._marked, self._lengths = {*range(self.count)}, [0] * self.count
        self._free = array("H", sorted({*range(self.count)}.difference(out)))

    def check(self, frames: Sequence[FrameData | Frame]) -> None:
        """Check that all frames may be sent, before the first is.

        Raises:
            BadFrame: One is too short, too long, or has a header that asks for what was not negotiated.
        """
        if not frames:
            return
        lengths = set(map(len, frames))
        if min(lengths) < spec.ETHERNET_HEADER or max(lengths) > self._untagged:
            for frame in frames:
                self._check_length(frame, len(frame))
        if Frame in set(map(type, frames)):
            for frame in frames:
                if isinstance(frame, Frame) and frame.header != WHOLE:
                    check_header(frame.header, len(frame), self._features)

    def _check_length(self, frame: FrameData | Frame, length: int) -> None:
        data = frame.data if isinstance(frame, Frame) else frame
        tagged = bytes(data[spec.MACS_SIZE : spec.ETHERNET_HEADER]) == spec.ETHERTYPE_VLAN.to_bytes(2, "big")
        cut = isinstance(frame, Frame) and bool(frame.header.gso_type)
        most = self.longest if cut else min(self.longest, self._untagged + spec.VLAN_TAG * tagged)
        if not spec.ETHERNET_HEADER <= length <= most:
            raise BadFrame(
                f"{self._device.address} cannot send a frame of {length} bytes",
                seen=f"{length} bytes",
                expected=f"{spec.ETHERNET_HEADER}..{most} bytes, without the checksum at the end (5.1.4.2)",
                remedy="a longer one needs a larger MTU of the device, or max_frame= where it tells none",
            )

    def send(self, frames: Sequence[FrameData | Frame]) -> int:
        """Send frames that were checked, as many as there are free slots, without waiting.

        Returns:
            How many the device was given, from the first on.
        """
        count = min(len(frames), self.reap())
        if not count:
            return 0
        try:
            self._send(frames, count)
        except BaseException:
            self._recover()
            raise
        return count

    def _send(self, frames: Sequence[FrameData | Frame], count: int) -> None:
        these = frames if count == len(frames) else frames[:count]
        slots, self._free = self._free[:count], self._free[count:]
        lengths = list(map(len, these))
        plain = self._copy(slots, these, lengths)
        if self._fixed:
            self._size(slots, lengths)
            self._queue.submit(slots)
        else:
            self._add(slots, lengths)
        if not plain:
            self._marked.update(slot for slot, one in zip(slots, these, strict=True) if _marks(one))
        self.frames += count
        self.bytes += sum(lengths)

    def _size(self, slots: array[int], lengths: list[int]) -> None:
        """Give fixed slots the lengths of their frames, where they have others."""
        now = self._lengths
        if [*map(now.__getitem__, slots)] != lengths:
            start = self._layout.header
            self._slots.resize(slots, [start + length for length in lengths])
            for slot, length in zip(slots, lengths, strict=True):
                now[slot] = length

    def _copy(self, slots: array[int], frames: Sequence[Any], lengths: Sequence[int]) -> bool:
        """Copy frames into their slots; whether none has a header of its own."""
        uniform = len(frames) >= _FEW and lengths.count(lengths[0]) == len(frames)
        if uniform and not self._marked and set(map(type, frames)) == {bytes}:
            views = map(self._buffers.frames(lengths[0]).__getitem__, slots)
            deque(map(_store, views, repeat(_ALL), frames), maxlen=0)
            return True
        write, start, plain = self._buffers.write, self._layout.header, True
        for slot, frame in zip(slots, frames, strict=True):
            if isinstance(frame, Frame):
                write(slot, 0, frame.header.pack())
                plain = plain and not _marks(frame)
                write(slot, start, frame.data)
            else:
                if slot in self._marked:
                    write(slot, 0, bytes(start))
                write(slot, start, frame)
            self._marked.discard(slot)
        return plain

    def _add(self, slots: array[int], lengths: Sequence[int]) -> None:
        queue, layout = self._queue, self._layout
        for slot, length in zip(slots, lengths, strict=True):
            queue.add(self._buffers.runs(slot, layout.header + length, apart=layout.apart), (), slot)
        queue.kick()

    def wait(self, ready: Callable[[], bool], timeout: float, what: str) -> bool:
        """Wait for the device to use something; that it does not is no fault of its own (5.1.6.2).

        Returns:
            Whether ``ready()`` became true in time.
        """
        ring = self._queue.ring
        ring.want_interrupts(True)
        try:
            return self._device.wait(ready, timeout=timeout, what=what, owed=False)
        finally:
            if ring.broken is None:
                ring.want_interrupts(False)


def _marks(frame: FrameData | Frame) -> bool:
    return isinstance(frame, Frame) and frame.header != WHOLE

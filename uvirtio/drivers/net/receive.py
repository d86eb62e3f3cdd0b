"""One receive queue (5.1.6.3, 5.1.6.4): slots that are always with the device, and frames joined from them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from uvirtio.device import Device, Queue
from uvirtio.drivers.net.buffers import SLOT_MIN, Buffers, slot_size
from uvirtio.errors import QueueFull
from uvirtio.spec import net as spec

_ROOM_MERGED = spec.FRAME_MAX + spec.HEADER_SIZE
"""Bytes of buffers that are always with a device that merges them: a frame that is to be cut in segments fits."""

_NUM_BUFFERS = slice(10, 12)
_ONE_BUFFER = 1 << 16  # bytes 8 to 11 of a header that has one buffer and no csum_offset

_FEW = 8
"""Below as many buffers at once each is looked at by itself."""


class Layout(NamedTuple):
    """How frames lie in the buffers, as the features have it."""

    header: int
    """Bytes of the header (5.1.6.1)."""
    merged: bool
    """A frame may take several buffers (MRG_RXBUF)."""
    apart: bool
    """The header needs an element of its own (5.1.6.8)."""
    offloads: bool
    """Frames may come with a checksum or segments to complete (GUEST_CSUM and what needs it)."""


class Receiver:
    """Keeps one receive queue full, and gives out what came, as bytes of header and frame.

    A device that lies costs a frame, never more: pieces that do not fit together are dropped and counted.
    """

    def __init__(
        self, device: Device, queue: Queue, layout: Layout, longest: int, note: Callable[[str], None]
    ) -> None:
        """Make the buffers and write their descriptors; ``post`` gives them to the device.

        Args:
            device: The device.
            queue: A receive queue of it.
            layout: How frames lie in the buffers.
            longest: Bytes of the longest frame that has to fit one buffer, where they are not merged.
            note: Counts what the device should not have done.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the buffers.
            QueueFull: The ring has no room for a buffer.
        """
        self.dropped: Counter[str] = Counter()
        """Frames that came and could not be used: how often, by the reason."""
        self.frames = self.bytes = 0
        self.always = False
        """Whether interrupts stay on."""
        self._queue, self._layout, self.header, self._note = queue, layout, layout.header, note
        size = SLOT_MIN
        count = queue.ring.size
        if layout.merged:
            while count * size < _ROOM_MERGED:
                size *= 2
        else:
            size = slot_size(layout.header + longest)
        self._longest = spec.FRAME_MAX if layout.merged else size - layout.header
        count = self._fitting(count, size, device)
        self._buffers = Buffers(device, count, size, layout.header)
        chains = [self._buffers.runs(slot, size, apart=layout.apart) for slot in range(count)]
        self._slots = queue.set_fixed([((), chain) for chain in chains])
        self._numbers = array("H", range(count))
        self._pieces: list[bytes] = []  # of a frame that has not come whole
        self._missing = 0  # buffers of it that are to come
        self._useless = ""  # why they are dropped

    def _fitting(self, count: int, size: int, device: Device) -> int:
        """Number of slots whose chains fit the ring at the same time."""
        limit = device.dma.contiguous_limit
        elements = (1 if size <= max(limit, SLOT_MIN) else -(-size // limit)) + self._layout.apart
        fits = count // self._queue.ring.needs(elements)
        if not fits:
            raise QueueFull(
                f"{self._queue.name} of {device.address} has no room for one frame",
                seen=f"{count} descriptors",
                expected=f"{elements} or more",
                remedy="give the device a larger queue",
            )
        return fits

    def post(self) -> None:
        """Give all buffers to the device, once it is running."""
        self.listen(False)
        self._queue.submit(range(self._slots.count))

    def listen(self, on: bool) -> None:
        """Enable or suppress the queue's interrupts: a device that is polled need not make one for each frame.

        Args:
            on: Enable them, before a check whether something has come, and a wait.
        """
        ring = self._queue.ring
        if ring.broken is None:
            ring.want_interrupts(on or self.always)

    def waits(self) -> bool:
        """Whether something has come."""
        return self._queue.ring.pending()

    def take(self) -> list[bytes]:
        """Take what came, without waiting, and give the buffers back.

        Returns:
            Header and frame of each, whole.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        try:
            return self._wholes(self._queue.reap_slots())
        except BaseException:
            self._recover()
            raise

    def take_frames(self) -> list[bytes]:
        """Take what came as frames without headers: what Receiver.take does, in a hurry.

        The short way is for buffers that hold one whole frame of the same length each, with nothing to complete.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        try:
            return self._in_a_hurry(self._queue.reap_slots())
        except BaseException:
            self._recover()
            raise

    def _recover(self) -> None:
        """Give all buffers back after an exception of a signal handler's; what was in them is lost.

        So is a frame of which pieces were: devices show those of one frame together, so that the next buffer
        begins another one.
        """
        self._pieces, self._missing = [], 0
        self._queue.post_idle()

    def _in_a_hurry(self, back: array[int]) -> list[bytes]:
        if len(back) < _FEW or self._missing:
            return self._careful(back)
        runs = self._runs(back)
        length = self._slots.written[back[0]]
        if not 0 < length - self.header <= self._longest or not all(self._is_plain(run, length) for run in runs):
            return self._careful(back)
        views = self._buffers.frames(length - self.header)
        made: list[bytes] = []
        for first, end in runs:
            made += map(bytes, views[first:end])
        if not made:
            return self._careful(back)
        self._queue.submit(back)
        self.frames += len(made)
        self.bytes += (length - self.header) * len(made)
        return made

    def _runs(self, back: array[int]) -> list[tuple[int, int]]:
        """These slots as runs of neighbours, at most two of them; empty where they came in another order."""
        first, count = back[0], self._slots.count
        over = max(0, first + len(back) - count)
        ahead = len(back) - over
        if back[:ahead] != self._numbers[first : first + ahead] or back[ahead:] != self._numbers[:over]:
            return []
        return [(first, first + ahead), (0, over)] if over else [(first, first + ahead)]

    def _is_plain(self, run: tuple[int, int], length: int) -> bool:
        """Whether these slots hold one whole frame of this length each, with nothing to complete."""
        first, end = run
        count = end - first
        if self.header < spec.HEADER_SIZE or self._slots.written[first:end].count(length) != count:
            return False
        early, late = self._buffers.heads(first, end)
        return early.count(0) == count and (not self._layout.merged or late.count(_ONE_BUFFER) == count)

    def _careful(self, back: array[int]) -> list[bytes]:
        start = self.header
        return [whole[start:] for whole in self._wholes(back)]

    def _wholes(self, back: array[int]) -> list[bytes]:
        """Header and frame of each that these slots complete; the slots go back to the device."""
        if not back:
            return []
        written, copy = self._slots.written, self._buffers.copy
        copies = [copy(slot, written[slot]) for slot in back]
        self._queue.submit(back)  # the device has its buffers back before anything else is done
        made = [whole for one in copies if (whole := self._join(one)) is not None]
        self.frames += len(made)
        self.bytes += sum(map(len, made)) - len(made) * self.header
        return made

    # --- joining (5.1.6.4) ----------------------------------------------------------------------------------

    def _join(self, piece: bytes) -> bytes | None:
        """Take one buffer's bytes in; the frame that it completes, or None."""
        if self._missing:
            return self._go_on(piece)
        header = self._layout.header
        if len(piece) <= header:
            return self._dropped("shorter than its header")
        if (piece[0] or piece[1]) and not self._layout.offloads:
            self._note("a header has flags or segments that were not negotiated (5.1.6.4.1)")
        count = 1
        if self._layout.merged:  # else devices do not fill it in, whatever 5.1.6.4.1 says
            count = int.from_bytes(piece[_NUM_BUFFERS], "little")
        if not 1 <= count <= self._slots.count:
            return self._dropped("num_buffers is impossible")
        if count == 1:
            if len(piece) - header > self._longest:
                return self._dropped("longer than a frame can be")
            return piece
        self._pieces, self._missing, self._useless = [piece], count - 1, ""
        return None

    def _go_on(self, piece: bytes) -> bytes | None:
        self._missing -= 1
        self._pieces.append(piece)
        if not piece:
            self._useless = "a piece of it is empty"
        if sum(map(len, self._pieces)) - self._layout.header > self._longest:
            self._useless, self._pieces = "longer than a frame can be", []
        if self._missing:
            return None
        pieces, self._pieces = self._pieces, []
        return self._dropped(self._useless) if self._useless else b"".join(pieces)

    def _dropped(self, why: str) -> bytes | None:
        self.dropped[why] += 1
        return None

"""The rings (2.7, 2.8) and their fixed slots against memory that a device may write as it likes.

The device's side is raw stores into the areas, honest or not. What the queue delivers is compared with what these
stores say by the standard, which for a split ring is worked out here a second time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar

from fuzzers.target import Feed, Lie, Target
from uvirtio.errors import DeviceBroken, RingCorruption, UvirtioError
from uvirtio.spec import ring
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import PackedQueue, make_packed
from uvirtio.virtqueue.slots import fixed_slots
from uvirtio.virtqueue.split import SplitQueue, make_split

_PAGE = 4096
_GUARD = b"\xa5" * 64
_BUFFERS = 0x4000_0000
_LENGTHS = (0, 1, 15, 64, 65, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_IDS = (0, 1, 7, 8, 0x8000, 0xFFFF, 0x1_0000, 0x1_0003, 0x8000_0001, 0xFFFF_FFFF)
_STEPS = 64


class _Block:
    """A ``Block`` between two guards."""

    def __init__(self, size: int, address: int) -> None:
        self.size = -(-size // _PAGE) * _PAGE
        self._whole = bytearray(len(_GUARD) * 2 + size)
        self._whole[: len(_GUARD)] = self._whole[-len(_GUARD) :] = _GUARD
        self._all = memoryview(self._whole)
        self.view = self._all[len(_GUARD) : len(_GUARD) + size]
        self.contiguous = True
        self._address = address
        self.closed = False

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(self._address + offset, length)]

    def pfns(self) -> list[int]:
        return []

    def check(self) -> None:
        if not self._whole.startswith(_GUARD) or not self._whole.endswith(_GUARD):
            raise Lie("memory beside a block was written to")

    def close(self) -> None:
        if not self.closed:
            self.check()
            self.closed = True
            self.view.release()
            self._all.release()


class _Dma:
    """A ``DmaSpace`` of such blocks."""

    def __init__(self) -> None:
        self.translated = True
        self.contiguous_limit = 1 << 30
        self.blocks: list[_Block] = []

    def alloc(self, size: int) -> _Block:
        block = _Block(size, 0x1_0000_0000 + (len(self.blocks) << 24))
        self.blocks.append(block)
        return block

    def pin(self, size: int) -> _Block:
        return self.alloc(size)

    def close(self) -> None:
        for block in self.blocks:
            block.close()


def _options(bits: int) -> RingOptions:
    return RingOptions(
        fence=_nothing,
        indirect=bool(bits & 1),
        event_idx=bool(bits & 2),
        in_order=bool(bits & 4),
        clamp_used_len=bool(bits & 8),
    )


def _nothing() -> None:
    return None


class _Session:
    """One queue, its memory, and what is known of both."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.options = _options(feed.byte())
        self.dma = _Dma()
        self.queue: Any = self.make(feed.byte())
        self.desc: memoryview
        self.driver: memoryview
        self.device: memoryview
        self.desc, self.driver, self.device = (block.view for block in self.dma.blocks[:3])
        self.size = self.queue.size
        self.laid = 0
        self.back = 0
        self.given: dict[int, tuple[int, int]] = {}
        """Cookie -> room, id."""
        self.shown = 0
        self.broken = False

    def make(self, shape: int) -> Any:
        raise NotImplementedError

    def steps(self) -> Iterable[Callable[[], None]]:
        """What a byte of the input chooses from."""
        raise NotImplementedError

    def add(self) -> None:
        feed = self.feed
        shape, room = feed.byte(), _LENGTHS[1 + feed.byte() % 7]
        reads, writes = shape & 3, shape >> 2 & 3
        at = _BUFFERS + 0x1_0000 * self.laid
        if shape & 0x10:
            at = (1 << 64) - 0x100  # beyond what can be addressed, with the longer ones
        readable = [(at + 0x100 * part, 16) for part in range(reads)]
        writable = [(at + 0x800 + 0x100 * part, room) for part in range(writes)]
        place = self.place()
        self.queue.add(readable, writable, self.laid)
        self.given[self.laid] = (room * writes, self.ident(place, reads + writes))
        self.laid += 1

    def place(self) -> int:
        """Where the next chain is announced."""
        raise NotImplementedError

    def ident(self, place: int, count: int) -> int:
        """The id by which the device knows the chain that was added there."""
        raise NotImplementedError

    def publish(self) -> None:
        self.queue.publish()
        self.shown = self.laid

    def reap(self) -> None:
        self._reap(None)

    def reap_some(self) -> None:
        self._reap(self.feed.byte() % 5)

    def _reap(self, limit: int | None) -> None:
        expected = self.expected(limit)
        try:
            done = self.queue.reap(limit)
        except RingCorruption:
            self.broken = True
            if expected is not None and expected[1]:
                raise Lie("a device that obeys was refused") from None
            return
        if limit is not None and len(done) > limit:
            raise Lie(f"{len(done)} completions, and {limit} was the limit")
        for cookie, written in done:
            if cookie not in self.given or cookie >= self.shown:
                raise Lie(f"chain {cookie} is not in flight")
            room, _ = self.given.pop(cookie)
            if not 0 <= written <= room:
                raise Lie(f"{written} bytes written, and there was room for {room}")
        self.back += len(done)
        if expected is not None and (not expected[1] or expected[0] != [tuple(one) for one in done]):
            raise Lie(f"delivered {done}, and the ring says {expected}")

    def expected(self, limit: int | None) -> tuple[list[tuple[int, int]], bool] | None:
        """What the ring's memory says by the standard: completions, and whether all is well. None: not told."""
        return None

    def look(self) -> None:
        self.queue.pending()
        self.queue.taken()
        self.queue.words()

    def interrupts(self) -> None:
        self.queue.want_interrupts(bool(self.feed.byte() & 1))

    def scribble(self) -> None:
        feed = self.feed
        view = (self.desc, self.driver, self.device)[feed.byte() % 3]
        at, data = feed.number(2) % len(view), feed.take(feed.byte() % 17)
        data = data[: len(view) - at]
        view[at : at + len(data)] = data

    def finish(self) -> None:
        """Every cookie comes back once, whatever the device did."""
        if self.broken:
            for call in (self.queue.reap, self.queue.publish, self.queue.pending):
                try:
                    call()
                except DeviceBroken:
                    continue
                raise Lie("a broken queue goes on")
        # what was reaped before a later element was found to be wrong comes with the rest
        left = sorted(self.queue.abandon())
        if left != sorted(self.given):
            raise Lie(f"{left} given back, and {sorted(self.given)} was owed")
        self.queue.close()
        self.dma.close()


class _Split(_Session):
    queue: SplitQueue

    def make(self, shape: int) -> SplitQueue:
        return make_split(1, 1 << shape % 5, self.dma, self.options)

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed)
        self.start = feed.number(2)
        queue = self.queue
        queue._laid = queue.published = queue.reaped = self.start
        self._avail_idx(self.start)
        self.used = self.start & 0xFFFF
        self.index(self.used)
        self.heads: dict[int, int] = {}

    def _avail_idx(self, value: int) -> None:
        struct.pack_into("<H", self.driver, 2, value & 0xFFFF)

    def index(self, value: int) -> None:
        struct.pack_into("<H", self.device, 2, value & 0xFFFF)

    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.add,
            self.publish,
            self.honest,
            self.reap,
            self.add,
            self.publish,
            self.honest,
            self.reap_some,
            self.element,
            self.jump,
            self.look,
            self.interrupts,
            self.scribble,
            self.event,
        )

    def place(self) -> int:
        return int((self.start + self.laid) % self.size)

    def ident(self, place: int, count: int) -> int:
        return int(struct.unpack_from("<H", self.driver, 4 + 2 * place)[0])

    def honest(self) -> None:
        """Use a chain that is in flight, by its id, with the length that comes next."""
        out = [cookie for cookie in self.given if cookie < self.shown]
        choice, length = self.feed.byte(), self.feed.byte()
        if out:
            room, ident = self.given[out[choice % len(out)]]
            self._put(self.used, ident, min(length, room) if length < 0xF0 else room + length - 0xF0)
            self.used = (self.used + 1) & 0xFFFF
            self.index(self.used)

    def _put(self, at: int, ident: int, length: int) -> None:
        struct.pack_into("<II", self.device, 4 + 8 * (at % self.size), ident & 0xFFFF_FFFF, length & 0xFFFF_FFFF)

    def element(self) -> None:
        feed = self.feed
        self._put(self.used + feed.byte() % 4, _IDS[feed.byte() % 10], _LENGTHS[feed.byte() % 8])

    def jump(self) -> None:
        self.used = (self.used + (1, 2, -1, 8, 9, 0x7FFF, 0x8000, 16)[self.feed.byte() % 8]) & 0xFFFF
        self.index(self.used)

    def event(self) -> None:
        struct.pack_into("<H", self.device, 4 + 8 * self.size, self.feed.number(2))

    def expected(self, limit: int | None) -> tuple[list[tuple[int, int]], bool] | None:
        if self.options.in_order:
            return None
        reaped = self.start + self.back
        count = (struct.unpack_from("<H", self.device, 2)[0] - reaped) & 0xFFFF
        if count > self.start + self.shown - reaped:
            return [], False
        done: list[tuple[int, int]] = []
        by_id = {ident: (cookie, room) for cookie, (room, ident) in self.given.items() if cookie < self.shown}
        for number in range(reaped, reaped + (count if limit is None else min(count, limit))):
            ident, written = struct.unpack_from("<II", self.device, 4 + 8 * (number % self.size))
            if ident not in by_id:
                return done, False
            cookie, room = by_id.pop(ident)
            if written > room:
                if room and not self.options.clamp_used_len:
                    return done, False
                written = room
            done.append((cookie, written))
        return done, True


class _Packed(_Session):
    queue: PackedQueue

    def make(self, shape: int) -> PackedQueue:
        return make_packed(1, (1, 2, 3, 5, 8, 16, 31)[shape % 7], self.dma, self.options)

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed)
        self.next = 0
        self.used = 0
        self.counts: dict[int, int] = {}

    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.add,
            self.publish,
            self.honest,
            self.reap,
            self.add,
            self.publish,
            self.honest,
            self.reap_some,
            self.slot,
            self.skip,
            self.look,
            self.interrupts,
            self.scribble,
            self.event,
        )

    def place(self) -> int:
        return int(self.next % self.size)

    def ident(self, place: int, count: int) -> int:
        needs = self.queue.needs(count)
        self.next += needs
        last = (place + needs - 1) % self.size
        ident = int(struct.unpack_from("<QIHH", self.desc, 16 * last)[2])
        self.counts[ident] = needs
        return ident

    def honest(self) -> None:
        out = [cookie for cookie in self.given if cookie < self.shown]
        choice, length = self.feed.byte(), self.feed.byte()
        if out:
            room, ident = self.given[out[choice % len(out)]]
            self._put(
                self.used, ident, min(length, room) if length < 0xF0 else room + length - 0xF0, 2 * (room > 0)
            )
            self.used += self.counts.get(ident, 1)

    def _put(self, slot: int, ident: int, length: int, more: int) -> None:
        lap, place = divmod(slot, self.size)
        flags = more | (0 if lap & 1 else ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED)
        struct.pack_into("<IHH", self.desc, 16 * place + 8, length & 0xFFFF_FFFF, ident & 0xFFFF, flags)

    def slot(self) -> None:
        feed = self.feed
        self._put(self.used + feed.byte() % 4, _IDS[feed.byte() % 10], _LENGTHS[feed.byte() % 8], feed.byte() & 2)

    def skip(self) -> None:
        self.used += self.feed.byte() % 4

    def event(self) -> None:
        struct.pack_into("<HH", self.device, 0, self.feed.number(2), self.feed.byte())


class _Slots(_Session):
    """Fixed slots on either ring."""

    def make(self, shape: int) -> Any:
        if shape & 1:
            return make_packed(1, (1, 3, 8)[shape >> 1 & 1], self.dma, self.options)
        return make_split(1, 1 << (shape >> 1) % 4, self.dma, self.options)

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed)
        shape = feed.byte()
        self.count = 1 + (shape & 7) % self.size
        reads, writes = (shape >> 3 & 1), 1 + (shape >> 4 & 1)
        self.rooms = writes * 64
        chains = [
            (
                [(_BUFFERS + 0x1_0000 * slot, 16)] * reads,
                [(_BUFFERS + 0x1_0000 * slot + 0x100 * part, 64) for part in range(writes)],
            )
            for slot in range(self.count)
        ]
        self.slots = fixed_slots(self.queue, chains)
        self.idle = set(range(self.count))
        self.out: list[int] = []
        """In flight, oldest first."""
        self.waiting: list[int] = []
        self.used = 0

    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.post,
            self.honest,
            self.take,
            self.post,
            self.honest,
            self.take,
            self.raw,
            self.jump,
            self.ready,
            self.scribble,
            self.post_wrong,
            self.show,
        )

    def post(self) -> None:
        bits, late = self.feed.byte(), self.feed.byte() & 7 == 7
        slots = [slot for slot in sorted(self.idle) if bits >> slot % 8 & 1]
        self.slots.submit(slots, show=not late)
        self.idle.difference_update(slots)
        self.waiting += slots
        if not late and slots:
            self.out, self.waiting = self.out + self.waiting, []

    def post_wrong(self) -> None:
        """What is not idle, or is not at all: refused, and nothing is changed."""
        wrong = [self.feed.byte() - 128]
        if wrong[0] in self.idle:
            wrong *= 2
        try:
            self.slots.submit(wrong)
        except DeviceBroken:
            raise
        except UvirtioError:
            return
        raise Lie(f"slots {wrong} were posted")

    def show(self) -> None:
        count = self.feed.byte() % (len(self.waiting) + 1)
        self.slots.show(count)
        self.out += self.waiting[:count]
        del self.waiting[:count]

    def honest(self) -> None:
        choice, length = self.feed.byte(), self.feed.byte()
        if self.out:
            self._put(self.used, self.out[choice % len(self.out)], self.rooms if length > 200 else length)
            self.used += 1
            self._index()

    def _index(self) -> None:
        if self.queue.kind == "split":
            struct.pack_into("<H", self.device, 2, self.used & 0xFFFF)

    def _put(self, at: int, ident: int, length: int) -> None:
        lap, place = divmod(at, self.size)
        if self.queue.kind == "split":
            struct.pack_into("<II", self.device, 4 + 8 * place, ident & 0xFFFF_FFFF, length & 0xFFFF_FFFF)
        else:
            flags = 2 | (0 if lap & 1 else ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED)
            struct.pack_into("<IHH", self.desc, 16 * place + 8, length & 0xFFFF_FFFF, ident & 0xFFFF, flags)

    def raw(self) -> None:
        feed = self.feed
        self._put(self.used + feed.byte() % 3, _IDS[feed.byte() % 10], _LENGTHS[feed.byte() % 8])

    def jump(self) -> None:
        self.used += (1, 2, 0xFFFF, 8)[self.feed.byte() % 4]
        self._index()

    def ready(self) -> None:
        count = self.slots.ready()
        if not 0 <= count <= max(1, len(self.out)):  # a ring that is wrong may say 1, and reap() what is wrong
            raise Lie(f"{count} slots are ready, and {len(self.out)} are out")

    def take(self) -> None:
        try:
            found = list(self.slots.reap())
        except RingCorruption:
            self.broken = True
            return
        if len(set(found)) != len(found) or not set(found) <= set(self.out):
            raise Lie(f"slots {found} came, and {self.out} were out")
        for slot in found:
            if self.slots.written[slot] > self.rooms:
                raise Lie(f"{self.slots.written[slot]} bytes written, and there was room for {self.rooms}")
        self.out = [slot for slot in self.out if slot not in found]
        self.idle.update(found)

    def finish(self) -> None:
        out = self.slots.out()
        if not self.broken and out != sorted(self.out):
            raise Lie(f"{out} are said to be out, and {sorted(self.out)} are")
        self.queue.close()
        self.dma.close()


class _Rings(Target):
    modules = ("virtqueue/",)
    most = 192
    session: ClassVar[type[_Session]]
    weight = 10_000

    def seeds(self) -> Iterable[bytes]:
        # Chains out and back, in each format and with each option.
        for bits in range(16):
            yield bytes([bits, 4, 0, 0, 0, 4, 3, 0, 9, 2, 1, 2, 0, 5, 3, 0, 8, 2, 4, 1, 2, 0, 9, 3, 10, 11, 1, 3])
            yield bytes(
                [bits, 2, 0xFE, 0xFF, 0, 4, 1, 1, 2, 0, 1, 3, 8, 0, 0, 0, 9, 0, 3, 12, 2, 2, 0, 4, 1, 2, 3, 4, 3]
            )

    def run(self, data: bytes) -> Hashable:
        feed = Feed(data)
        session = self.session(feed)
        steps = tuple(session.steps())
        refused = 0
        for _ in range(_STEPS):
            if not feed.more():
                break
            try:
                steps[feed.byte() % len(steps)]()
            except RingCorruption:
                session.broken = True
            except DeviceBroken:
                if not session.broken:
                    raise Lie("a queue that works was said to be broken") from None
                break
            except UvirtioError as error:
                refused |= 1 << hash(type(error).__name__[:3]) % 8
            if session.broken:
                break
        session.finish()
        queue = session.queue
        return session.broken, min(session.back, 3), tuple(sorted(queue.findings)), refused


class SplitRing(_Rings):
    """The split ring."""

    name = "split"
    about = (
        "a split ring (2.7): chains, used elements, indices, events; compared with a second reading of the ring"
    )
    session = _Split


class PackedRing(_Rings):
    """The packed ring."""

    name = "packed"
    about = "a packed ring (2.8): lists, used slots, wrap counters, events"
    session = _Packed


class FixedSlots(_Rings):
    """Fixed slots."""

    name = "slots"
    about = "fixed slots on either ring, where a batch is compared as a whole"
    session = _Slots

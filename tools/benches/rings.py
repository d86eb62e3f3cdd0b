"""The ring engine alone: chains laid down, shown, taken back, in memory that a device would share.

The device is not measured. What it answers is recorded beforehand, from a run of the same loop, so that in the
measured one it is a slice copy into the used ring and a store of its index; their time, measured alone in the
same run, is taken off. It answers in order, or in any order. The clock is read every 128 chains, and the median
counts, so that some in which the machine did something else do not.
"""

from __future__ import annotations

import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence

from benches import measure
from benches.counters import Counters
from benches.measure import Section
from benches.plain_memory import PlainDma
from benches.plain_ring import PlainRing
from uvirtio.memory.access import words16, words64
from uvirtio.memory.fence import full_fence
from uvirtio.spec import ring as spec
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import make_packed
from uvirtio.virtqueue.slots import fixed_slots
from uvirtio.virtqueue.split import make_split

SIZE = 256
BATCH = 32
LENGTH = 1500

ADDRESS = 0x10000
CHUNK = 128
"""Chains between two looks at the clock: few, so that most are undisturbed on a machine that others use."""
_CHAIN = ((ADDRESS, LENGTH),)


class Device:
    """What stands for the device: it answers one batch of heads, in their order or in any."""

    def __init__(
        self, used: memoryview, batch: int, *, shuffled: bool, length: int = LENGTH, size: int = SIZE
    ) -> None:
        self.batch, self.length, self.size = batch, length, size
        self.words = words16(used, 0, 2)
        self.elements = used[spec.RING_ENTRIES : spec.RING_ENTRIES + size * spec.USED_ENTRY_SIZE]
        self.index = 0
        draw = random.Random(5)
        self._orders = []
        for _ in range(64):
            order = list(range(batch))
            if shuffled:
                draw.shuffle(order)
            self._orders.append(order)

    def answer(self, heads: Sequence[int]) -> bytes:
        """The used elements for the next batch."""
        order = self._orders[self.index // self.batch % len(self._orders)]
        return array("Q", (heads[place] | self.length << 32 for place in order)).tobytes()

    def give(self, raw: bytes) -> None:
        """The ring's size is a multiple of the batch's, so that no answer goes over its end."""
        at = spec.USED_ENTRY_SIZE * (self.index & (self.size - 1))
        self.elements[at : at + len(raw)] = raw
        self.index += self.batch
        self.words[1] = self.index & 0xFFFF


class PackedDevice:
    """The same for a packed ring: it marks slots used, in their order, and names what it likes (2.8.6)."""

    def __init__(self, slots: memoryview, batch: int, *, shuffled: bool, size: int = SIZE) -> None:
        self._split = Device(memoryview(bytearray(spec.used_size(size))), batch, shuffled=shuffled, size=size)
        self.batch, self.size = batch, size
        self._words = words64(slots, 0, 2 * size)
        self.index = 0

    def answer(self, idents: Sequence[int]) -> bytes:
        """The used slots for the next batch: length, id and flags of each."""
        flags = spec.DESC_F_WRITE
        if not self.index // self.size & 1:
            flags |= spec.PACKED_DESC_F_AVAIL | spec.PACKED_DESC_F_USED
        self._split.index = self.index
        heads = array("Q", self._split.answer(idents))
        return array("Q", (LENGTH | (one & 0xFFFF) << 32 | flags << 48 for one in heads)).tobytes()

    def give(self, raw: bytes) -> None:
        at = self.index % self.size
        self._words[2 * at + 1 : 2 * (at + self.batch) : 2] = array("Q", raw)
        self.index += self.batch


class Loop:
    """One driver's loop. ``once`` is a round of it for recording; ``measured`` is the same, many times, timed."""

    def __init__(self, batch: int, *, shuffled: bool, size: int = SIZE) -> None:
        self.batch, self.shuffled, self.size = batch, shuffled, size
        self.device: Device | PackedDevice
        self.fresh()

    def fresh(self) -> None:
        raise NotImplementedError

    def idle(self) -> Device | PackedDevice:
        """A device without checks, to measure what it costs."""
        memory = memoryview(bytearray(spec.used_size(self.size)))
        return Device(memory, self.batch, shuffled=False, size=self.size)

    def once(self) -> bytes:
        raise NotImplementedError

    def chunk(self, answers: Iterable[bytes]) -> None:
        """A round for each answer, of driver and device."""
        raise NotImplementedError

    def rate(self, rounds: int) -> float:
        """Descriptors a second, without the device's part."""
        self.fresh()
        answers = [self.once() for _ in range(rounds)]
        self.fresh()
        clock, give = time.perf_counter, self.device.give
        both, alone, step = [], [], max(1, CHUNK // self.batch)
        for first in range(0, rounds, step):
            chunk = answers[first : first + step]
            begin = clock()
            self.chunk(chunk)
            both.append((clock() - begin) / len(chunk))
        give = self.idle().give
        for first in range(0, rounds, step):
            chunk = answers[first : first + step]
            begin = clock()
            for answer in chunk:
                give(answer)
            alone.append((clock() - begin) / len(chunk))
        return self.batch / (statistics.median(both) - statistics.median(alone))

    def counted(self, counters: Counters, rounds: int) -> dict[str, float]:
        """What the processor counts for each descriptor, without the device's part; empty where it does not."""
        self.fresh()
        answers = [self.once() for _ in range(rounds)]
        self.fresh()
        both = counters.of(lambda: self.chunk(answers))
        give = self.idle().give

        def device() -> None:
            for answer in answers:
                give(answer)

        alone = counters.of(device)
        return {name: (both[name] - alone[name]) / rounds / self.batch for name in both}


class Plain(Loop):
    """The baseline: see plain_ring."""

    def fresh(self) -> None:
        self.ring = PlainRing(self.size)
        used = memoryview(self.ring.used).cast("B")
        self.device = Device(used, self.batch, shuffled=self.shuffled, size=self.size)

    def once(self) -> bytes:
        ring, batch = self.ring, self.batch
        for _ in range(batch):
            ring.add(ADDRESS, LENGTH, 2)
        ring.publish()
        answer = self.device.answer(
            [ring.avail.ring[(ring.shadow - batch + at) % self.size] for at in range(batch)]
        )
        self.device.give(answer)
        assert len(ring.reap()) == batch
        return answer

    def chunk(self, answers: Iterable[bytes]) -> None:
        ring, batch, give = self.ring, range(self.batch), self.device.give
        add, publish, reap = ring.add, ring.publish, ring.reap
        for answer in answers:
            for _ in batch:
                add(ADDRESS, LENGTH, 2)
            publish()
            give(answer)
            reap()


class _Ours(Loop):
    """A queue of ours, with event words and without interrupts: it is looked at by itself, as the baseline is."""

    packed = False

    def fresh(self) -> None:
        dma = PlainDma()
        make = make_packed if self.packed else make_split
        self.queue = make(0, self.size, dma, RingOptions(fence=full_fence(), indirect=False, event_idx=True))
        self.queue.want_interrupts(False)
        desc, avail, used = (dma.at(address).view for address in self.queue.addresses)
        if self.packed:
            self.device = PackedDevice(desc, self.batch, shuffled=self.shuffled, size=self.size)
            self.shown = words64(desc, 0, 2 * self.size)
        else:
            self.device = Device(used, self.batch, shuffled=self.shuffled, size=self.size)
            self.shown = words16(avail, 0, 2 + self.size)

    def idle(self) -> Device | PackedDevice:
        if self.packed:
            memory = memoryview(bytearray(spec.packed_ring_size(self.size)))
            return PackedDevice(memory, self.batch, shuffled=False, size=self.size)
        return super().idle()


class Engine(_Ours):
    """The general path: each chain laid down by itself, with all its checks, and taken back with its cookie."""

    def once(self) -> bytes:
        for place in range(self.batch):
            self.queue.add((), _CHAIN, place)
        self.queue.publish()
        answer = self.device.answer(self.idents())
        self.device.give(answer)
        assert len(self.queue.reap()) == self.batch
        return answer

    def idents(self) -> list[int]:
        """What the batch that was shown last goes by."""
        places = [(self.device.index + at) % self.size for at in range(self.batch)]
        if self.packed:
            return [self.shown[2 * place + 1] >> 32 & 0xFFFF for place in places]
        return [self.shown[2 + place] for place in places]

    def chunk(self, answers: Iterable[bytes]) -> None:
        queue, batch, give = self.queue, range(self.batch), self.device.give
        add, publish, reap = queue.add, queue.publish, queue.reap
        for answer in answers:
            for place in batch:
                add((), _CHAIN, place)
            publish()
            give(answer)
            reap()


class Fixed(_Ours):
    """The batch path: what came back is posted again, as input, a disk or a receive queue does it."""

    def fresh(self) -> None:
        super().fresh()
        self.slots = fixed_slots(
            self.queue, [((), ((ADDRESS + 2048 * slot, LENGTH),)) for slot in range(self.size)]
        )
        self.back = array("H", range(self.batch))

    def once(self) -> bytes:
        self.slots.submit(self.back)
        answer = self.device.answer(self.back)
        self.device.give(answer)
        self.back = self.slots.reap()
        assert len(self.back) == self.batch
        return answer

    def chunk(self, answers: Iterable[bytes]) -> None:
        back, give, post, reap = self.back, self.device.give, self.slots.submit, self.slots.reap
        for answer in answers:
            post(back)
            give(answer)
            back = reap()
        self.back = back


class PackedEngine(Engine):
    """The same on a packed ring."""

    packed = True


class PackedFixed(Fixed):
    """The same on a packed ring."""

    packed = True


class Floor(Loop):
    """What CPython needs at the very least for a batch: two copies, a comparison, three stores, two fences."""

    def fresh(self) -> None:
        memory = memoryview(bytearray(4096))
        self.device = Device(memory, self.batch, shuffled=False)
        self.ring, self.heads = memoryview(bytearray(4096)).cast("H"), array("H", range(self.batch))
        self.fence = full_fence()

    def once(self) -> bytes:
        return self.device.answer(self.heads)

    def chunk(self, answers: Iterable[bytes]) -> None:
        ring, heads, fence, device = self.ring, self.heads, self.fence, self.device
        assert isinstance(device, Device)
        give = device.give
        words, elements, batch, length = device.words, device.elements, self.batch, 8 * self.batch
        for answer in answers:
            ring[:batch] = heads
            ring[-1] = 1
            fence()
            give(answer)
            assert words[1] == device.index & 0xFFFF
            at = spec.USED_ENTRY_SIZE * (device.index - batch & (SIZE - 1))
            assert bytes(elements[at : at + length]) == answer
            ring[-2] = 1
            fence()


IN_ORDER, ANY_ORDER, SINGLE = f"{BATCH} at a time, in order", f"{BATCH} at a time, any order", "one at a time"
_WANTED = {
    IN_ORDER: {"engine": 0.5, "fixed slots": 14.0, "packed engine": 0.7, "packed fixed slots": 8.0},
    ANY_ORDER: {"engine": 0.5, "fixed slots": 5.0, "packed engine": 0.7, "packed fixed slots": 2.5},
    SINGLE: {"engine": 0.9, "fixed slots": 0.9, "packed fixed slots": 0.5},
}


def _rate(loop: Loop, rounds: int) -> Callable[[], float]:
    return lambda: loop.rate(rounds)


def run(runs: int, quick: bool) -> Section:
    """Descriptors a second, one a chain; batches of 32 and single chains on a queue of 256."""
    section = Section(
        "rings",
        f"The engine alone: queues of {SIZE}, split unless it says packed, descriptors a second, one a chain."
        " The device is memory and is not timed.",
    )
    rounds = 128 if quick else 4096
    for batch, shuffled, name in (
        (BATCH, False, IN_ORDER),
        (BATCH, True, ANY_ORDER),
        (1, False, SINGLE),
    ):
        kinds = (Plain, Engine, Fixed, Floor, PackedEngine, PackedFixed)
        loops = [kind(batch, shuffled=shuffled) for kind in kinds]
        measured = measure.interleaved(runs, *(_rate(loop, rounds) for loop in loops))
        plain, engine, fixed, floor, packed, packed_fixed = measured
        section.add(f"{name}: ctypes, no checks (baseline)", plain, "desc/s")
        section.add(f"{name}: engine, all checks", engine, "desc/s")
        section.add(f"{name}: fixed slots, all checks", fixed, "desc/s")
        section.add(f"{name}: the floor, nothing kept", floor, "desc/s")
        section.add(f"{name}: packed engine, all checks", packed, "desc/s")
        section.add(f"{name}: packed fixed slots, all checks", packed_fixed, "desc/s")
        ours = {
            "engine": engine,
            "fixed slots": fixed,
            "packed engine": packed,
            "packed fixed slots": packed_fixed,
        }
        for what, values in ours.items():
            section.compare(f"{name}: {what} / baseline", values, plain, _WANTED[name].get(what))
        with Counters() as counters:
            for what, values in {"baseline": plain, **ours}.items():
                (loop,) = (one for one, its in zip(loops, measured, strict=True) if its is values)
                for counter, each in loop.counted(counters, rounds).items():
                    section.add(f"{name}: {what}, {counter} for each", [each], "", "counted by the processor")
    return section

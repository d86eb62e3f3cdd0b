"""The split virtqueue of 2.7.

Three areas that the device sees (descriptor table, available ring, used ring), and a private record of what
was posted. Nothing is ever read back from the descriptor table or the available ring, and nothing in the used
ring is trusted before it was compared with the record (2.7.8).

Cost of a chain: two 64-bit stores for each descriptor, one 16-bit store for the head, and for a whole batch of
chains one index store and one fence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from uvirtio.errors import RingCorruption
from uvirtio.spec.ring import AVAIL_F_NO_INTERRUPT, DESC_SIZE, USED_F_NO_NOTIFY
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import Completion, SgEntry
from uvirtio.virtqueue.base import INDIRECT_ENTRIES, NOT_OUT, RingOptions, allocate_queue, make_tuple
from uvirtio.virtqueue.chain import MAX_LENGTH, SAFE_ADDRESS, measure
from uvirtio.virtqueue.split_layout import FLAGS, IDX, INDIRECT, WRITE, SplitLayout

if TYPE_CHECKING:
    from typing import Any, NoReturn

    from uvirtio.interfaces.memory import DmaSpace


class SplitQueue(SplitLayout):
    """One split virtqueue. Satisfies ``Virtqueue``.

    Its driver area is the available ring, its device area the used ring. The fence ``order`` is executed between
    descriptors and index, and between index and used elements.

    With IN_ORDER descriptors are taken in ring order, from 0 on (2.7.5), and one used element may stand for all
    chains up to the one that it names (2.7.9).
    """

    __slots__ = ()

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Write one descriptor chain into the ring; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        free: Any = self._free  # a list, wherever something is held
        laid = self._laid
        held = self._held[head := free[-1]] if free else None
        if held is not None and held[0] is readable and held[1] is writable:
            # The chain for which these descriptors were written. They came back together, the head on top: if one
            # had been taken since, the head would have been too, and this would be forgotten.
            room, chain = held[2], held[3]
        elif len(readable) + len(writable) == 1:
            # The most frequent chain, so without a loop, and without a call.
            if readable:
                address, length = readable[0]
                room = flags = 0
            else:
                address, length = writable[0]
                room, flags = length, WRITE
            if length < 1 or length > MAX_LENGTH or address < 0 or address > SAFE_ADDRESS:
                measure(readable, writable, self.size)
            if not free:
                raise self._full(1, 0)
            chain = None
            if held is not None:
                self._held[head] = None
            self._starts[head] = address
            self._rests[head] = length | flags
            if self._in_order:
                self._heads[laid & self._mask] = head
            elif not laid & self._unheld and type(writable) is tuple and type(readable) is tuple:
                self._held[head] = readable, writable, room, chain  # as long as it is these objects
        else:
            head, room, chain = self._write(readable, writable)
        # Not visible yet: the device reads no further than avail.idx.
        self._ring[laid & self._mask] = head
        # In each branch nothing is called but the last: what a signal handler raises finds all done, or nothing.
        if chain is None:
            self._out[head] = (cookie, room, None, laid)
            self._laid = laid + 1
            free.pop()
        elif not self._in_order:
            del free[-len(chain) :]
            self._out[head] = (cookie, room, chain, laid)
            self._laid = laid + 1
        else:
            pops = iter(free.pop, chain[0])
            self._out[head] = (cookie, room, chain, laid)
            self._laid = laid + 1
            tuple(pops)  # all of them in one call

    def add_all(self, chains: list[Any]) -> None:
        """Write several chains into the ring; see ``Virtqueue``.

        The same ones as before in descriptors that they have already, without a call for each; others by ``add``.
        """
        if self._shut:
            self.refuse()
        free: Any = self._free  # a list, wherever something is held
        held, out, places, mask = self._held, self._out, self._ring, self._mask
        before = laid = self._laid
        try:
            for readable, writable, cookie in chains:
                now = held[head := free[-1]] if free else None
                if now is None or now[0] is not readable or now[1] is not writable:
                    self.add(readable, writable, cookie)
                    laid = self._laid
                    continue
                chain = now[3]
                places[laid & mask] = head
                if chain is None:  # as in ``add``
                    out[head] = (cookie, now[2], None, laid)
                    self._laid = laid = laid + 1
                    free.pop()
                else:
                    del free[-len(chain) :]
                    out[head] = (cookie, now[2], chain, laid)
                    self._laid = laid = laid + 1
        finally:
            del chains[: self._laid - before]

    def _write(
        self, readable: Sequence[SgEntry], writable: Sequence[SgEntry]
    ) -> tuple[int, int, tuple[int, ...] | None]:
        """Write a chain of several elements into the next free descriptors, which ``add`` takes.

        Its head, what the device may write of it, and its descriptors.
        """
        free: Any = self._free
        held = self._held
        count = len(readable) + len(writable)
        chain: tuple[int, ...] | None = None  # the head alone
        room = measure(readable, writable, self.size)
        if self._tables and count <= INDIRECT_ENTRIES:
            if not free:
                raise self._full(1, 0)
            head = free[-1]
            held[head] = None
            self._fill_table(head, readable, writable, count)
            # 2.7.5.3.1: INDIRECT without NEXT; WRITE has no meaning here.
            self._desc[2 * head] = self._tables[head]
            self._desc[2 * head + 1] = count * DESC_SIZE | INDIRECT
        else:
            if len(free) < count:
                raise self._full(count, len(free))
            if self._in_order:
                taken = tuple(islice(reversed(free), count))
            else:
                taken = tuple(free[: -count - 1 : -1])
                for number in taken:
                    held[number] = None
            self._fill_chain(taken, readable, writable)
            head, chain = taken[0], taken[::-1]
        if self._in_order:
            self._heads[self._laid & self._mask] = head
        elif type(readable) is tuple and type(writable) is tuple:
            held[head] = readable, writable, room, chain
        return head, room, chain

    def publish(self) -> bool:
        """Make all added chains visible; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        old = self.published
        new = self._laid
        if new == old:
            return False
        if self._order is not None:
            self._order()  # 2.7.13.3.1: descriptors and ring before the index
        self.published = new
        self._avail[IDX] = new & 0xFFFF
        self._fence()  # 2.7.13.4.1: the index before the device's event word is read
        if self._event_idx:
            # 2.7.10.1: whether the index avail_event was passed between old and new
            return (new - self._used[self._avail_event] - 1) & 0xFFFF < new - old
        return not self._used[FLAGS] & USED_F_NO_NOTIFY

    def send(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> bool:
        """Add one chain, and make it visible; see ``Virtqueue``. One that its descriptors hold already, here."""
        free: Any = self._free  # a list, wherever something is held
        held = self._held[head := free[-1]] if free else None
        if held is None or held[0] is not readable or held[1] is not writable or self._shut:
            self.add(readable, writable, cookie)
            return self.publish()
        laid, old, chain = self._laid, self.published, held[3]
        self._ring[laid & self._mask] = head
        if chain is None:  # as in ``add``
            self._out[head] = (cookie, held[2], None, laid)
            self._laid = new = laid + 1
            free.pop()
        else:
            del free[-len(chain) :]
            self._out[head] = (cookie, held[2], chain, laid)
            self._laid = new = laid + 1
        # As ``publish``.
        if self._order is not None:
            self._order()  # 2.7.13.3.1
        self.published = new
        self._avail[IDX] = new & 0xFFFF
        self._fence()  # 2.7.13.4.1
        if self._event_idx:
            return (new - self._used[self._avail_event] - 1) & 0xFFFF < new - old
        return not self._used[FLAGS] & USED_F_NO_NOTIFY

    def wants_kick(self) -> bool:
        """Whether a notification that was requested is still of use; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        return self._event_idx or not self._used[FLAGS] & USED_F_NO_NOTIFY

    def pending(self) -> bool:
        """Whether the device has used a chain that was not reaped."""
        if self.dead:
            self.refuse()
        return self._used[IDX] != self.reaped & 0xFFFF

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Return used chains; see ``Virtqueue``. At most those in flight at the call, however fast the device is.

        After a ``limit`` that left some, no interrupt announces the rest: call ``pending``.
        """
        if self._shut:
            self.refuse()
        done: list[Completion] = []
        while True:
            index = self._used[IDX]
            number = self.reaped
            count = (index - number) & 0xFFFF
            if not count:
                return done
            published = self.published
            if count > published - number:
                self._undelivered = done
                self._bad_index(index)
            end = number + count
            if limit is not None and count > limit - len(done):
                end = number + limit - len(done)
                if end <= number:
                    return done
            if self._order is not None:
                self._order()  # the index before the elements that it announces
            if self._in_order:
                self._undelivered = done  # in case a later element is invalid
                self._harvest_in_order(end, number + count, done)
            else:
                ids, lengths, out, free, mask = self._reaping
                # Each element is checked in full before it changes anything (2.7.8).
                try:
                    while True:
                        place = number & mask
                        head = ids[place]  # all 32 bits: 0x10003 is not 3
                        written = lengths[place]
                        cookie, room, chain, laid = (out[head] if head <= mask else None) or NOT_OUT
                        if laid >= published:
                            self.reaped = number
                            self.no_such_chain(head)
                        if written > room:
                            written = self.too_long(written, room)
                        # All of it before a call: what a signal handler raises comes after that.
                        out[head] = None
                        number += 1
                        if chain is None:
                            free.append(head)
                        else:
                            free += chain  # the next one takes them in the same order
                        done.append(make_tuple(Completion, (cookie, written)))
                        if number == end:
                            break
                except RingCorruption:
                    self._undelivered = done
                    raise
                finally:
                    self.reaped = number
            if not (self._event_idx and self._interrupts):
                return done
            # 2.7.7.1: request the next interrupt, and check again: the device may have been faster.
            self._avail[self._used_event] = self.reaped & 0xFFFF
            self._fence()

    def take(self, looks: int = 1) -> tuple[Any, int] | None:
        """Return one used chain; see ``Virtqueue``. The checks are those of ``reap``, in full (2.7.8)."""
        if self._shut:
            self.refuse()
        used, number = self._used, self.reaped
        last = number & 0xFFFF
        for _ in range(looks):
            index = used[IDX]
            if index != last:
                break
        else:
            return None
        published = self.published
        if self._in_order:
            done = self.reap(1)
            return done[0] if done else None  # the device may have taken the index back
        if (index - last) & 0xFFFF > published - number:
            self._bad_index(index)
        if self._order is not None:
            self._order()  # the index before the element that it announces
        free: Any  # a list, without IN_ORDER
        ids, lengths, out, free, mask = self._reaping
        place = number & mask
        head, written = ids[place], lengths[place]
        cookie, room, chain, laid = (out[head] if head <= mask else None) or NOT_OUT
        if laid >= published:
            self.no_such_chain(head)
        if written > room:
            written = self.too_long(written, room)
        # Nothing is called from here to the end: no signal finds it half done.
        out[head] = None
        free += (head,) if chain is None else chain
        self.reaped = number = number + 1
        if self._event_idx and self._interrupts:
            self._avail[self._used_event] = number & 0xFFFF  # 2.7.7.1
            self._fence()
        return cookie, written

    def _bad_index(self, index: int) -> NoReturn:
        self._corrupt(
            "the used index is out of range",
            seen=index,
            expected=f"{self.reaped & 0xFFFF}..{self.published & 0xFFFF} (modulo 65,536)",
            about="used-idx",
        )

    def _harvest_in_order(self, end: int, announced: int, done: list[Completion]) -> None:
        """The same with IN_ORDER: one element names the last chain of a batch, the index their number (2.7.9).

        The chains before it have no length of their own: they count as written in full. ``announced`` is the
        number of the first chain that used.idx does not include.
        """
        free = self._free
        assert isinstance(free, deque)
        for number in range(self.reaped, end):
            if number > self._told:
                place = 2 * (number & self._mask)
                head, written = self._elements[place], self._elements[place + 1]
                named = self._out[head] if head < self.size else None
                if named is None or not number <= named[3] < announced:
                    self.no_such_chain(head)
                if written > named[1]:
                    written = self.too_long(written, named[1])
                self._told, self._told_written = named[3], written
            head = self._heads[number & self._mask]
            posted = self._out[head]
            assert posted is not None
            cookie, room, chain, _ = posted
            # All of it before the call: an exception of a signal handler's comes after that.
            self._out[head] = None
            self.reaped = number + 1
            free.extendleft((head,) if chain is None else chain[::-1])
            done.append(Completion(cookie, self._told_written if number == self._told else room))

    def want_interrupts(self, on: bool) -> bool:
        """Enable or suppress used buffer notifications; see ``Virtqueue``."""
        if self.dead:
            self.refuse()
        self._interrupts = on
        if self._event_idx:
            # 2.7.7.1: flags stay 0. The entry before the current one comes up last, 65,535 entries later.
            self._avail[self._used_event] = (self.reaped if on else self.reaped - 1) & 0xFFFF
        else:
            self._avail[FLAGS] = 0 if on else AVAIL_F_NO_INTERRUPT
        if not on:
            return False
        self._fence()  # 2.7.14: the request before the check
        return self.pending()

    # --- fixed slots (slots.py) -----------------------------------------------------------------------------

    def set_fixed_slots(self, chains: Sequence[tuple[Sequence[SgEntry], Sequence[SgEntry]]]) -> bool:
        """Write chains permanently, chain ``n`` with descriptor ``n`` as its head (slots.py).

        Returns:
            False, with nothing changed, with IN_ORDER: descriptors have to be used in ring order then (2.7.5).

        Raises:
            BadChain: A chain breaks a rule of the standard.
            QueueFull: The chains do not fit.
        """
        if self._in_order:
            return False
        sizes = []
        for readable, writable in chains:
            measure(readable, writable, self.size)
            sizes.append(self.needs(len(readable) + len(writable)))
        if sum(sizes) > self.size:
            raise self._full(sum(sizes), self.size)
        tail = len(chains)
        for head, (size, (readable, writable)) in enumerate(zip(sizes, chains, strict=True)):
            count = len(readable) + len(writable)
            if size < count:
                self._fill_table(head, readable, writable, count)
                self._desc[2 * head] = self._tables[head]
                self._desc[2 * head + 1] = count * DESC_SIZE | INDIRECT
            else:
                self._fill_chain((head, *range(tail, tail + count - 1)), readable, writable)
                tail += count - 1
        self._hand_over()
        return True

    def set_slot_length(self, head: int, length: int) -> None:
        """Change the length of an idle fixed chain that is one readable descriptor.

        Args:
            head: Its descriptor.
            length: In bytes; the flags and next stay 0.
        """
        self._desc[2 * head + 1] = length

    def element_bytes(self) -> memoryview:
        """Return the used elements as bytes, to be copied out; the view is released with the queue."""
        view = self._elements.cast("B")
        self._views.insert(0, view)
        return view

    def show_heads(self, count: int) -> bool:
        """Make the first ``count`` chains of fixed slots visible that are in the ring and were not shown.

        Args:
            count: At most as many as were added.

        Returns:
            Whether the device requests a notification (kick).

        Raises:
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        if self.dead:
            self.refuse()
        if self._order is not None:
            self._order()  # 2.7.13.3.1
        self.published = new = self.published + count
        self._avail[IDX] = new & 0xFFFF
        self._fence()  # 2.7.13.4.1
        if self._event_idx:
            return (new - self._used[self._avail_event] - 1) & 0xFFFF < count
        return not self._used[FLAGS] & USED_F_NO_NOTIFY

    def relay(self, looks: int, notify: Callable[[], None], goal: int = 1) -> int:
        """Look whether chains are used, and at once make as many laid ones visible: the device goes on meanwhile.

        Args:
            looks: How often to look for one more, at most.
            notify: Notifies the device; called where it requests that.
            goal: Return when as many are used, or nothing is laid any more.

        Returns:
            The number of chains that used.idx announces.

        Raises:
            RingCorruption: It announces more than are in flight, or fewer than before.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        if self.dead:
            self.refuse()
        # Between the look that finds something and the kick nothing is done that could be done before.
        avail, used, fence, order = self._avail, self._used, self._fence, self._order
        event = self._avail_event if self._event_idx else 0
        reaped, old, laid = self.reaped, self.published, self._laid
        count, last = 0, reaped & 0xFFFF
        while True:
            # Of many in flight several go together, which is cheaper.
            index, step = last, (old - reaped - count) >> 3
            for _ in range(looks):
                index = used[IDX]
                if index != last and (not step or (index - last) & 0xFFFF >= step):
                    break
            else:
                if index == last:
                    return count
            more, last, count = count, index, (index - reaped) & 0xFFFF
            if not more < count <= old - reaped:
                self._bad_index(index)
            more = count - more
            if more > laid - old:
                more = laid - old
            if more:  # as show_heads
                if order is not None:
                    order()  # 2.7.13.3.1
                self.published = old = old + more
                avail[IDX] = old & 0xFFFF
                fence()  # 2.7.13.4.1
                if (old - used[event] - 1) & 0xFFFF < more if event else not used[FLAGS] & USED_F_NO_NOTIFY:
                    notify()
            if count >= goal or not more:
                return count

    def announced(self) -> int:
        """Return the number of chains that used.idx announces, checked against those in flight.

        Raises:
            RingCorruption: It announces more.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        if self.dead:
            self.refuse()
        count = (self._used[IDX] - self.reaped) & 0xFFFF
        if count:
            if count > self.published - self.reaped:
                self._bad_index((self.reaped + count) & 0xFFFF)
            if self._order is not None:
                self._order()  # the index before the elements that it announces
        return count

    def took(self) -> int:
        """With EVENT_IDX request the next interrupt, after chains that are counted as reaped.

        Returns:
            With EVENT_IDX: the number of chains that were used meanwhile, as ``announced``; else 0.

        Raises:
            RingCorruption: used.idx announces more than are in flight.
        """
        if not (self._event_idx and self._interrupts):
            return 0
        self._avail[self._used_event] = self.reaped & 0xFFFF
        self._fence()
        return self.announced()

    def _forget(self) -> None:
        self._free = []
        self._gather()


def make_split(index: int, size: int, dma: DmaSpace, options: RingOptions) -> SplitQueue:
    """Allocate a split queue in memory of its own, which its ``close()`` frees.

    Args:
        index: The queue's number, for errors.
        size: Number of entries.
        dma: Where its memory comes from.
        options: What was negotiated.

    Raises:
        UsageError: The size is not a power of two up to 32,768.
        QueueError: An area would not be one run of device addresses.
        MemoryScattered: The one region of a legacy queue would not be one run.
        MemlockExceeded: RLIMIT_MEMLOCK does not allow the memory.
        HugePagesLack: The pool has no huge page for the memory.
        PagemapHidden: This process may not read physical addresses.
        OperationFailed: The memory cannot be allocated or mapped. Nothing stays allocated in any case.
    """
    if not options.one_region:
        return allocate_queue(SplitQueue, index, size, dma, options)
    from uvirtio.virtqueue.region import legacy_areas  # here: only the legacy interface wants them

    return allocate_queue(SplitQueue, index, size, dma, options, legacy_areas)

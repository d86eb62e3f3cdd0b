"""A queue of a device: what a driver asks for, and the live virtqueue with its doorbell."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uvirtio.errors import Misuse
from uvirtio.interfaces.memory import Doorbell
from uvirtio.virtqueue import Completion, SgEntry, Virtqueue
from uvirtio.virtqueue.slots import Chain, Slots, fixed_slots

QUEUE_SIZE_MAX = 256
"""Entries. Enough for every driver here, and each ring area fits one page, which guest-physical memory needs."""


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue that a driver wants: its index (chapter 5), a name for people, and the most entries of use."""

    index: int
    name: str
    size: int = QUEUE_SIZE_MAX
    required: bool = True


class Queue:
    """A live virtqueue: the ring and its doorbell."""

    def __init__(self, spec: QueueSpec, ring: Virtqueue, doorbell: Doorbell, *, with_data: bool = False) -> None:
        self.index = spec.index
        self.name = spec.name
        self.spec = spec
        self.ring = ring
        self._doorbell = doorbell
        self._with_data = with_data
        self.kicks = 0
        self.completions = 0
        """Chains that came back, since the start."""
        self._slots: Slots | None = None

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Lay down a chain; the device does not see it before ``kick``."""
        self.ring.add(readable, writable, cookie)

    def kick(self) -> None:
        """Publish what was added and ring the doorbell if the device wants that (2.7.13)."""
        if self.ring.publish():
            self.notify()

    def notify(self) -> None:
        """Ring the doorbell unasked: for what was published before DRIVER_OK, when no kick was allowed (3.1.1)."""
        # 2.9: with NOTIFICATION_DATA a kick says where what is new ends.
        self._doorbell.ring(self.index | self.ring.kick_data << 16 if self._with_data else self.index)
        self.kicks += 1

    def replace_ring(self, ring: Virtqueue, doorbell: Doorbell) -> None:
        """After a reset of this queue: another ring, without chains and without slots."""
        self.ring, self._doorbell, self._slots = ring, doorbell, None

    @property
    def slots(self) -> Slots | None:
        """The fixed slots, if there are any."""
        return self._slots

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Take what the device has used, oldest first.

        Args:
            limit: The most completions to take; None takes all that are there.

        Returns:
            The cookies of the chains with the bytes that the device says it wrote.

        Raises:
            RingCorruption: The device wrote what cannot be.
        """
        done = self.ring.reap(limit)
        self.completions += len(done)
        return done

    def set_fixed(self, chains: Sequence[Chain]) -> Slots:
        """Write the descriptors of these chains once, one slot each; then use ``submit`` and ``reap_slots``.

        Args:
            chains: The readable and writable entries of each slot.

        Returns:
            The slots, numbered in the order of ``chains``.
        """
        self._slots = fixed_slots(self.ring, chains)
        return self._slots

    def submit(self, slots: Sequence[int]) -> None:
        """Make these slots available, and kick if the device wants that. Only after DRIVER_OK (3.1.1).

        Args:
            slots: Numbers of slots that are not with the device.

        Raises:
            Misuse: The queue has no fixed slots.
            UsageError: A slot is with the device already, or there is none of that number.
        """
        if self._fixed().submit(slots):
            self.notify()

    def reap_slots(self) -> array[int]:
        """The slots that came back, in the device's order.

        Raises:
            Misuse: The queue has no fixed slots.
            RingCorruption: The device wrote what cannot be.
        """
        found = self._fixed().reap()
        self.completions += len(found)
        return found

    def _fixed(self) -> Slots:
        if self._slots is None:
            raise Misuse(
                f"{self.name} (queue {self.index}) has no fixed slots",
                seen="a queue of single chains",
                expected="set_fixed() after the start of the device",
                remedy="call set_fixed() first, or use add(), kick() and reap()",
            )
        return self._slots

    def __repr__(self) -> str:
        return f"<Queue {self.index} {self.name}, {self.ring.kind}, {self.ring.size} entries>"

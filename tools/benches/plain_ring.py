"""The baseline: a split ring as one writes it first, with ctypes structures, and without a single check.

It believes the device's used ids and lengths, has no fence, no event words, no cookies, no chains, and reads
registers that it writes. It is here to be compared with, not to be used.
"""

from __future__ import annotations

import ctypes


class Desc(ctypes.LittleEndianStructure):
    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("len", ctypes.c_uint32),
        ("flags", ctypes.c_uint16),
        ("next", ctypes.c_uint16),
    )


class UsedElem(ctypes.LittleEndianStructure):
    _fields_ = (("id", ctypes.c_uint32), ("len", ctypes.c_uint32))


class PlainRing:
    """``add``, ``publish``, ``reap``: one descriptor for each chain."""

    def __init__(self, size: int) -> None:
        class Avail(ctypes.LittleEndianStructure):
            _fields_ = (("flags", ctypes.c_uint16), ("idx", ctypes.c_uint16), ("ring", ctypes.c_uint16 * size))

        class Used(ctypes.LittleEndianStructure):
            _fields_ = (("flags", ctypes.c_uint16), ("idx", ctypes.c_uint16), ("ring", UsedElem * size))

        self.size = size
        self.desc = (Desc * size)()
        self.avail = Avail()
        self.used = Used()
        self.free = list(range(size - 1, -1, -1))
        self.shadow = 0
        self.last_used = 0

    def add(self, address: int, length: int, flags: int) -> None:
        head = self.free.pop()
        entry = self.desc[head]
        entry.addr = address
        entry.len = length
        entry.flags = flags
        entry.next = 0
        self.avail.ring[self.shadow % self.size] = head
        self.shadow += 1

    def publish(self) -> bool:
        self.avail.idx = self.shadow & 0xFFFF
        return not self.used.flags & 1

    def reap(self) -> list[tuple[int, int]]:
        done = []
        ring, size = self.used.ring, self.size
        while self.last_used & 0xFFFF != self.used.idx:
            element = ring[self.last_used % size]
            done.append((element.id, element.len))
            self.free.append(element.id)
            self.last_used += 1
        return done

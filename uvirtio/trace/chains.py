"""The chains of a queue in a record: what went to the device, and what came back with it.

For people only: a replay finds the same chains by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from uvirtio.trace.tape import Tape

_SHOWN = 4096
"""Bytes of a chain that are shown; all that the device wrote is in the lines ``memory``."""


class ChainWatch:
    """Notes the chains of one queue. It replaces methods of that queue, so a queue without one costs nothing."""

    def __init__(self, tape: Tape, queue: Any, bytes_at: Callable[[int, int], bytes]) -> None:
        """Watch a queue from now on.

        Args:
            tape: Where the chains are noted.
            queue: The queue.
            bytes_at: Returns DMA memory by device address and length.
        """
        self._tape, self._queue, self._bytes_at = tape, queue, bytes_at
        self._count = 0
        self._out: list[tuple[int, Any, Sequence[tuple[int, int]]]] = []
        self._fixed: list[tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]] = []
        self._ring = queue.ring
        for name in ("add", "add_all", "send", "reap", "take", "set_fixed", "submit", "reap_slots"):
            method = getattr(type(queue), name)
            setattr(queue, name, self._watching(name, method))

    def _watching(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        note = getattr(self, f"_{name}")

        def watching(*args: Any, **keywords: Any) -> Any:
            if self._queue.ring is not self._ring:  # it was reset
                self._ring, self._out, self._fixed = self._queue.ring, [], []
            return note(lambda: method(self._queue, *args, **keywords), *args, **keywords)

        return watching

    def _add(self, do: Callable[[], Any], readable: Any, writable: Any, cookie: Any) -> None:
        do()
        self._gone(readable, writable, cookie)

    def _add_all(self, do: Callable[[], Any], chains: Any) -> None:
        before = list(chains)
        try:
            do()
        finally:
            for chain in before[: len(before) - len(chains)]:
                self._gone(*chain)

    def _send(self, do: Callable[[], Any], readable: Any, writable: Any, cookie: Any) -> None:
        if self._queue.takes(readable, writable):  # what is refused does not go out
            self._gone(readable, writable, cookie)
        do()

    def _gone(self, readable: Any, writable: Any, cookie: Any) -> None:
        self._count += 1
        self._out.append((self._count, cookie, list(writable)))
        self._tape.remark(
            "chain",
            way="out",
            queue=self._queue.index,
            name=self._queue.name,
            number=self._count,
            readable=[list(entry) for entry in readable],
            writable=[list(entry) for entry in writable],
            hex=self._read(readable, _SHOWN).hex(),
        )

    def _reap(self, do: Callable[[], Any], *_: Any, **__: Any) -> Any:
        done = do()
        for completion in done:
            self._back(completion.cookie, completion.written)
        return done

    def _take(self, do: Callable[[], Any], *_: Any, **__: Any) -> Any:
        came = do()
        if came is not None:
            self._back(*came)
        return came

    def _back(self, cookie: Any, written: int) -> None:
        for place, (number, posted, writable) in enumerate(self._out):
            if posted is cookie or (type(cookie) is int and posted == cookie):
                del self._out[place]
                self._tape.remark(
                    "chain",
                    way="back",
                    queue=self._queue.index,
                    name=self._queue.name,
                    number=number,
                    written=written,
                    hex=self._read(writable, min(written, _SHOWN)).hex(),
                )
                return

    def _set_fixed(self, do: Callable[[], Any], chains: Any) -> Any:
        self._fixed = [(list(readable), list(writable)) for readable, writable in chains]
        return do()

    def _submit(self, do: Callable[[], Any], slots: Any, **_: Any) -> None:
        if self._queue.slots is not None:
            self._queue.slots.check(slots)  # as above
            for slot in slots:
                readable, writable = self._fixed[slot]
                self._gone(readable, writable, int(slot))
        do()

    def _reap_slots(self, do: Callable[[], Any]) -> Any:
        found = do()
        slots = self._queue.slots
        for slot in found:
            self._back(int(slot), slots.written[slot])
        return found

    def _read(self, entries: Sequence[tuple[int, int]], most: int) -> bytes:
        data = b""
        for address, length in entries:
            if len(data) < most:
                data += self._bytes_at(address, min(length, most - len(data)))
        return data

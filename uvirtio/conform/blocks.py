"""Blocks of a memory device in the hands of a test: requests (5.15.6), a place that is free, and what is in it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from uvirtio.conform.lane import Element, Lane
from uvirtio.conform.memory import pattern
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Unfit, Violated
from uvirtio.errors import UvirtioError
from uvirtio.interfaces.backend import ProvidesMemory
from uvirtio.interfaces.memory import MemoryWindow
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted import Mem, ScriptedCore
from uvirtio.spec import mem
from uvirtio.spec.mem import Request, Response, State

_JUNK: Final = b"\xee\xbb\xdd"
LOOKED_AT: Final = 256
"""Blocks that are looked at for a place, at most."""
PAGE: Final = 4096


class Answer(NamedTuple):
    """What became of a request."""

    type: int
    state: int

    def __str__(self) -> str:
        return name_of(Response, self.type)


def name_of(names: type[Response] | type[State], value: int) -> str:
    """The name of a response or a state; its number in hexadecimal if it has none.

    Args:
        names: Which of the two.
        value: As the device wrote it.
    """
    return next((one.name for one in names if one == value), hex(value))


class Blocks:
    """The blocks of a device that runs, and a place of unplugged ones for a test."""

    def __init__(self, t: Trial, lane: Lane) -> None:
        """Read where they are.

        Args:
            t: The trial.
            lane: The queue for requests.
        """
        self.t = t
        self.lane = lane
        self.size = self.field("block_size")
        self.addr = self.field("addr")
        self.first = 0
        """The first block of the place."""
        self.mine: set[int] = set()
        """The blocks of all places: they were unplugged, so whoever plugged them is the test."""

    def field(self, name: str) -> int:
        """A field of the configuration."""
        return self.t.config_field(mem.CONFIG, name)

    def _send(self, request: bytes) -> Answer:
        response = self.t.writable(mem.RESPONSE_SIZE)
        self.exchange(self.t.readable(request), response)
        return Answer(int.from_bytes(response.data[:2], "little"), int.from_bytes(response.data[8:10], "little"))

    def exchange(self, request: Element, response: Element) -> None:
        """Make one request with these buffers."""
        posted = self.lane.post(request, response)
        self.t.await_used(self.lane, 1)
        self.t.expect(posted.length is not None, "the used ring names another chain", "the request")

    def ask(
        self, kind: int, block: int = 0, count: int = 0, *, addr: int | None = None, junk: bool = False
    ) -> Answer:
        """Make one request.

        Args:
            kind: Its type.
            block: The first block.
            count: How many.
            addr: Where, instead of where the block is.
            junk: With rubbish in the padding, and behind the request.
        """
        where = self.start(block) if addr is None else addr
        request = struct.pack("<H6xQH6x", kind, where % (1 << 64), count)
        if junk:
            request = request[:2] + _JUNK * 2 + request[8:18] + _JUNK * 2 + _JUNK * 4
        return self._send(request)

    def start(self, block: int) -> int:
        """The address of a block."""
        return self.addr + block * self.size

    def done(self, kind: int, block: int = 0, count: int = 0, *, junk: bool = False) -> None:
        """Make a request that the device has to carry out.

        Raises:
            Unfit: It cannot now, which it may say.
            Violated: It answers otherwise.
        """
        answer = self.ask(kind, block, count, junk=junk)
        if answer.type in (Response.BUSY, Response.NACK):
            raise Unfit(f"{Request(kind).name} of {count} blocks is answered {answer}")
        self.t.expect(answer.type == Response.ACK, f"{Request(kind).name} of {count} blocks: {answer}", "ACK")

    def state(self, block: int, count: int) -> int:
        """The state of blocks."""
        answer = self.ask(Request.STATE, block, count)
        self.t.expect(answer.type == Response.ACK, f"STATE of {count} blocks: {answer}", "ACK")
        return answer.state

    def is_(self, block: int, count: int, state: State) -> None:
        """Blocks have a state.

        Raises:
            Violated: They have another.
        """
        seen = self.state(block, count)
        self.t.expect(seen == state, f"{count} blocks are {name_of(State, seen)}", state.name)

    def plugged_size_is(self, size: int, when: str) -> None:
        """The configuration says how much is plugged.

        Raises:
            Violated: It says otherwise.
        """
        seen = self.field("plugged_size")
        self.t.expect(seen == size, f"plugged_size {seen:#x} after {when}", f"{size:#x}")
        self.t.witnessed("plugged_size", seen, self.t.host.memory("size"))

    @property
    def usable(self) -> int:
        """The blocks of the usable region."""
        return self.field("usable_region_size") // self.size

    def find(self, count: int) -> None:
        """Find a place of so many unplugged blocks.

        Raises:
            Unfit: There is none.
        """
        run = 0
        for block in range(min(self.usable, LOOKED_AT)):
            run = run + 1 if self.state(block, 1) == State.UNPLUGGED else 0
            if run == count:
                self.first = block + 1 - count
                self.mine.update(range(self.first, self.first + count))
                return
        raise Unfit(f"there is no place of {count} unplugged blocks")

    def allow(self, count: int) -> None:
        """See to it that the host wants so many blocks more.

        Raises:
            Unfit: It does not, and may not be asked.
        """

        def wanted() -> bool:
            return self.field("requested_size") - self.field("plugged_size") >= count * self.size

        if not wanted():
            self.t.need(
                self.t.consent.host, f"the host does not want {count} blocks more, and asking it needs --host"
            )
            self.t.lever()(count - 1)
            self.t.need(wanted(), f"the host does not want {count} blocks more")

    def give_back(self) -> None:
        """Unplug what was plugged, one by one: the state of some may be unknown."""
        for block in sorted(self.mine):
            with suppress(Violated, Unfit, UvirtioError):
                if self.state(block, 1) == State.PLUGGED:
                    self.ask(Request.UNPLUG, block, 1)


def started(t: Trial, *, interrupts: bool = False) -> Blocks:
    """The blocks of a device that is brought up now.

    Args:
        t: The trial.
        interrupts: With interrupts that tell a change of the configuration from a used buffer; else polled.
    """
    modes = (InterruptMode.PER_QUEUE, InterruptMode.INTX) if interrupts else False
    return Blocks(t, t.start(interrupts=modes))


@contextmanager
def place_of(t: Trial, *, interrupts: bool = False) -> Iterator[Blocks]:
    """A running device with a place of three unplugged blocks, which may all be plugged; given back at the end."""
    blocks = started(t, interrupts=interrupts)
    blocks.allow(3)
    blocks.find(3)
    try:
        yield blocks
    finally:
        blocks.give_back()


@contextmanager
def pattern_of(t: Trial) -> Iterator[tuple[Blocks, Contents]]:
    """A place of which the first block is plugged and filled with a pattern; given back at the end."""
    with place_of(t) as blocks, Contents(blocks, blocks.first) as contents:
        blocks.done(Request.PLUG, blocks.first, 1)
        contents.fill()
        yield blocks, contents


def again(blocks: Blocks) -> None:
    """Reset the device and bring it up again."""
    blocks.t.reset()
    blocks.lane = blocks.t.start()


def _window(t: Trial) -> MemoryWindow:
    """The region's memory, by the file that is behind it."""
    backend = t.device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Mem) and backend.model.fd >= 0:
        return backend.model.window()
    if isinstance(backend, ProvidesMemory):
        try:
            return backend.plugged_memory()
        except UvirtioError as error:
            raise Unfit(str(error)) from error
    raise Unfit("the memory that it plugs is no file of this process")


class Contents:
    """Some pages of a plugged block: the first, one in the middle, the last."""

    def __init__(self, blocks: Blocks, block: int) -> None:
        blocks.t.need(blocks.size % PAGE == 0, "blocks are smaller than a page")
        self._window = _window(blocks.t)
        self.start = blocks.start(block)
        """The address of its first page."""
        self.last = self.start + blocks.size - PAGE
        """The address of its last page."""
        self._base = blocks.addr
        start = block * blocks.size
        self._offsets = sorted({start, start + blocks.size // (2 * PAGE) * PAGE, start + blocks.size - PAGE})

    def _each(self, act: Callable[[memoryview], bytes]) -> list[bytes]:
        found = []
        for offset in self._offsets:
            with self._window.map(offset, PAGE) as mapping, memoryview(mapping) as view:
                found.append(act(view))
        return found

    def read(self, address: int, length: int) -> bytes:
        """What the CPU reads at the start of a page."""
        with self._window.map(address - self._base, PAGE) as mapping:
            return mapping[:length]

    def write(self, address: int, data: bytes) -> None:
        """Write as the CPU does at the start of a page."""
        with self._window.map(address - self._base, PAGE) as mapping:
            mapping[: len(data)] = data

    def fill(self) -> None:
        """Write a pattern."""

        def write(view: memoryview) -> bytes:
            view[:] = pattern(PAGE)
            return b""

        self._each(write)

    def changed(self) -> bool:
        """Whether anything of it is no longer there."""
        return any(page != pattern(PAGE) for page in self._each(bytes))

    def close(self) -> None:
        """Release the window."""
        self._window.close()

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Free page hints (5.5.6.5): a host that migrates this guest skips the pages that we hint as free."""

from __future__ import annotations

from typing import Literal

from uvirtio.device import Device, Queue
from uvirtio.drivers.balloon.arena import Arena, Range, Use, of_use
from uvirtio.drivers.base import runs
from uvirtio.spec import balloon as spec
from uvirtio.spec.layout import by_name

_CMD_ID = by_name(spec.CONFIG)["free_page_hint_cmd_id"]
_SLOTS = 16
"""Commands that can be in flight."""


class Hints:
    """The state machine of free_page_vq. Nothing here waits: ``serve`` does what can be done now.

    The host starts a round by putting an id of 2 or more in its configuration. The driver sends that id once, then
    free ranges as writable buffers, then STOP when there are no more. STOP in the configuration ends the supply;
    DONE also makes the hinted ranges free again. An id that was answered once is stale, and ignored.
    """

    def __init__(self, device: Device, queue: Queue, order: Literal["little", "big"]) -> None:
        """Allocate the command buffers.

        Args:
            device: The balloon.
            queue: Its free_page_vq.
            order: Byte order of command ids; legacy devices use the guest's (5.5.6.5.3).
        """
        self._device = device
        self._queue = queue
        self._order = order
        self._slots = list(range(_SLOTS))
        self._buffer = device.dma.alloc(_SLOTS * spec.CMD_ID_SIZE)
        self._seen = -1  # configuration changes when the id was last looked at
        self._answered: int | None = None  # the last id that was sent: it may not be sent again (5.5.6.5.1)
        self._supplying = False
        self._over = True  # DONE: what comes back from the device is free at once
        self._wanted: int | None = None  # an id that waits for a slot
        self.arenas: list[Arena] = []
        self.rounds = 0
        """Rounds of hints so far."""
        self.hinted = 0
        """Bytes that the device has acknowledged as hints, over all rounds."""

    def lend(self, arena: Arena) -> None:
        """Hint the free ranges of ``arena``, from the next round on."""
        if arena not in self.arenas:
            self.arenas.append(arena)

    @property
    def supplying(self) -> bool:
        """Whether a round is open and its STOP was not sent yet."""
        return self._supplying

    def serve(self) -> None:
        """Reap used buffers, read the command id if the configuration changed, and send hints or STOP.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        for done in self._queue.reap():
            self._returned(done.cookie)
        changes = self._device.counters.config_changes
        if changes != self._seen:
            self._seen = changes
            self._handle_cmd_id(self._device.read_config(_CMD_ID)[0])
        if self._wanted is not None and self._slots and self._queue.ring.free:
            self._open(self._wanted)
        if self._supplying:
            self._supply()
        self._queue.kick()

    def _returned(self, cookie: object) -> None:
        if isinstance(cookie, int):
            self._slots.append(cookie)
        elif isinstance(cookie, Range):
            self.hinted += cookie.size
            cookie.use = Use.FREE if self._over else Use.HINTED

    def _handle_cmd_id(self, ident: int) -> None:
        if ident in (spec.CMD_ID_STOP, spec.CMD_ID_DONE):
            self._supplying, self._wanted = False, None
            if ident == spec.CMD_ID_DONE:
                self._release()
        elif ident != self._answered:
            # Also in the middle of another round, which is stale then.
            self._supplying, self._wanted = False, ident

    def _release(self) -> None:
        self._over = True
        for _, one in of_use(self.arenas, Use.HINTED):
            one.use = Use.FREE

    def _open(self, ident: int) -> None:
        self._wanted, self._answered = None, ident
        self._over = False
        self._supplying = True
        self.rounds += 1
        self._command(ident)

    def _command(self, value: int) -> None:
        slot = self._slots.pop()
        at = slot * spec.CMD_ID_SIZE
        self._buffer.view[at : at + spec.CMD_ID_SIZE] = encode(value, self._order)
        self._queue.add(runs(self._buffer, at, spec.CMD_ID_SIZE), (), slot)

    def _supply(self) -> None:
        for _, one in of_use(self.arenas, Use.FREE, Use.REPORTED):
            if self._queue.ring.free < len(one.runs):
                return  # the rest when the device has used some
            one.use = Use.OUT
            self._queue.add((), one.runs, one)
        if self._slots and self._queue.ring.free:
            self._command(spec.CMD_ID_STOP)
            self._supplying = False


def encode(command: int, order: Literal["little", "big"] = "little") -> bytes:
    """Encode a command id as 4 bytes.

    Args:
        command: The id.
        order: Byte order; legacy devices use the guest's (5.5.6.5.3).
    """
    return command.to_bytes(spec.CMD_ID_SIZE, order)

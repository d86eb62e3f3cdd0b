"""What stands between a driver and the outside: a tape that records, or one that replays (``Tape``).

The objects of seam.py and words.py are the same for both. A tape that records does what it is asked to and notes
the result; one that replays compares what it is asked with what was recorded, and gives the recorded result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Fits = Callable[[Any], bool]
"""Whether a recorded result can be one of this action; a record may come from anywhere."""

WORD = 1 << 64


def nothing(value: Any) -> bool:
    """Whether it is the result of what returns nothing."""
    return value is None


def flag(value: Any) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def number(value: Any) -> bool:
    """Whether it is a number of up to 64 bits, not below 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < WORD


def feature_word(value: Any) -> bool:
    """Whether it is a number of up to 128 bits, or None."""
    return value is None or (isinstance(value, int) and 0 <= value < WORD**2)


def numbers(value: Any) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(map(number, value))


def anything(value: Any) -> bool:
    """Whatever it is: a result that is only passed on."""
    del value
    return True


def of(*parts: Fits) -> Fits:
    """Return the test for a list of these parts."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == len(parts)
            and all(part(one) for part, one in zip(parts, value, strict=True))
        )

    return fits


class Memory(Protocol):
    """A block that a tape looks after."""

    number: int
    """The number of the block on the tape."""

    view: memoryview
    """Its bytes."""

    image: bytearray
    """While recording: its bytes as the replayed block will have them."""

    ring: bool
    """A ring reads it word by word."""

    fresh: set[int]
    """While recording: where it changed since it was noted last."""


class Tape(Protocol):
    """A tape."""

    replays: bool
    """Whether it answers from a record."""

    names: dict[int, str]
    """The events by their file descriptors."""

    def ask(self, op: str, at: str, args: list[Any], do: Callable[[], Any], fits: Fits = nothing) -> Any:
        """Do something that reaches the outside.

        Args:
            op: What kind of action, one of ``ACTIONS``.
            at: What it is done to.
            args: Its arguments, as JSON has them.
            do: Does it; not called in a replay.
            fits: Whether a recorded result can be one of this action.

        Returns:
            What ``do`` returned, as JSON has it.

        Raises:
            Diverged: The record has another action here.
            BadTrace: The record cannot be read.
        """
        ...

    def keep(self, block: Memory) -> None:
        """Take a block in that the device may write to."""
        ...

    def drop(self, block: Memory) -> None:
        """Forget a block that is being freed."""
        ...

    def mark(self) -> None:
        """Remember what the driver has written into memory; called before it writes into a ring."""
        ...

    def look(self, block: Memory, offset: int, length: int, read: Callable[[], bytes]) -> bytes:
        """Read memory that the device may write at any time.

        Args:
            block: The block.
            offset: Place in it, in bytes.
            length: Number of bytes.
            read: Reads them, by one access.

        Returns:
            The bytes.

        Raises:
            Diverged: The record has something else here.
        """
        ...

    def left(self) -> None:
        """Note that a device was closed."""
        ...

    def remark(self, op: str, **members: Any) -> None:
        """Note something for people; nothing in a replay."""
        ...


class Books:
    """What a tape of either kind keeps: the actions so far, the names of the events, the blocks of memory."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.names: dict[int, str] = {}
        self._n = 0
        self._blocks: dict[int, Memory] = {}

    def keep(self, block: Memory) -> None:
        """Take a block in that the device may write to."""
        self._blocks[block.number] = block

    def drop(self, block: Memory) -> None:
        """Forget a block that is being freed."""
        self._blocks.pop(block.number, None)


def no_facts(made: object) -> None:
    """What a tape has of an object that has no facts."""
    del made


def obtain(
    tape: Tape, at: str, args: list[Any], make: Callable[[], Any], tell: Callable[[Any], Any], fits: Fits = nothing
) -> tuple[Any, Any]:
    """Call what returns an object, of which only facts can be on a tape.

    Args:
        tape: The tape.
        at: What is called.
        args: Its arguments, as JSON has them.
        make: Calls it; not called in a replay.
        tell: Returns the facts of the object, as JSON has them.
        fits: Whether recorded facts can be those of such an object.

    Returns:
        The facts, and the object; None in a replay.
    """
    made: list[Any] = []

    def do() -> Any:
        made.append(make())
        return tell(made[0])

    facts = tape.ask("call", at, args, do, fits)
    return facts, made[0] if made else None

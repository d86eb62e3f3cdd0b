"""The lines of a record: what a file of JSON Lines begins with, and how errors are written.

The first line is the header; every other is a JSON object with at least ``op``:

    open    a device was opened: address, bus, and the facts of its back end's object
    read    a register was read: ``at`` the register, ``args`` width in bits, ``is`` the value
    write   a register was written: ``args`` width in bits and value
    call    a method of the back end's object: ``at`` its name, ``args``, ``is`` the result
    kick    a doorbell was rung: ``at`` its queue's register, ``args`` the value
    take    an interrupt was looked for: ``at`` the event, ``is`` whether it was pending
    rearm   a level-triggered line was unmasked
    time    the clock was read; ``sleep``, ``poll``, ``random`` are the rest of the clock
    memory  what is new in a block: ``block``, ``offset`` and the bytes as ``hex``, the driver's among them
    chain   a chain went to the device (``way`` "out") or came back ("back"); for people only
    note    a line of the log: steps, errors, time-outs; for people only
    end     the command ended: its exit code and its error

``n`` counts what the driver did, its looks at ring memory included, which have no line of their own. A ``memory``
line takes effect at the look, or at the action, of that number. ``t`` is in seconds since the first ``open``.
"""

from __future__ import annotations

from typing import Any, Final

from uvirtio import errors
from uvirtio.errors import OperationFailed, UvirtioError

FORMAT: Final = "uvirtio-trace"
VERSION: Final = 1

ACTIONS: Final = frozenset({"read", "write", "call", "kick", "take", "rearm", "time", "sleep", "poll", "random"})
"""What a replayed driver has to do again, in this order."""

REMARKS: Final = frozenset({"chain", "note"})
"""What only people read."""


def pack(error: Exception) -> dict[str, Any]:
    """Return an error as the member ``raises`` of a line."""
    if isinstance(error, UvirtioError):
        members = {"seen": error.seen, "expected": error.expected, "remedy": error.remedy, "about": error.about}
        plain = {name: _plain(value) for name, value in members.items() if value is not None}
        return {"error": type(error).__name__, "message": error.message, **plain}
    return {"error": type(error).__name__, "message": str(error)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def unpack(members: dict[str, Any]) -> UvirtioError:
    """Return the error of a member ``raises``: one of this package's; OperationFailed for any other."""
    name, message = str(members.get("error")), str(members.get("message"))
    rest = {key: members.get(key) for key in ("seen", "expected", "remedy", "about")}
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if (
        not (isinstance(kind, type) and issubclass(kind, UvirtioError))
        or kind.__init__ is not UvirtioError.__init__
    ):
        return OperationFailed(f"{name}: {message}", **rest)
    return kind(message, **rest)

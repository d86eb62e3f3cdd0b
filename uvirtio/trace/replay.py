"""Replaying: a tape that answers from a record, and compares each action of the driver with the recorded one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from uvirtio.errors import BadTrace, Diverged, UvirtioError
from uvirtio.interfaces.backend import Backend
from uvirtio.trace.lines import ACTIONS, FORMAT, REMARKS, VERSION, unpack
from uvirtio.trace.seam import on_tape
from uvirtio.trace.tape import Books, Fits, Memory, nothing

_LONGEST = 256 << 20

_REMEDY = "record it again with --trace FILE (record=), FILE not ending in .json"

_NEEDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    **{op: {"n": int, "at": str, "args": list} for op in ACTIONS},
    **{op: {} for op in REMARKS},
    "memory": {"n": int, "block": int, "offset": int, "hex": str},
    "open": {"n": int, "device": str, "bus": str},
    "end": {"exit": int},
}


class Replay(Books):
    """A record that is replayed, from its first line to its last. Satisfies ``Replays`` and ``Tape``."""

    replays = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the record.

        Args:
            path: The file.

        Raises:
            BadTrace: It is not a record, or a damaged one; the message has the line.
        """
        super().__init__()
        self.path = Path(path)
        self.header, self._lines = self._read()
        self._place = 0
        self._error: Diverged | BadTrace | None = None

    # --- the file -------------------------------------------------------------------------------------------

    def bad(self, number: int, what: str, *, seen: object, expected: str, remedy: str = _REMEDY) -> BadTrace:
        """Return the error for a line.

        Args:
            number: Its number, from 1.
            what: What is wrong with it.
            seen: What is there.
            expected: What should be there.
            remedy: What to do.
        """
        return BadTrace(f"{self.path}, line {number}: {what}", seen=seen, expected=expected, remedy=remedy)

    def _read(self) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
        try:
            with self.path.open("rb") as file:
                text = file.read(_LONGEST + 1)
        except UvirtioError:
            raise
        except OSError as error:
            raise BadTrace(
                f"{self.path} cannot be read", seen=error.strerror, expected="a record", remedy=_REMEDY
            ) from error
        if len(text) > _LONGEST:
            raise BadTrace(
                f"{self.path} is too long for a record",
                seen=f"more than {_LONGEST >> 20} MiB",
                expected="a record that fits into memory",
                remedy="record a shorter command",
            )
        raw = text.split(b"\n")
        if raw and raw[-1] == b"":
            raw.pop()
        found = list(self._parsed(raw))
        if not found:
            raise self.bad(1, "the file is empty", seen="nothing", expected=f"the header of a {FORMAT}")
        _, header = found[0]
        if header.get("op") != FORMAT:
            chrome = raw[0].lstrip()[:1] == b"["
            raise self.bad(
                1,
                "this is a trace to look at, not to replay" if chrome else "this is no record of uvirtio",
                seen=raw[0][:60].decode("utf-8", "replace"),
                expected=f'the header of a record: "op": "{FORMAT}"',
            )
        if header.get("version") != VERSION:
            raise self.bad(
                1,
                "this record has another format",
                seen=f"version {header.get('version')}",
                expected=f"version {VERSION}",
                remedy="replay it with the version that made it",
            )
        lines = found[1:]
        for number, members in lines:
            self._check(number, members)
        return header, [(number, members) for number, members in lines if members["op"] not in REMARKS]

    def _parsed(self, raw: list[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in enumerate(raw, 1):
            try:
                members = json.loads(text)
            except (ValueError, RecursionError) as error:
                if number == 1:
                    members = {}  # not ours at all: the caller says so
                elif number == len(raw):
                    raise self.bad(
                        number, "the record is cut off", seen=f"{len(text)} bytes", expected="a whole line"
                    ) from error
                else:
                    raise self.bad(
                        number, "this is not JSON", seen=str(error)[:100], expected="a JSON object"
                    ) from error
            if not isinstance(members, dict):
                if number == 1:
                    members = {}
                else:
                    raise self.bad(number, "this is no object", seen=type(members).__name__, expected="an object")
            yield number, members
            if number == 1 and members.get("op") != FORMAT:
                return

    def _check(self, number: int, members: dict[str, Any]) -> None:
        op = members.get("op")
        if not isinstance(op, str) or op not in _NEEDS:
            raise self.bad(number, "this kind of line is not known", seen=op, expected=", ".join(sorted(_NEEDS)))
        for name, kind in _NEEDS[op].items():
            value = members.get(name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
                raise self.bad(number, f"{name} of {op} is missing or wrong", seen=repr(value), expected=str(kind))
        if not isinstance(members.get("raises", {}), dict):
            raise self.bad(number, "raises is no object", seen=repr(members["raises"]), expected="an error")
        if op == "memory":
            try:
                bytes.fromhex(members["hex"])
            except ValueError as error:
                raise self.bad(number, "these are no bytes", seen=members["hex"][:40], expected="hex") from error

    @property
    def command(self) -> list[str]:
        """The words of the command line that was recorded; none where a program recorded."""
        words = self.header.get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def maker(self) -> str:
        """The version of uvirtio that recorded."""
        return str(self.header.get("uvirtio"))

    @property
    def done(self) -> int:
        """Number of actions and looks that were replayed."""
        return self._n

    @property
    def diverged(self) -> Diverged | BadTrace | None:
        """Why the replay stopped to follow the record; None while it does."""
        return self._error

    def check_end(self) -> None:
        """Check that all of the record was replayed.

        Raises:
            Diverged: The recorded driver did more.
        """
        self._refuse()
        while self._place < len(self._lines) and self._lines[self._place][1]["op"] in ("memory", "end"):
            self._place += 1
        if self._place < len(self._lines):
            number, members = self._lines[self._place]
            self._diverge("end", number, members)

    @property
    def end(self) -> dict[str, Any] | None:
        """The line ``end``: how the command ended; None where the record has none."""
        found = [members for _, members in self._lines if members["op"] == "end"]
        return found[-1] if found else None

    # --- Replays --------------------------------------------------------------------------------------------

    def next_device(self) -> tuple[str, Backend]:
        """Return the address and the replayed object of the next device; see ``Replays``.

        Raises:
            Diverged: No other device was opened here.
            BadTrace: The record is damaged.
        """
        number, members = self._next("another device is opened")
        if members["op"] != "open":
            self._diverge("open a device", number, members)
        self._place += 1
        try:
            made: Backend = on_tape(self, members, None)
        except BadTrace as error:
            raise self.bad(number, error.message, seen=error.seen, expected="an open device") from error
        return members["device"], made

    # --- Tape -----------------------------------------------------------------------------------------------

    def ask(self, op: str, at: str, args: list[Any], do: Callable[[], Any], fits: Fits = nothing) -> Any:
        """Answer from the record; see ``Tape``."""
        del do
        self._refuse()
        self._n += 1
        what = _told(op, at, args)
        self._apply()
        number, members = self._next(what)
        if (members["op"], members.get("at"), members.get("args"), members["n"]) != (op, at, args, self._n):
            self._diverge(what, number, members)
        self._place += 1
        if "raises" in members:
            raise unpack(members["raises"])
        value = members.get("is")
        if not fits(value):
            self._error = self.bad(
                number, f"the result of {what} is wrong", seen=repr(value)[:100], expected="one that it can have"
            )
            raise self._error
        return value

    def look(self, block: Memory, offset: int, length: int, read: Callable[[], bytes]) -> bytes:
        """Read memory, after what the device wrote by then was put there."""
        del block, offset, length
        self._refuse()
        self._n += 1
        self._apply()
        if self._place < len(self._lines):
            number, members = self._lines[self._place]
            if members.get("n", self._n + 1) <= self._n and members["op"] not in ("open", "end"):
                self._diverge("look at the memory of a ring", number, members)
        return read()

    def _apply(self) -> None:
        """Write into memory what the device had written by now."""
        while self._place < len(self._lines):
            number, members = self._lines[self._place]
            if members["op"] != "memory" or members["n"] > self._n:
                return
            block, data = self._blocks.get(members["block"]), bytes.fromhex(members["hex"])
            if block is None or not 0 <= members["offset"] <= len(block.view) - len(data):
                self._error = self.bad(
                    number, "there is no such memory", seen=members["block"], expected="a block of the driver's"
                )
                raise self._error
            block.view[members["offset"] : members["offset"] + len(data)] = data
            self._place += 1

    def mark(self) -> None:
        """Do nothing: the driver writes again what it wrote."""

    def left(self) -> None:
        """Do nothing: the record says what comes next."""

    def remark(self, op: str, **members: Any) -> None:
        """Do nothing: a replay is not recorded."""

    # --- divergence -----------------------------------------------------------------------------------------

    def _refuse(self) -> None:
        """After a divergence every action fails for that reason, so that no other error hides it."""
        if self._error is not None:
            raise self._error

    def _next(self, what: str) -> tuple[int, dict[str, Any]]:
        self._refuse()
        if self._place >= len(self._lines):
            self._error = Diverged(
                f"{self.path}: the record ends, and the driver goes on: {what}",
                seen=what,
                expected=f"nothing after line {self._lines[-1][0] if self._lines else 1}",
                remedy="the recorded process was killed there, or its file is cut off",
            )
            raise self._error
        return self._lines[self._place]

    def _diverge(self, what: str, number: int, members: dict[str, Any]) -> NoReturn:
        recorded = _told(members["op"], str(members.get("at", "")), members.get("args", []))
        if recorded == what:
            recorded += f", as action {members.get('n')} instead of {self._n}"
        elif members["op"] == "memory":
            recorded = "look at the memory of a ring"
        self._error = Diverged(
            f"{self.path}, line {number}: the driver does not do what was recorded: {what}, instead of {recorded}",
            seen=what,
            expected=recorded,
            remedy=f"replay it with the same options and the same version ({self.maker})",
        )
        raise self._error


def _told(op: str, at: str, args: Any) -> str:
    """An action in one line."""
    if op in ("read", "write") and isinstance(args, list) and args and all(isinstance(one, int) for one in args):
        value = f" <- {args[1]:#x}" if len(args) > 1 else ""
        return f"{op}{args[0]} {at}{value}"
    shown = ", ".join(str(one) for one in args) if isinstance(args, list) else str(args)
    return f"{op} {at}({shown})" if shown or op == "call" else f"{op} {at}"

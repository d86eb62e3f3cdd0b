"""What a signal handler raises, at each place in turn where Python may run one: any step of a call.

CPython looks for signals when a function is entered, after a call and at a jump back, and nowhere else:
``RESUME``, ``CALL``, ``JUMP_BACKWARD`` and their relatives (``Python/ceval.c``, ``bytecodes.c``; 3.11 to
3.14). A step here is one of these. It does not look when a function of Python's returns; that counts as after
a call all the same.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import CO_GENERATOR
from types import CodeType, FrameType
from typing import Any

_PLAIN = {"PRECALL", "CALL_INTRINSIC_1", "CALL_INTRINSIC_2"}


class CtrlC(BaseException):
    """What a signal handler of the caller's raises."""


class Step:
    """One place, of all that a call passes."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.where = ""
        """Function, line and how Python got there; empty: there are fewer steps than that."""

    @property
    def came(self) -> bool:
        """Whether it came to that."""
        return bool(self.where)

    def pass_by(self, frame: FrameType, how: str) -> None:
        """Raise CtrlC if this is the place."""
        self._left -= 1
        if not self._left:
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, {how}"
            raise CtrlC


def within(*parts: str) -> Callable[[CodeType], bool]:
    """Whether a function stands in one of the files whose paths have one of these parts."""
    return cache(lambda code: any(part in code.co_filename for part in parts))


@contextmanager
def ended_at_step(number: int, inside: Callable[[CodeType], bool]) -> Iterator[Step]:
    """Raise CtrlC once, at the n-th step in functions that are ``inside``; yields what says where that was."""
    step, before = Step(number), sys.gettrace()

    def enter(frame: FrameType, event: str, _argument: Any) -> Any:
        if not inside(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        places, last = _places(frame.f_code), -1

        def follow(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "opcode":
                here, last = last, frame.f_lasti
                how = places.how.get(here)
                # Raised here, it is an exception of the next instruction: where another handler would take it,
                # nothing can be said.
                if how and (how != "jump" or last <= here) and places.handler(here) == places.handler(last):
                    step.pass_by(frame, f"after a {how}")
            return follow

        if not frame.f_code.co_flags & CO_GENERATOR:  # the end of one that is not read to its end looks the same
            step.pass_by(frame, "entered")
        return follow

    sys.settrace(enter)
    try:
        yield step
    finally:
        sys.settrace(before)


class _Places:
    """Where the code of a function calls, jumps back, and has which handler."""

    def __init__(self, code: CodeType) -> None:
        self.how: dict[int, str] = {}
        for one in dis.get_instructions(code):
            if "CALL" in one.opname and one.opname not in _PLAIN:
                self.how[one.offset] = "call"
            elif "JUMP_BACKWARD" in one.opname and "NO_INTERRUPT" not in one.opname:
                self.how[one.offset] = "jump"
        parse: Any = dis._parse_exception_table  # type: ignore[attr-defined]
        self._table = [(entry.start, entry.end, entry.target) for entry in parse(code)]

    def handler(self, offset: int) -> int | None:
        for start, end, target in self._table:
            if start <= offset < end:
                return int(target)
        return None


_places = cache(_Places)

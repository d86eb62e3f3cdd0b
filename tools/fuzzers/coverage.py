"""Which lines an execution ran: by sys.monitoring where there is one (3.12), else for some by sys.settrace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from types import CodeType, FrameType
from typing import Any

EVERY = 16
"""With settrace, one of so many executions is traced: it makes one several times as slow."""


class Coverage:
    """The lines that were run so far of some files."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        """Choose the files.

        Args:
            parts: Pieces of their paths.
        """
        self._parts = tuple(f"uvirtio/{part}" for part in parts)
        self._wanted: dict[CodeType, bool] = {}
        self.seen: set[tuple[CodeType, int]] = set()
        self._new = False
        self._monitoring: Any = getattr(sys, "monitoring", None)
        if self._monitoring is not None:
            self._watch()

    @property
    def kind(self) -> str:
        """How it is found out."""
        return "sys.monitoring" if self._monitoring is not None else f"sys.settrace, 1 in {EVERY}"

    def _is_wanted(self, code: CodeType) -> bool:
        found = self._wanted.get(code)
        if found is None:
            found = self._wanted[code] = any(part in code.co_filename for part in self._parts)
        return found

    def run(self, do: Callable[[bytes], Hashable], data: bytes, *, trace: bool) -> bool:
        """Run it, and return whether it ran a line that none did before.

        Args:
            do: Takes the input.
            data: The input.
            trace: Look at its lines also where that is slow.
        """
        self._new = False
        if self._monitoring is not None or not trace:
            do(data)
            return self._new
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            do(data)
        finally:
            sys.settrace(before)
        return self._new

    def _note(self, code: CodeType, line: int) -> None:
        place = (code, line)
        if place not in self.seen:
            self.seen.add(place)
            self._new = True

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if self._is_wanted(frame.f_code) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self._note(frame.f_code, frame.f_lineno)
        return self._line

    def _watch(self) -> None:
        tool = self._monitoring.COVERAGE_ID

        def line(code: CodeType, number: int) -> Any:
            if self._is_wanted(code):
                self._note(code, number)
            return self._monitoring.DISABLE

        self._monitoring.use_tool_id(tool, "uvirtio fuzz")
        self._monitoring.register_callback(tool, self._monitoring.events.LINE, line)
        self._monitoring.set_events(tool, self._monitoring.events.LINE)

    def close(self) -> None:
        """Stop watching; idempotent."""
        if self._monitoring is not None and self._monitoring.get_tool(self._monitoring.COVERAGE_ID):
            self._monitoring.set_events(self._monitoring.COVERAGE_ID, 0)
            self._monitoring.free_tool_id(self._monitoring.COVERAGE_ID)
            self._monitoring.restart_events()
